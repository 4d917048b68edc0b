"""Products of a few rows with a large weight, in 8 bits if wished, and the argmax over the vocabulary.

At small batches a draft takes as long as reading its weights. With weights in float8 (e4m3, a scale for each row) and
activations in 16 bits that is half of it. The Triton kernel reads a weight once, widens it in registers, and
for a head hands on only the best of each block of the vocabulary; the twin in torch is used on the CPU.

A candidate for the argmax is one int64: the logit in the upper half, in an order-preserving code, and the
token's id, counted backwards, in the lower. The largest is the argmax, with ties to the lowest id, whatever the
order in which blocks and ranks are compared.
"""

import itertools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

FLOAT8 = torch.float8_e4m3fn
MAX_BATCH = 128  # rows that the kernel takes at once
_LARGEST = torch.finfo(FLOAT8).max
_DTYPES = (torch.float16, torch.bfloat16)
_LAST_ID = 0x7FFFFFFF
_CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as it lies in memory.

    Attributes:
        values: `[outputs, width]`, contiguous: float8_e4m3fn, or any type that activations have.
        scales: float32 `[outputs]`, what rows are multiplied with; None: nothing.
    """

    values: Tensor
    scales: Tensor | None = None

    @property
    def in_8_bits(self) -> bool:
        """Whether the values are float8, and activations thus taken in float16."""
        return self.values.dtype == FLOAT8

    @property
    def bytes(self) -> int:
        """Of memory, all of which a product reads."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.scales) if t is not None)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel goes through a weight: outputs of a block, width of a bite, warps, bites under way."""

    outputs: int
    width: int
    warps: int
    stages: int


DEFAULT_TILING = Tiling(64, 64, 4, 3)  # fits into the smallest GPUs
TILINGS = (
    DEFAULT_TILING,
    Tiling(64, 128, 4, 5),
    Tiling(64, 256, 4, 4),
    Tiling(128, 128, 4, 4),
    Tiling(128, 128, 8, 4),
)


def quantise(weight: Tensor) -> Weight:
    """`weight` `[outputs, width]` in float8, each row scaled so that its largest element is float8's largest."""
    values = torch.empty(weight.shape, dtype=FLOAT8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), _CHUNK_ROWS):  # a whole head in float32 is gigabytes
        rows = weight[start : start + _CHUNK_ROWS].detach().float()
        scale = rows.abs().amax(-1).clamp(min=1e-12) / _LARGEST
        values[start : start + _CHUNK_ROWS] = (rows / scale[:, None]).to(FLOAT8)
        scales[start : start + _CHUNK_ROWS] = scale
    return Weight(values, scales)


def pack(logits: Tensor, ids: Tensor) -> Tensor:
    """Candidates, int64, of float32 logits and token ids of the same shape."""
    bits = (logits.float() + 0.0).view(torch.int32)  # adding zero makes one of the two zeros
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LAST_ID - ids.long())


def unpack(candidates: Tensor) -> Tensor:
    """The token ids, int64, of candidates."""
    return _LAST_ID - (candidates & _LAST_ID)


def product(x: Tensor, weight: Weight) -> Tensor:
    """`x @ weight.T`, in the type of `x`.

    Args:
        x: `[batch, width]`, contiguous, in 16 bits; on a GPU at most `MAX_BATCH` rows, of the weight's type, and of
            float16 where the weight is in float8.
        weight: `[outputs, width]`.
    """
    if x.device.type == "cpu":
        return _product_twin(x, weight).to(x.dtype)
    return product_kernel(x, weight)


def candidates(x: Tensor, weight: Weight, first: int = 0) -> Tensor:
    """The best tokens of every row of `x @ weight.T`: int64 `[batch, parts]`, of which `settle` takes the best.

    Args:
        x: as in `product`.
        weight: a head, `[tokens, width]`.
        first: id of its first token.
    """
    if x.device.type == "cpu":
        logits = _product_twin(x, weight)
        return pack(logits, torch.arange(first, first + logits.shape[1])).amax(-1, keepdim=True)
    return candidates_kernel(x, weight, first)


def settle(parts: Tensor, out: Tensor, *, ids: bool = True) -> None:
    """Writes the best candidate of every row into `out` int64 `[batch]`: its token id, or with `ids` false itself.

    `parts` is int64 `[batch, parts]`; both may have any strides.
    """
    if parts.device.type == "cpu":
        best = parts.amax(-1)
        out.copy_(unpack(best) if ids else best)
    else:
        settle_kernel(parts, out, ids=ids)


def _product_twin(x: Tensor, weight: Weight) -> Tensor:
    if weight.in_8_bits:
        x = x.half()
    full = x.float() @ weight.values.float().T
    return full if weight.scales is None else full * weight.scales


def product_kernel(x: Tensor, weight: Weight, tiling: Tiling | None = None) -> Tensor:
    """`product` by the kernel."""
    out = x.new_empty(len(x), len(weight.values))
    _launch(x, weight, out, 0, tiling or chosen(x, weight), best=False)
    return out


def candidates_kernel(x: Tensor, weight: Weight, first: int = 0, tiling: Tiling | None = None) -> Tensor:
    """`candidates` by the kernel."""
    tiling = tiling or chosen(x, weight)
    parts = triton.cdiv(len(weight.values), tiling.outputs)
    out = torch.empty(len(x), parts, dtype=torch.int64, device=x.device)
    _launch(x, weight, out, first, tiling, best=True)
    return out


