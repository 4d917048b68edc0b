"""The decoder of a SwiftKV model, on top of one of SGLang's.

SGLang's prefill graphs capture the decoder alone and run the outer model eagerly around it. So the decoder
does what is done for all tokens: the lower layers and the upper layers' keys and values. In a prefill it
stops there and returns the state at the cut; the outer model takes the few rows that go up on. In decode
and in verify all rows go up here, under the usual graphs.

The upper layers restart from the cut's state alone, with no separate residual, in every mode: so a row is
computed in the same way whichever mode it came in.
"""

from typing import Any

import torch
from torch import nn

from arctic_sglang.compat import vendor
from swiftkv.layout import Layout
from swiftkv.models.keys_values import UpperKeysValues


class Handoff:
    """The keys and values that upper layers attend to in the forward that is under way.

    Attributes:
        pairs: `[tokens, groups, 2, heads * head_dim]`, rotated; None where the cache has them all, which
            decode reads anyway. Attention that extends a prompt is given them, since not every backend
            looks for the newest rows in the cache.
    """

    pairs: torch.Tensor | None = None


class UpperAttention(nn.Module):
    """Attention of an upper layer: queries of its own, keys and values from the cut.

    Args:
        base: the layer's attention as SGLang made it; output projection, rotation and sizes stay.
        owner: the attention module of the group's first layer.
        group: index of the group.
        handoff: shared by all upper layers.
        query_norm: the norm of queries for each head (Qwen3), or None.
    """

    def __init__(
        self, base: nn.Module, owner: nn.Module, group: int, handoff: Handoff, query_norm: nn.Module | None,
        *, hidden_size: int, bias: bool, quant_config: Any, prefix: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.head_dim = base.num_heads, base.head_dim
        self.q_proj_swiftkv = vendor.ColumnParallelLinear(
            hidden_size, base.total_num_heads * base.head_dim, bias=bias, quant_config=quant_config,
            prefix=vendor.add_prefix("q_proj_swiftkv", prefix),
        )  # fmt: skip
        self.q_norm_swiftkv = query_norm
        self.o_proj, self.rotary_emb = base.o_proj, base.rotary_emb
        if owner is base.attn:
            self.attn = owner
        # SGLang lists the layers' `attn` and looks a layer of the cache up in that list by its number, so
        # it must find each group once. The list hides the others.
        self.attention, self.group, self.handoff = [owner], group, handoff

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: Any
    ) -> torch.Tensor:
        """As SGLang's attention layers: `[tokens, hidden]` in and out."""
        queries, _ = self.q_proj_swiftkv(hidden_states)
        if self.q_norm_swiftkv is not None:
            queries = self.q_norm_swiftkv(queries.reshape(-1, self.head_dim)).view(queries.shape)
        # The rotation wants keys too; one head of them, which nobody reads.
        queries, _ = self.rotary_emb(positions, queries, queries.new_empty(queries.shape[0], self.head_dim))
        pairs = self.handoff.pairs
        keys, values = (None, None) if pairs is None else (pairs[:, self.group, 0], pairs[:, self.group, 1])
        output = self.attention[0](queries, keys, values, forward_batch, save_kv_cache=False)
        return self.o_proj(output)[0]


