"""Keys and values of all upper layers: one projection of the cut's state, one rotation, one write."""

from typing import Any

import torch
from torch import nn

from arctic_sglang.compat import vendor
from swiftkv.kv_write import Rotation, Slots, rotate, rotate_and_store
from swiftkv.layout import Layout


class UpperKeysValues(nn.Module):
    """Projects, rotates and stores keys and values of every group of upper layers.

    Args:
        owners: the attention layers that own keys and values, in order; SGLang's, for sizes and rotation.
        layout: the model's layers.
        hidden_size: width of the state.
        bias: whether the projections have one.
        head_norms: the norm of each group's keys for each head (Qwen3), or None.
        quant_config: SGLang's.
        prefix: the decoder's name in the checkpoint.
    """

    def __init__(
        self, owners: list[nn.Module], layout: Layout, *, hidden_size: int, bias: bool,
        head_norms: list[nn.Module] | None, quant_config: Any, prefix: str,
    ) -> None:  # fmt: skip
        super().__init__()
        first = owners[0]
        self.layout = layout
        self.head_dim, self.kv_heads = first.head_dim, first.num_kv_heads
        self.total_kv_heads = first.total_num_kv_heads
        self.tp_rank, self.tp_size = vendor.get_parallel().tp_rank, vendor.get_parallel().tp_size
        self.attention = [owner.attn for owner in owners]  # a list: they belong to their layers
        self.head_norms = None if head_norms is None else nn.ModuleList(head_norms)
        self.rotary = [first.rotary_emb]
        if not isinstance(getattr(first.rotary_emb, "cos_sin_cache", None), torch.Tensor):
            msg = f"SwiftKV does not know the rotary embedding {type(first.rotary_emb).__name__}"
            raise ValueError(msg)
        # Where ranks outnumber the heads, a head is on several ranks, and so more than once in the whole.
        width = self.kv_heads * self.head_dim * self.tp_size
        self.projection = vendor.MergedColumnParallelLinear(
            hidden_size,
            [width] * (2 * layout.groups),
            bias=bias,
            quant_config=quant_config,
            use_presharded_weights=True,  # `shard` gives each rank its heads
            prefix=vendor.add_prefix("kv_proj_swiftkv", prefix),
        )
        self._slots: Slots | None = None

    def load(self, group: int, value: bool, suffix: str, tensor: torch.Tensor) -> None:
        """Loads one tensor of a checkpoint.

        Args:
            group: the group of layers.
            value: of the values' projection, not of the keys'.
            suffix: the parameter: "weight" or "bias".
            tensor: as the checkpoint has it.
        """
        parameter = getattr(self.projection, suffix)
        parameter.weight_loader(parameter, self.shard(tensor), 2 * group + int(value))

    def shard(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's heads of a tensor whose first dimension is heads; any other as it is."""
        if self.tp_size == 1 or tensor.dim() == 0 or tensor.shape[0] % self.total_kv_heads:
            return tensor
        rows = tensor.shape[0] // self.total_kv_heads
        first = self.tp_rank * self.total_kv_heads // self.tp_size
        return tensor.narrow(0, first * rows, self.kv_heads * rows)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Keys and values, not rotated: `[tokens, groups, 2, heads * head_dim]`, keys first.

        Args:
            states: the normalised state at the cut, `[tokens, hidden]`.
        """
        pairs = self.projection(states)[0].view(
            states.shape[0], self.layout.groups, 2, self.kv_heads * self.head_dim
        )
        if self.head_norms is not None:
            for group, norm in enumerate(self.head_norms):
                keys = pairs[:, group, 0].reshape(-1, self.head_dim)
                pairs[:, group, 0] = norm(keys).view(-1, self.kv_heads * self.head_dim)
        return pairs

    def rotate(self, pairs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotates the keys of `project`'s result and returns it; stores nothing."""
        if pairs.is_cuda:
            rotate_and_store(pairs, positions, None, self._rotation(), None, keep_keys=True)
            return pairs
        keys = pairs[:, :, 0].unflatten(-1, (self.kv_heads, self.head_dim))
        return torch.stack((rotate(keys, positions, self._rotation()).flatten(-2), pairs[:, :, 1]), dim=2)

    def store(
        self, pairs: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, *, keep: bool
    ) -> torch.Tensor | None:
        """Rotates and writes to the cache.

        Args:
            pairs: `project`'s result; it may be changed.
            positions: int `[tokens]`.
            slots: int `[tokens]`, rows of the cache.
            keep: whether the rotated keys and the values are wanted back.
        """
        pool = vendor.get_token_to_kv_pool()
        if pairs.is_cuda and _has_plain_rows(pool):
            if self._slots is None:
                self._slots = self._make_slots(pool)
            rotate_and_store(pairs, positions, slots, self._rotation(), self._slots, keep_keys=keep)
            return pairs if keep else None
        pairs = self.rotate(pairs, positions)
        heads = pairs.unflatten(-1, (self.kv_heads, self.head_dim))
        where = vendor.KVWriteLoc(slots, None)
        for group, layer in enumerate(self.attention):
            # The pool may scale in place.
            keys, values = heads[:, group, 0].clone(), heads[:, group, 1].clone()
            pool.set_kv_buffer(layer, where, keys, values, layer.k_scale, layer.v_scale)
        return pairs if keep else None

    def _rotation(self) -> Rotation:
        rotary = self.rotary[0]
        return Rotation(rotary.cos_sin_cache, rotary.is_neox_style, self.head_dim)

    def _make_slots(self, pool: Any) -> Slots:
        first = self.layout.cut - pool.start_layer
        mine = slice(first, first + self.layout.groups)
        scales = [(layer.k_scale, layer.v_scale) for layer in self.attention]
        inverse = None
        if pool.store_dtype != pool.dtype and any(scale is not None for pair in scales for scale in pair):
            inverse = torch.tensor(
                [[1.0 if scale is None else 1.0 / float(scale) for scale in pair] for pair in scales],
                dtype=torch.float32, device=pool.k_buffer[0].device,
            )  # fmt: skip
        return Slots(pool.k_data_ptrs[mine], pool.v_data_ptrs[mine], pool.dtype, inverse)


def _has_plain_rows(pool: Any) -> bool:
    """Whether a pool keeps each layer as `[slots, heads, head_dim]`, which the kernel writes."""
    return (
        type(pool) is vendor.MHATokenToKVPool
        and not pool.use_hnd
        and pool.kv_cache_layout == "nhd"
        and not pool.is_quantized_kv_cache
    )
