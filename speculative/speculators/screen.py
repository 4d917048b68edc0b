"""The argmax over the vocabulary by a head in 4 bits, checked with the head itself.

Half the memory traffic of float8, and closer to the head: the product with 4-bit weights only nominates, one token for
each block of the vocabulary, and of the `CHECKED` best nominees the logits are computed from the original weight.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from speculative.speculators.products import MAX_BATCH, pack
from speculative.speculators.tiling import Tiling, Tilings, rows_block

CHECKED = 8
_LEVELS = 16
_MIDDLE = 8
_CHUNK_ROWS = 2048
# The clip that loses least depends on a row's distribution: of the row's largest element, as tried.
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
TILINGS = Tilings(
    (
        Tiling(64, 32, 4, 3),  # fits into the smallest GPUs
        Tiling(64, 32, 4, 6),
        Tiling(64, 64, 4, 4),
        Tiling(64, 128, 4, 3),
        Tiling(128, 64, 8, 4),
    )
)


@dataclass(frozen=True, slots=True)
class Screen:
    """A head in 4 bits beside itself.

    Attributes:
        codes: int16 `[tokens, width / 4]`: the four bits of column j + i * width / 4 are bits 4i to 4i + 3 of
            element j. They less 8, times the row's scale, are the weight.
        scales: float32 `[tokens]`.
        exact: the head, `[tokens, width]`, contiguous.
    """

    codes: Tensor
    scales: Tensor
    exact: Tensor

    @property
    def bytes(self) -> int:
        """Of memory, on top of the head's."""
        return 2 * self.codes.numel() + 4 * self.scales.numel()


