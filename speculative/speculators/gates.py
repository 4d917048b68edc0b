"""The element-wise part of a draft step: kernels in Triton, and their twins in torch.

The twins are used on the CPU and wherever gradients are wanted. Both compute in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

Norms = tuple[Tensor, Tensor, Tensor, Tensor]


def lstm_cell(
    gates: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    emb_scale: float,
    cell: Tensor | None,
    norms: Norms,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """One step of a "sum_lstm" head, from the gates' projections on.

    With `F, I, O, C` the four parts of `gates`, each plus `emb_scale` times the token's embedding:
    `f, i, o = sigmoid(F), sigmoid(I), sigmoid(O)`; `cell' = cell * f + gelu(norm(C)) * i`;
    `state = gelu(norm'(cell')) * o`. Norms divide by the root mean square, gelu is the exact one (erf).

    Args:
        gates: `[..., 4 * width]`: forget, input, output, cell; contiguous.
        tokens: int64 `[...]`.
        embedding: `[vocabulary, width]`, the same for all gates, or `[vocabulary, 4 * width]`.
        emb_scale: what embeddings are multiplied with.
        cell: float32 `[..., width]`, or None for zeros.
        norms: weight and bias of the norm of `C`, then of the norm of the cell, each `[width]`.
        eps: of both norms.

    Returns:
        The state `[..., width]` in the type of `gates`, and the cell, float32.
    """
    if gates.dim() != 2 or gates.device.type == "cpu" or torch.is_grad_enabled():
        return _lstm_cell_twin(gates, tokens, embedding, emb_scale, cell, norms, eps)
    return lstm_cell_kernel(gates, tokens, embedding, emb_scale, cell, norms, eps)


def scale_input(hidden: Tensor, eps: float) -> Tensor:
    """`hidden / rms(hidden) / sqrt(2)` over the last axis, in the type of `hidden`."""
    if hidden.dim() != 2 or hidden.device.type == "cpu" or torch.is_grad_enabled():
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * 0.5**0.5
        return (wide * scale).to(hidden.dtype)
    return scale_input_kernel(hidden.contiguous(), eps)


def _lstm_cell_twin(
    gates: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    emb_scale: float,
    cell: Tensor | None,
    norms: Norms,
    eps: float,
) -> tuple[Tensor, Tensor]:
    width = gates.shape[-1] // 4
    z = functional.embedding(tokens, embedding).float().unflatten(-1, (-1, width))
    parts = gates.float().unflatten(-1, (4, width)) + emb_scale * z
    forget, into, out, candidate = parts.unbind(-2)
    cell_weight, cell_bias, state_weight, state_bias = (norm.float() for norm in norms)
    new = functional.gelu(_rms(candidate, eps) * cell_weight + cell_bias) * into.sigmoid()
    if cell is not None:
        new = new + cell * forget.sigmoid()
    state = functional.gelu(_rms(new, eps) * state_weight + state_bias) * out.sigmoid()
    return state.to(gates.dtype), new


def _rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def lstm_cell_kernel(
    gates: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    emb_scale: float,
    cell: Tensor | None,
    norms: Norms,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`lstm_cell` in one pass over memory: embeddings are read where they lie, and once for all gates.

    `gates` is `[batch, 4 * width]`, `tokens` `[batch]` of any stride.
    """
    batch, width = gates.shape[0], gates.shape[1] // 4
    state = gates.new_empty(batch, width)
    new = gates.new_empty(batch, width, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    if batch:
        _lstm_cell[(batch,)](
            gates, tokens, embedding, gates if cell is None else cell, *norms, state, new,
            tokens.stride(0), emb_scale, eps,
            WIDTH=width, EMB_STEP=width if embedding.shape[1] > width else 0, EMB_WIDTH=embedding.shape[1],
            HAS_CELL=cell is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return state, new


def scale_input_kernel(hidden: Tensor, eps: float) -> Tensor:
    """`scale_input` of `[batch, width]`, contiguous."""
    batch, width = hidden.shape
    scaled = torch.empty_like(hidden)
    block = triton.next_power_of_2(width)
    if batch:
        _scale_input[(batch,)](hidden, scaled, eps, WIDTH=width, BLOCK=block, num_warps=_warps(block))
    return scaled


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 16)


@triton.jit
def _gelu(x: tl.tensor) -> tl.tensor:
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _normed(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, at: tl.tensor, there: tl.tensor, eps: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`x` is zero where nothing is."""
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    return x * scale * w + b


@triton.jit
def _lstm_cell(
    gates: tl.tensor, tokens: tl.tensor, embedding: tl.tensor, cell: tl.tensor, cell_weight: tl.tensor,
    cell_bias: tl.tensor, state_weight: tl.tensor, state_bias: tl.tensor, state: tl.tensor, new_cell: tl.tensor,
    token_stride: tl.tensor, emb_scale: tl.tensor, eps: tl.tensor,
    WIDTH: tl.constexpr, EMB_STEP: tl.constexpr, EMB_WIDTH: tl.constexpr, HAS_CELL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One row; all of its width."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < WIDTH
    mine = gates + row * 4 * WIDTH + at
    emb = embedding + tl.load(tokens + row * token_stride).to(tl.int64) * EMB_WIDTH + at
    z = tl.load(emb, mask=there, other=0.0).to(tl.float32) * emb_scale
    forget = tl.load(mine, mask=there, other=0.0).to(tl.float32) + z
    if EMB_STEP:
        z = tl.load(emb + EMB_STEP, mask=there, other=0.0).to(tl.float32) * emb_scale
    into = tl.load(mine + WIDTH, mask=there, other=0.0).to(tl.float32) + z
    if EMB_STEP:
        z = tl.load(emb + 2 * EMB_STEP, mask=there, other=0.0).to(tl.float32) * emb_scale
    out = tl.load(mine + 2 * WIDTH, mask=there, other=0.0).to(tl.float32) + z
    if EMB_STEP:
        z = tl.load(emb + 3 * EMB_STEP, mask=there, other=0.0).to(tl.float32) * emb_scale
    candidate = tl.load(mine + 3 * WIDTH, mask=there, other=0.0).to(tl.float32) + z
    new = _gelu(_normed(candidate, cell_weight, cell_bias, at, there, eps, WIDTH)) * _sigmoid(into)
    if HAS_CELL:
        old = tl.load(cell + row * WIDTH + at, mask=there, other=0.0)
        new += old * _sigmoid(forget)
    tl.store(new_cell + row * WIDTH + at, new, mask=there)
    gated = _gelu(_normed(new, state_weight, state_bias, at, there, eps, WIDTH)) * _sigmoid(out)
    tl.store(state + row * WIDTH + at, gated.to(state.dtype.element_ty), mask=there)


@triton.jit
def _scale_input(
    hidden: tl.tensor, scaled: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < WIDTH
    x = tl.load(hidden + row * WIDTH + at, mask=there, other=0.0).to(tl.float32)
    y = x * (0.7071067811865476 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + eps))
    tl.store(scaled + row * WIDTH + at, y.to(scaled.dtype.element_ty), mask=there)
