"""Rotates the upper layers' keys and writes their keys and values to a paged cache, all layers at once.

What comes in is the output of one projection for all groups of layers, `[tokens, groups, 2, heads * head_dim]`
with keys before values. A plain model rotates and stores once a layer; here it is one launch, which counts
in a decode step. `rotate_and_store` is the Triton kernel; `rotate` is the rotation in plain torch, used
where there is no GPU, and the reference in tests.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotary embedding.

    Attributes:
        table: cosines, then sines, of every position, `[positions, rotary_dim]`.
        neox: whether the two parts of a pair are half a head apart (Llama, Qwen) or neighbours (GPT-J).
        head_dim: elements of a head; those from `rotary_dim` on are not rotated.
    """

    table: torch.Tensor
    neox: bool
    head_dim: int


@dataclass(frozen=True, slots=True)
class Slots:
    """A cache of plain rows: `[slots, heads, head_dim]` for each layer, keys and values apart.

    Attributes:
        keys: addresses of the groups' key buffers, uint64 `[groups]`.
        values: addresses of their value buffers.
        dtype: what the buffers hold.
        inverse_scales: what keys and values are multiplied with before they are cast, float32
            `[groups, 2]`, or None.
    """

    keys: torch.Tensor
    values: torch.Tensor
    dtype: torch.dtype
    inverse_scales: torch.Tensor | None = None


def rotate(heads: torch.Tensor, positions: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotated heads (RoPE, https://arxiv.org/abs/2104.09864), computed in float32.

    Args:
        heads: `[tokens, ..., head_dim]`.
        positions: int `[tokens]`.
        rotation: the embedding.
    """
    rows = rotation.table[positions].float()
    rotary_dim = rows.shape[-1]
    shape = (rows.shape[0],) + (1,) * (heads.dim() - 2) + (rotary_dim // 2,)
    cos, sin = (part.reshape(shape) for part in rows.chunk(2, dim=-1))
    turned, passed = heads[..., :rotary_dim].float(), heads[..., rotary_dim:]
    if rotation.neox:
        first, second = turned.chunk(2, dim=-1)
    else:
        first, second = turned[..., 0::2], turned[..., 1::2]
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.cat(pair, -1) if rotation.neox else torch.stack(pair, -1).flatten(-2)
    return torch.cat((turned.to(heads.dtype), passed), dim=-1)


def rotate_and_store(
    keys_values: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor | None,
    rotation: Rotation,
    cache: Slots | None,
    *,
    keep_keys: bool,
) -> None:
    """Rotates the keys and stores keys and values, on a GPU.

    Args:
        keys_values: `[tokens, groups, 2, heads * head_dim]`, contiguous; changed only with `keep_keys`.
        positions: int `[tokens]`.
        slots: int `[tokens]`, the cache row of each token; None with `cache` None.
        rotation: the embedding.
        cache: where to; None stores nothing.
        keep_keys: whether `keys_values` holds the rotated keys afterwards.
    """
    tokens, groups, _, width = keys_values.shape
    if tokens == 0:
        return
    head_dim, rotary_dim = rotation.head_dim, rotation.table.shape[-1]
    dtype = keys_values.dtype if cache is None else cache.dtype
    scales = None if cache is None else cache.inverse_scales
    _rotate_and_store[(tokens, groups)](
        keys_values,
        positions,
        rotation.table,
        positions if slots is None else slots,
        positions if cache is None else cache.keys,
        positions if cache is None else cache.values,
        positions if scales is None else scales,
        rotation.table.stride(0),
        groups,
        HEADS=width // head_dim,
        HEAD_DIM=head_dim,
        ROTARY_DIM=rotary_dim,
        NEOX=rotation.neox,
        KEEP=keep_keys,
        STORE=cache is not None,
        SCALED=scales is not None,
        OUT=_TRITON_TYPES[dtype],
        HEADS_BLOCK=triton.next_power_of_2(width // head_dim),
        PAIRS_BLOCK=triton.next_power_of_2(rotary_dim // 2),
        REST_BLOCK=triton.next_power_of_2(max(head_dim - rotary_dim, 1)),
        WIDTH_BLOCK=triton.next_power_of_2(width),
        num_warps=4,
    )


@triton.jit
def _rotate_and_store(
    keys_values: tl.tensor, positions: tl.tensor, table: tl.tensor, slots: tl.tensor, key_buffers: tl.tensor,
    value_buffers: tl.tensor, scales: tl.tensor, table_stride: tl.tensor, groups: tl.tensor,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, NEOX: tl.constexpr,
    KEEP: tl.constexpr, STORE: tl.constexpr, SCALED: tl.constexpr, OUT: tl.constexpr,
    HEADS_BLOCK: tl.constexpr, PAIRS_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, WIDTH_BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One token of one group; all heads."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    half: tl.constexpr = ROTARY_DIM // 2
    width: tl.constexpr = HEADS * HEAD_DIM
    source = keys_values + (token * groups + group) * 2 * width
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    pairs = tl.arange(0, PAIRS_BLOCK)[None, :]
    inside = (heads < HEADS) & (pairs < half)
    first = heads * HEAD_DIM + (pairs if NEOX else 2 * pairs)
    second = first + (half if NEOX else 1)
    row = table + tl.load(positions + token).to(tl.int64) * table_stride
    cos = tl.load(row + pairs, mask=pairs < half, other=0.0).to(tl.float32)
    sin = tl.load(row + half + pairs, mask=pairs < half, other=0.0).to(tl.float32)
    left = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(source + second, mask=inside, other=0.0).to(tl.float32)
    # Rounded to the model's type before anything else, as a separate rotation would.
    kind = keys_values.dtype.element_ty
    new_left = (left * cos - right * sin).to(kind)
    new_right = (right * cos + left * sin).to(kind)
    if KEEP:
        tl.store(source + first, new_left, mask=inside)
        tl.store(source + second, new_right, mask=inside)
    if STORE:
        slot = tl.load(slots + token).to(tl.int64) * width
        keys = tl.load(key_buffers + group).to(tl.pointer_type(OUT)) + slot
        values = tl.load(value_buffers + group).to(tl.pointer_type(OUT)) + slot
        _put(keys + first, new_left, inside, scales + group * 2, SCALED, OUT)
        _put(keys + second, new_right, inside, scales + group * 2, SCALED, OUT)
        if ROTARY_DIM < HEAD_DIM:
            rest = ROTARY_DIM + tl.arange(0, REST_BLOCK)[None, :]
            there = (heads < HEADS) & (rest < HEAD_DIM)
            passed = tl.load(source + heads * HEAD_DIM + rest, mask=there, other=0.0)
            _put(keys + heads * HEAD_DIM + rest, passed, there, scales + group * 2, SCALED, OUT)
        columns = tl.arange(0, WIDTH_BLOCK)
        there = columns < width
        taken = tl.load(source + width + columns, mask=there, other=0.0)
        _put(values + columns, taken, there, scales + group * 2 + 1, SCALED, OUT)


@triton.jit
def _put(
    where: tl.tensor, what: tl.tensor, mask: tl.tensor, scale: tl.tensor, SCALED: tl.constexpr,
    OUT: tl.constexpr,
) -> None:  # fmt: skip
    """Stores in the cache's type, scaled in the model's type as SGLang's pool does."""
    if SCALED:
        what = (what.to(tl.float32) * tl.load(scale)).to(what.dtype)
    tl.store(where, what.to(OUT), mask=mask)
