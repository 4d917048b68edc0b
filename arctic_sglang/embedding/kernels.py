"""Fused kernels of a BERT encoder, in Triton, and their twins in torch.

Each does in one pass over memory what an encoder does in several: the matrix products come without their biases,
and the bias goes in where its result is read anyway. Sums are taken in float32, rounded once to the output's type.
"""

import torch
import triton
import triton.language as tl


def embed_norm(
    ids: torch.Tensor,
    positions: torch.Tensor,
    words: torch.Tensor,
    places: torch.Tensor,
    kind: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LayerNorm of the sum of word, position and type embedding (BERT, https://arxiv.org/abs/1810.04805).

    Args:
        ids: int `[tokens]`.
        positions: int `[tokens]`.
        words: `[vocabulary, width]`.
        places: `[positions, width]`.
        kind: `[width]`, the embedding of the first token type.
        weight: `[width]`, of the LayerNorm.
        bias: `[width]`, of the LayerNorm.
        eps: of the LayerNorm.

    Returns:
        `[tokens, width]`, in the type of `words`.
    """
    tokens, width = len(ids), words.shape[1]
    if ids.device.type == "cpu":
        summed = words[ids].float() + places[positions].float() + kind.float()
        return torch.nn.functional.layer_norm(summed, (width,), weight.float(), bias.float(), eps).to(
            words.dtype
        )
    out = words.new_empty(tokens, width)
    if tokens:
        block = triton.next_power_of_2(width)
        _embed_norm[(tokens,)](
            ids, positions, words, places, kind, weight, bias, out, words.stride(0), places.stride(0), eps,
            WIDTH=width, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out


def add_norm(
    product: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LayerNorm of `product + bias + residual`.

    Args:
        product: `[tokens, width]`, a matrix product without its bias. On a GPU the result takes its place.
        bias: `[width]`.
        residual: `[tokens, width]`.
        weight: `[width]`, of the LayerNorm.
        shift: `[width]`, of the LayerNorm.
        eps: of the LayerNorm.

    Returns:
        `[tokens, width]`, in the type of `product`.
    """
    tokens, width = product.shape
    if product.device.type == "cpu":
        summed = product.float() + bias.float() + residual.float()
        normed = torch.nn.functional.layer_norm(summed, (width,), weight.float(), shift.float(), eps)
        return normed.to(product.dtype)
    if tokens:
        _add_norm[(tokens,)](
            product, bias, residual, weight, shift, product.stride(0), residual.stride(0), eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return product


def bias_gelu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`gelu(product + bias)`, the exact one (erf, https://arxiv.org/abs/1606.08415), in place on a GPU.

    Args:
        product: contiguous `[tokens, width]`, a matrix product without its bias.
        bias: `[width]`.
    """
    if product.device.type == "cpu":
        return torch.nn.functional.gelu(product.float() + bias.float()).to(product.dtype)
    tokens, width = product.shape
    if tokens:
        block = 1024
        _bias_gelu[(tokens, triton.cdiv(width, block))](product, bias, WIDTH=width, BLOCK=block, num_warps=4)
    return product


@triton.jit
def _norm(
    x: tl.tensor, there: tl.tensor, weight: tl.tensor, shift: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:  # fmt: skip
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(there, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    return centred / tl.sqrt(variance + eps) * weight + shift


@triton.jit
def _embed_norm(
    ids: tl.tensor, positions: tl.tensor, words: tl.tensor, places: tl.tensor, kind: tl.tensor, weight: tl.tensor,
    bias: tl.tensor, out: tl.tensor, word_stride: tl.tensor, place_stride: tl.tensor, eps: tl.tensor,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < WIDTH
    word = words + tl.load(ids + token).to(tl.int64) * word_stride
    place = places + tl.load(positions + token).to(tl.int64) * place_stride
    x = tl.load(word + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(place + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(kind + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    y = _norm(x, there, w, b, eps, WIDTH)
    tl.store(out + token * WIDTH + at, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def _add_norm(
    product: tl.tensor, bias: tl.tensor, residual: tl.tensor, weight: tl.tensor, shift: tl.tensor,
    stride: tl.tensor, residual_stride: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < WIDTH
    x = tl.load(product + token * stride + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(residual + token * residual_stride + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    b = tl.load(shift + at, mask=there, other=0.0).to(tl.float32)
    y = _norm(x, there, w, b, eps, WIDTH)
    tl.store(product + token * stride + at, y.to(product.dtype.element_ty), mask=there)


@triton.jit
def _bias_gelu(product: tl.tensor, bias: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < WIDTH
    x = tl.load(product + token * WIDTH + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(product + token * WIDTH + at, y.to(product.dtype.element_ty), mask=there)