def settle_kernel(parts: Tensor, out: Tensor, *, ids: bool = True) -> None:
    """`settle` by the kernel."""
    batch, count = parts.shape
    if batch:
        block = min(triton.next_power_of_2(count), 4096)
        _settle[(batch,)](
            parts, out, count, parts.stride(0), parts.stride(1), out.stride(0),
            IDS=ids, BLOCK=block, num_warps=4,
        )  # fmt: skip


_tuned: dict[tuple, Tiling] = {}


def chosen(x: Tensor, weight: Weight) -> Tiling:
    """The tiling that `tune` found, or the default."""
    return _tuned.get(_key(x, weight), DEFAULT_TILING)


def tune(x: Tensor, weight: Weight, repeats: int = 10) -> Tiling:
    """Times the tilings for products of such sizes and keeps the fastest. Not while a graph is captured."""
    key = _key(x, weight)
    if key not in _tuned:
        times = {tiling: time_tiling(x, weight, tiling, repeats) for tiling in TILINGS}
        _tuned[key] = min(times, key=times.__getitem__)
    return _tuned[key]


def _key(x: Tensor, weight: Weight) -> tuple:
    return (x.device, x.dtype, _rows_block(len(x)), weight.values.dtype, *weight.values.shape)


def time_tiling(x: Tensor, weight: Weight, tiling: Tiling, repeats: int) -> float:
    """Milliseconds of the fastest call; infinite where the tiling does not fit into the GPU."""
    try:
        candidates_kernel(x, weight, 0, tiling)
    except OutOfResources:
        return float("inf")
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        candidates_kernel(x, weight, 0, tiling)
        mark.record()
    marks[-1].synchronize()
    return min(before.elapsed_time(after) for before, after in itertools.pairwise(marks))


def _rows_block(batch: int) -> int:
    return max(triton.next_power_of_2(batch), 16)  # the least that tensor cores take


def _launch(x: Tensor, weight: Weight, out: Tensor, first: int, tiling: Tiling, *, best: bool) -> None:
    batch, width = x.shape
    outputs = len(weight.values)
    wanted = torch.float16 if weight.in_8_bits else weight.values.dtype
    if batch > MAX_BATCH or x.dtype != wanted or x.dtype not in _DTYPES or not x.is_contiguous():
        msg = (
            f"{batch} rows of {x.dtype} with a weight of {weight.values.dtype}; the kernel takes up to {MAX_BATCH}"
            f" contiguous rows, of bfloat16 or float16 as the weight is, and of float16 with a weight in float8"
        )
        raise ValueError(msg)
    if batch == 0:
        return
    _product[(triton.cdiv(outputs, tiling.outputs),)](
        x, weight.values, x if weight.scales is None else weight.scales, out, batch, outputs, first,
        WIDTH=width, SCALED=weight.scales is not None, BEST=best, WHOLE=width % tiling.width == 0,
        BLOCK_B=_rows_block(batch), BLOCK_N=tiling.outputs, BLOCK_K=tiling.width,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


@triton.jit
def _product(
    x: tl.tensor, weight: tl.tensor, scales: tl.tensor, out: tl.tensor, batch: tl.tensor, outputs: tl.tensor,
    first: tl.tensor,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BEST: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """One block of outputs for all rows of x. The weight is the left factor, so that it may come from registers."""
    block = tl.program_id(0)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.arange(0, BLOCK_B)
    k = tl.arange(0, BLOCK_K)
    held = tl.minimum(n, outputs - 1)
    weight_at = weight + held.to(tl.int64)[:, None] * WIDTH + k[None, :]
    x_at = x + b[:, None] * WIDTH + k[None, :]
    real = b[:, None] < batch
    sums = tl.zeros([BLOCK_N, BLOCK_B], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        if WHOLE:
            w = tl.load(weight_at + start)
            rows = tl.load(x_at + start, mask=real, other=0.0)
        else:
            inside = k[None, :] < WIDTH - start
            w = tl.load(weight_at + start, mask=inside, other=0.0)
            rows = tl.load(x_at + start, mask=real & inside, other=0.0)
        sums = tl.dot(w.to(rows.dtype), tl.trans(rows), sums)
    if SCALED:
        sums = sums * tl.load(scales + held)[:, None]
    if BEST:
        # The code of `pack`; minus zero becomes zero.
        bits = tl.where(sums == 0.0, 0.0, sums).to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        packed = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - first - n).to(tl.int64)[:, None]
        # One after the last is a copy of the last, with a higher id: it never wins.
        best = tl.max(packed, axis=0)
        tl.store(out + b * tl.num_programs(0) + block, best, mask=b < batch)
    else:
        there = (b[None, :] < batch) & (n[:, None] < outputs)
        at = out + b[None, :].to(tl.int64) * outputs + n[:, None]
        tl.store(at, sums.to(out.dtype.element_ty), mask=there)


@triton.jit
def _settle(
    parts: tl.tensor, out: tl.tensor, count: tl.tensor, row_stride: tl.tensor, part_stride: tl.tensor,
    out_stride: tl.tensor, IDS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    lowest: tl.constexpr = -0x7FFFFFFFFFFFFFFF
    best = tl.full([BLOCK], lowest, dtype=tl.int64)
    for start in range(0, count, BLOCK):
        there = start + at < count
        found = tl.load(parts + row * row_stride + (start + at) * part_stride, mask=there, other=lowest)
        best = tl.maximum(best, found)
    winner = tl.max(best, axis=0)
    if IDS:
        winner = 0x7FFFFFFF - (winner & 0x7FFFFFFF)
    tl.store(out + row * out_stride, winner)