def screen_of(weight: Tensor) -> Screen:
    """Of a head `[tokens, width]`, the width a multiple of 4; a row's scale is the one of several that loses least."""
    tokens, width = weight.shape
    codes = torch.empty(tokens, width // 4, dtype=torch.int16, device=weight.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=weight.device)
    for start in range(0, tokens, _CHUNK_ROWS):
        rows = weight[start : start + _CHUNK_ROWS].detach().float()
        largest = rows.abs().amax(-1).clamp(min=1e-12)
        least, best, chosen = torch.full_like(largest, torch.inf), largest, torch.zeros_like(rows)
        for clip in _CLIPS:
            scale = largest * (clip / (_MIDDLE - 0.5))
            found = (rows / scale[:, None]).round().clamp(-_MIDDLE, _LEVELS - 1 - _MIDDLE)
            loss = (found * scale[:, None] - rows).square().sum(-1)
            better = loss < least
            least, best = torch.where(better, loss, least), torch.where(better, scale, best)
            chosen = torch.where(better[:, None], found, chosen)
        quarters = (chosen + _MIDDLE).int().chunk(4, dim=-1)
        joined = sum(quarter << (4 * i) for i, quarter in enumerate(quarters))
        codes[start : start + _CHUNK_ROWS] = joined.to(torch.int16)
        scales[start : start + _CHUNK_ROWS] = best
    return Screen(codes, scales, weight.detach())


def screened(x: Tensor, screen: Screen, first: int = 0) -> Tensor:
    """Candidates (see `products`) for the argmax of `x @ exact.T`: int64 `[batch, CHECKED or fewer]`.

    Args:
        x: float16 `[batch, width]`, contiguous; on a GPU at most `MAX_BATCH` rows.
        screen: of the head.
        first: id of the head's first token.
    """
    if x.device.type == "cpu":
        return check_twin(x, screen, nominate_twin(x, screen), first)
    return check_kernel(x, screen, nominate_kernel(x, screen), first)


def tune(x: Tensor, screen: Screen) -> Tiling:
    """Finds the fastest tiling for such sizes, on a GPU; the kernel takes it from then on."""
    return TILINGS.tune(x, screen.codes, lambda tiling: nominate_kernel(x, screen, tiling))


def nominate_twin(x: Tensor, screen: Screen, outputs: int = TILINGS.choice[0].outputs) -> Tensor:
    """The best token of every `outputs` by the 4-bit weights: candidates, int64 `[batch, blocks]`, ids from 0."""
    quarters = [(screen.codes >> (4 * i)) & 0xF for i in range(4)]
    weight = (torch.cat(quarters, dim=-1).float() - _MIDDLE) * screen.scales[:, None]
    packed = pack(x.float() @ weight.T, torch.arange(len(weight)))
    return torch.stack([block.amax(-1) for block in packed.split(outputs, dim=1)], dim=1)


def check_twin(x: Tensor, screen: Screen, nominees: Tensor, first: int) -> Tensor:
    """Candidates of the `CHECKED` best nominees of each row, by the exact weights."""
    best = nominees.topk(min(CHECKED, nominees.shape[1])).values
    tokens = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    logits = torch.einsum("bd,bkd->bk", x.float(), screen.exact[tokens].float())
    return pack(logits, tokens + first)


def nominate_kernel(
    x: Tensor, screen: Screen, tiling: Tiling | None = None, *, plain: bool = False
) -> Tensor:
    """`nominate_twin` on a GPU, of the tiling's outputs; its width is in elements of `codes`.

    `plain` unpacks without instructions of NVIDIA's, which Triton's interpreter lacks.
    """
    batch, width = x.shape
    tokens = len(screen.codes)
    if batch > MAX_BATCH or x.dtype != torch.float16 or not x.is_contiguous():
        msg = f"{batch} rows of {x.dtype}; the kernel takes up to {MAX_BATCH} contiguous rows of float16"
        raise ValueError(msg)
    tiling = tiling or TILINGS.chosen(x, screen.codes)
    blocks = triton.cdiv(tokens, tiling.outputs)
    out = torch.empty(batch, blocks, dtype=torch.int64, device=x.device)
    if batch:
        _nominate[(blocks,)](
            x, screen.codes, screen.scales, out, batch, tokens,
            QUARTER=width // 4, WHOLE=width // 4 % tiling.width == 0, PLAIN=plain,
            BLOCK_B=rows_block(batch), BLOCK_N=tiling.outputs, BLOCK_K=tiling.width,
            num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
    return out


def check_kernel(x: Tensor, screen: Screen, nominees: Tensor, first: int) -> Tensor:
    """`check_twin` on a GPU."""
    batch, width = x.shape
    checked = min(CHECKED, nominees.shape[1])
    out = torch.empty(batch, checked, dtype=torch.int64, device=x.device)
    if batch:
        _check[(batch, checked)](
            x, screen.exact, nominees, out, nominees.shape[1], first,
            WIDTH=width, BLOCK_K=min(triton.next_power_of_2(width), 4096),
            BLOCK_N=triton.next_power_of_2(nominees.shape[1]), num_warps=8,
        )  # fmt: skip
    return out


def _unpacking(shift: int, mask: str, one: str, middle: str) -> tl.constexpr:
    """Takes two elements of a register at a time: four bits of each, less 8, in float16.

    The bits are put into the last ones of the number `one`, in both halves of the register, and count from there;
    `middle` is that number and 8 of them more.
    """
    return tl.constexpr(f"""{{
        .reg .b32 both, middle;
        mov.b32 middle, {middle};
        shr.b32 both, $1, {shift};
        lop3.b32 both, both, {mask}, {one}, 0xEA;
        sub.f16x2 $0, both, middle;
    }}""")


# Bits 0 to 3 of 1024 are ones; bits 4 to 7 of 64 are ones too.
_LOW = ("0x000F000F", "0x64006400", "0x64086408")
_HIGH = ("0x00F000F0", "0x54005400", "0x54805480")
_QUARTER_0, _QUARTER_1 = _unpacking(0, *_LOW), _unpacking(0, *_HIGH)
_QUARTER_2, _QUARTER_3 = _unpacking(8, *_LOW), _unpacking(8, *_HIGH)


@triton.jit
def _weights(codes: tl.tensor, INDEX: tl.constexpr, PLAIN: tl.constexpr) -> tl.tensor:
    """Quarter INDEX of the columns."""
    if PLAIN:
        return ((codes >> (4 * INDEX)) & 0xF).to(tl.float16) - 8.0
    if INDEX == 0:
        unpacking: tl.constexpr = _QUARTER_0
    elif INDEX == 1:
        unpacking: tl.constexpr = _QUARTER_1
    elif INDEX == 2:
        unpacking: tl.constexpr = _QUARTER_2
    else:
        unpacking: tl.constexpr = _QUARTER_3
    return tl.inline_asm_elementwise(unpacking, "=r,r", [codes], dtype=tl.float16, is_pure=True, pack=2)


@triton.jit(do_not_specialize=["batch", "tokens"])
def _nominate(
    x: tl.tensor, codes: tl.tensor, scales: tl.tensor, out: tl.tensor, batch: tl.tensor, tokens: tl.tensor,
    QUARTER: tl.constexpr, WHOLE: tl.constexpr, PLAIN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """One block of the vocabulary for all rows; see `products._product`."""
    block = tl.program_id(0)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.arange(0, BLOCK_B)
    k = tl.arange(0, BLOCK_K)
    held = tl.minimum(n, tokens - 1)
    codes_at = codes + held.to(tl.int64)[:, None] * QUARTER + k[None, :]
    x_at = x + b[:, None] * (4 * QUARTER) + k[None, :]
    real = b[:, None] < batch
    sums = tl.zeros([BLOCK_N, BLOCK_B], dtype=tl.float32)
    for start in range(0, QUARTER, BLOCK_K):
        if WHOLE:
            there = real
            four = tl.load(codes_at + start)
        else:
            inside = k[None, :] < QUARTER - start
            there = real & inside
            four = tl.load(codes_at + start, mask=inside, other=0)
        x0 = tl.load(x_at + start, mask=there, other=0.0)
        x1 = tl.load(x_at + QUARTER + start, mask=there, other=0.0)
        x2 = tl.load(x_at + 2 * QUARTER + start, mask=there, other=0.0)
        x3 = tl.load(x_at + 3 * QUARTER + start, mask=there, other=0.0)
        sums = tl.dot(_weights(four, 0, PLAIN), tl.trans(x0), sums)
        sums = tl.dot(_weights(four, 1, PLAIN), tl.trans(x1), sums)
        sums = tl.dot(_weights(four, 2, PLAIN), tl.trans(x2), sums)
        sums = tl.dot(_weights(four, 3, PLAIN), tl.trans(x3), sums)
    sums = sums * tl.load(scales + held)[:, None]
    bits = tl.where(sums == 0.0, 0.0, sums).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    packed = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - held).to(tl.int64)[:, None]
    tl.store(out + b * tl.num_programs(0) + block, tl.max(packed, axis=0), mask=b < batch)


@triton.jit(do_not_specialize=["count", "first"])
def _check(
    x: tl.tensor, exact: tl.tensor, nominees: tl.tensor, out: tl.tensor, count: tl.tensor, first: tl.tensor,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """The exact logit of one row's nominee of one rank."""
    row = tl.program_id(0).to(tl.int64)
    rank = tl.program_id(1)
    lowest: tl.constexpr = -0x7FFFFFFFFFFFFFFF
    at = tl.arange(0, BLOCK_N)
    left = tl.load(nominees + row * count + at, mask=at < count, other=lowest)
    best = tl.max(left, axis=0)
    for _ in range(rank):
        left = tl.where(left == best, lowest, left)
        best = tl.max(left, axis=0)
    token = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_K], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        inside = start + k < WIDTH
        weight = tl.load(exact + token * WIDTH + start + k, mask=inside, other=0.0).to(tl.float32)
        sums += weight * tl.load(x + row * WIDTH + start + k, mask=inside, other=0.0).to(tl.float32)
    logit = tl.sum(sums, axis=0)
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    packed = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - first - token)
    tl.store(out + row * tl.num_programs(1) + rank, packed)