class SwiftKVBody(nn.Module):
    """Stands before a SGLang decoder class (`LlamaModel`, `Qwen2Model`), which makes the layers.

    Attributes:
        min_tokens: prefill steps of fewer tokens go up whole, inside their graph; see `prunes`.
    """

    query_bias = False  # Qwen2's projections have one whatever the config says

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        self.layout = Layout.of(config)
        self.min_tokens = vendor.get_server_args().swiftkv_min_tokens
        self.norm_swiftkv = vendor.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.handoff = Handoff()
        bias = self.query_bias or getattr(config, "attention_bias", False) or getattr(config, "bias", False)
        owners = [self.layers[layer].self_attn for layer in self.layout.owners]
        for group, owner in enumerate(owners):
            owner.attn.layer_id = self.layout.cut + group
        head_norm = hasattr(owners[0], "q_norm")
        for layer in self.layout.upper:  # never loaded; gone before anything takes their place
            del self.layers[layer].self_attn.qkv_proj
        torch.cuda.empty_cache()  # does nothing without CUDA
        self.keys_values = UpperKeysValues(
            owners, self.layout, hidden_size=config.hidden_size, bias=bias,
            head_norms=[self._head_norm(config, owner) for owner in owners] if head_norm else None,
            quant_config=quant_config, prefix=prefix,
        )  # fmt: skip
        for layer in self.layout.upper:
            base, group = self.layers[layer].self_attn, self.layout.kv_layer(layer) - self.layout.cut
            self.layers[layer].self_attn = UpperAttention(
                base, owners[group].attn, group, self.handoff,
                self._head_norm(config, base) if head_norm else None,
                hidden_size=config.hidden_size, bias=bias, quant_config=quant_config,
                prefix=vendor.add_prefix(f"layers.{layer}.self_attn", prefix),
            )  # fmt: skip

    @staticmethod
    def _head_norm(config: Any, base: nn.Module) -> nn.Module:
        return vendor.RMSNorm(base.head_dim, eps=config.rms_norm_eps)

    def prunes(self, forward_batch: Any, tokens: int) -> bool:
        """Whether a step stops at the cut, for most of its rows.

        A prefill does. But one of few tokens takes as long as its weights take to be read, however many
        rows go up, and all its layers fit in one graph: that is faster than a tail outside it.

        Args:
            forward_batch: SGLang's.
            tokens: rows of the step, padding included.
        """
        mode = forward_batch.forward_mode
        return mode.is_extend_without_speculative() and tokens >= self.min_tokens

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any,
        input_embeds: torch.Tensor | None = None, pp_proxy_tensors: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """The state at the cut where the step prunes, else the normalised last state; `[tokens, hidden]`."""
        hidden = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
        residual = None
        for layer in range(self.layout.cut):
            hidden, residual = self.layers[layer](positions, hidden, forward_batch, residual)
        states, hidden = self.at_cut(hidden, residual)
        prunes = self.prunes(forward_batch, positions.shape[0])
        pairs = self.keys_values.store(
            self.keys_values.project(states), positions, forward_batch.out_cache_loc,
            keep=not prunes and not forward_batch.forward_mode.is_decode_or_idle(),
        )  # fmt: skip
        return hidden if prunes else self.upper(hidden, positions, forward_batch, pairs)

    def at_cut(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised state and the state of all the step's tokens, `[tokens, hidden]` each.

        Args:
            hidden: what the last lower layer adds to the residual.
            residual: the sum so far.
        """
        return self.norm_swiftkv(hidden, residual)

    def own(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of rows that go up, those that the upper layers get on this rank: all, unless ranks share out tokens."""
        return hidden

    def upper(
        self, hidden: torch.Tensor, positions: torch.Tensor, forward_batch: Any, pairs: torch.Tensor | None
    ) -> torch.Tensor:
        """The layers from the cut on and the last norm.

        Args:
            hidden: the cut's state of the rows that go up, `[rows, hidden]`.
            positions: theirs.
            forward_batch: a batch of these rows.
            pairs: their keys and values, rotated; None where attention reads the cache.
        """
        self.handoff.pairs = pairs
        hidden, residual = self.own(hidden), None
        for layer in self.layout.upper:
            hidden, residual = self.layers[layer](positions, hidden, forward_batch, residual)
        self.handoff.pairs = None
        hidden, _ = self.norm(hidden, residual)
        return hidden

    def project_rows(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Keys and values, rotated, of some rows at the cut; stores nothing."""
        return self.keys_values.rotate(self.keys_values.project(self.norm_swiftkv(hidden)), positions)
