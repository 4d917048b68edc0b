"""From packed rows to pooled vectors, through the model that SGLang has loaded. No KV cache takes part.

`GeneralCore` runs the model's own forward under an attention backend that keeps every row to itself, so it serves
whatever SGLang embeds text with, under tensor parallelism and quantisation too. `BertCore` (in `bert`) is faster
for the family that most embedders are of.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.step import Step, Varlen, attend

logger = logging.getLogger(__name__)

_HOPPER = (9, 0)
_AMPERE = (8, 0)


class Core(ABC):
    """Computes a step.

    Args:
        model: as SGLang loaded it, with a `pooler`.
        device: where it is.
        dtype: of its activations.

    Raises:
        ValueError: the model has a layer that packed rows cannot pass.
    """

    first_position = 0
    pad_id: int | None = None

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.varlen = varlen_kernel(device, dtype)

    def __call__(self, rows: TokenRows) -> torch.Tensor:
        """One vector per row, as the model's pooler makes it: `[rows, width]` float32 on the device."""
        step = Step.of(rows, self.device, self.first_position, self.pad_id)
        return self.pooled(step).float()

    @abstractmethod
    def pooled(self, step: Step) -> torch.Tensor:
        """The vectors of a step, `[rows, width]`."""

    @property
    def normalize(self) -> bool:
        """Whether vectors have length 1."""
        return bool(self.model.pooler.normalize)


class GeneralCore(Core):
    """Any model that SGLang embeds text with."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(model, device, dtype)
        refuse_layers(model)
        self.backend = _packed_backend(self.varlen, dtype, device)

    def pooled(self, step: Step) -> torch.Tensor:
        """The vectors of a step, `[rows, width]`."""
        self.backend.step = step
        with vendor.forward_context(vendor.ForwardContext(attn_backend=self.backend)):
            found = self.model.forward(step.ids, step.positions, _batch(step), get_embedding=True)
        return found.embeddings


def _batch(step: Step) -> Any:
    """The step as SGLang's models take one: a prefill without cached tokens, without slots to write to."""
    rows = len(step.lengths)
    lengths = step.extend_seq_lens_cpu
    none = torch.zeros_like(step.extend_seq_lens)
    return vendor.ForwardBatch(
        forward_mode=vendor.ForwardMode.EXTEND,
        batch_size=rows,
        input_ids=step.ids,
        req_pool_indices=none,
        seq_lens=step.extend_seq_lens,
        out_cache_loc=None,
        seq_lens_sum=len(step.ids),
        positions=step.positions,
        extend_num_tokens=len(step.ids),
        extend_seq_lens=step.extend_seq_lens,
        extend_seq_lens_cpu=lengths,
        extend_prefix_lens=none,
        extend_prefix_lens_cpu=[0] * rows,
        extend_start_loc=step.bounds[:-1],
        is_prefill_only=True,
        is_extend_in_batch=True,
    )


def refuse_layers(model: Any) -> None:
    """Raise `ValueError` for attention that packed rows do not get right: windows, caps, cross attention."""
    for name, layer in model.named_modules():
        if not isinstance(layer, vendor.RadixAttention):
            continue
        problems = {
            "a sliding window": layer.sliding_window_size not in (-1, None),
            "a cap on its scores": bool(layer.logit_cap),
            "cross attention": layer.is_cross_attention,
        }
        found = [what for what, there in problems.items() if there]
        if found:
            msg = (
                f"--enable-fast-embedding: {name} of {type(model).__name__} has {' and '.join(found)}, which this road "
                "does not do; start without the flag"
            )
            raise ValueError(msg)


def _packed_backend(varlen: Varlen | None, dtype: torch.dtype, device: torch.device) -> Any:
    """An attention backend without a cache: a token sees its own row, as it is in the step."""

    class PackedBackend(vendor.AttentionBackend):
        step: Step

        def __init__(self) -> None:
            self.device = device
            # Models ask for its type before they write to it; there is nothing to write to.
            self.token_to_kv_pool = _NoCache()
            self.req_to_token_pool = None

        def forward(
            self,
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            layer: Any,
            forward_batch: Any,
            save_kv_cache: bool = True,
            **extra: Any,
        ) -> torch.Tensor:
            wrong = [name for name, value in extra.items() if value is not None]
            if wrong:
                msg = f"the vectorised road has no attention with {', '.join(wrong)}; start without the flag"
                raise NotImplementedError(msg)
            size = layer.qk_head_dim
            out = attend(
                q.view(-1, layer.tp_q_head_num, size),
                k.view(-1, layer.tp_k_head_num, size),
                v.view(-1, layer.tp_v_head_num, layer.v_head_dim),
                self.step,
                scale=layer.scaling,
                causal=layer.attn_type.value == "decoder",
                varlen=varlen,
            )
            return out.reshape(len(out), -1)

    return PackedBackend()


class _NoCache:
    dtype = None


def varlen_kernel(device: torch.device, dtype: torch.dtype) -> Varlen | None:
    """The fastest attention for packed rows here; None: none but torch's own."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability[0] == _HOPPER[0]:
        return _flash_attention_3
    return _torch_varlen if capability >= _AMPERE else None


def _flash_attention_3(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    return vendor.flash_attn_varlen_func(
        q,
        k,
        v,
        bounds,
        bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=causal,
    )


def _torch_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=window)
