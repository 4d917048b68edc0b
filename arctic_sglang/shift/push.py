"""The kernels of what ranks of a sequence group send each other: blocks of rows, or single rows, put where they belong.

Each rank writes into the memory of the others over NVLink; nobody asks for anything, and what arrives lies as its
reader wants it. What tells exchanges of blocks apart is where a part starts and how far its rows are from each other,
on either side (`Blocks`). Ranks that write must not overtake those that read: that is `symmetric`'s business.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_ALIGNED = 16  # bytes that one lane of a GPU stores at once
_TILE = 8192  # elements of a program, in rows of up to _COLUMNS
_COLUMNS = 512
_WARPS = 8


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of [rows, width] that a rank sends, one to each rank of its group; all in elements.

    Attributes:
        width: of a row.
        rows: of a block.
        source_row: from one row to the next, where they are read.
        source_part: from one rank's block to the next one's, where they are read; 0: all get the same.
        target_row: from one row to the next, where they are written.
        target_start: where this rank's block starts in each target.
        limit: rows that are read, counted over all blocks; the others are written as 0. None: all of them.
    """

    width: int
    rows: int
    source_row: int
    source_part: int
    target_row: int
    target_start: int
    limit: int | None = None

    def given(self, part: int) -> int:
        """Rows of a block that are read."""
        return self.rows if self.limit is None else max(0, min(self.rows, self.limit - part * self.rows))

    def columns(self) -> int:
        """Columns of a program's tile."""
        return min(triton.next_power_of_2(self.width), _COLUMNS)

    def aligned(self, size: int) -> bool:
        """Whether every row of every block starts where a GPU can read and write 16 bytes at once.

        Args:
            size: bytes of an element.
        """
        starts = (self.width, self.source_row, self.source_part, self.target_row, self.target_start)
        return all(start * size % _ALIGNED == 0 for start in starts)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A rank's part of the embeddings.

    Attributes:
        table: [tokens, hidden], contiguous.
        first: the token of the first row.
        total: tokens of all ranks' parts. No rank has any beyond, nor negative ones; their rows are zeros.
    """

    table: torch.Tensor
    first: int
    total: int

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of the tokens that are here, and zeros for the others: [ids] -> [ids, hidden]."""
        own = (ids >= self.first) & (ids < self.first + len(self.table))
        found = self.table[(ids - self.first).clamp(0, len(self.table) - 1)]
        return found.masked_fill_(~own[:, None], 0)


def push(source: torch.Tensor, addresses: torch.Tensor, position: int, blocks: Blocks) -> None:
    """Writes a block into each rank's memory. Returns before they have arrived.

    Args:
        source: what the blocks are read from; its first element is that of the first block.
        addresses: int64 [sp], on the device: where each rank's target begins; elements are of the type of `source`.
        position: this rank's place in the group: it begins with the one after it, so that not all write to the same.
        blocks: what goes where.
    """
    if blocks.rows == 0 or blocks.width == 0:
        return
    columns, parts = blocks.columns(), len(addresses)
    height = max(1, _TILE // columns)
    size = source.element_size()
    aligned = blocks.aligned(size) and source.data_ptr() % _ALIGNED == 0
    grid = (parts, triton.cdiv(blocks.rows, height), triton.cdiv(blocks.width, columns))
    _push_kernel[grid](
        source, addresses, position, blocks.rows, blocks.rows * parts if blocks.limit is None else blocks.limit,
        blocks.source_part, blocks.target_start, WIDTH=blocks.width, SOURCE_ROW=blocks.source_row,
        TARGET_ROW=blocks.target_row, PARTS=parts, HEIGHT=height, COLUMNS=columns, SIZE=size,
        ALIGNED=_ALIGNED if aligned else size, num_warps=_WARPS,
    )  # fmt: skip


def push_twin(source: torch.Tensor, targets: list[torch.Tensor], blocks: Blocks) -> None:
    """What `push` does, of tensors that one process can reach; `targets` are 1-D, one of each rank."""
    flat = source.new_empty(0).set_(source.untyped_storage())
    for part, target in enumerate(targets):
        found = target.as_strided((blocks.rows, blocks.width), (blocks.target_row, 1), blocks.target_start)
        given = blocks.given(part)
        found[given:] = 0
        if given:
            start = source.storage_offset() + part * blocks.source_part
            found[:given] = flat.as_strided((given, blocks.width), (blocks.source_row, 1), start)


@triton.jit(do_not_specialize=["position", "rows", "limit", "source_part", "target_start"])
def _push_kernel(
    source: tl.tensor, addresses: tl.tensor, position: int, rows: int, limit: int, source_part: int, target_start: int,
    WIDTH: tl.constexpr, SOURCE_ROW: tl.constexpr, TARGET_ROW: tl.constexpr, PARTS: tl.constexpr,
    HEIGHT: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, ALIGNED: tl.constexpr,
) -> None:  # fmt: skip
    part = (tl.program_id(0) + position + 1) % PARTS
    row = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)[:, None].to(tl.int64)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    # Where a block begins is known only now; without the hint every element would be stored by itself.
    block = tl.multiple_of(source + part.to(tl.int64) * source_part, ALIGNED)
    address = tl.load(addresses + part) + target_start.to(tl.int64) * SIZE
    target = tl.multiple_of(address.to(tl.pointer_type(source.dtype.element_ty)), ALIGNED)
    inside = (row < rows) & (column < WIDTH)
    given = inside & (row < limit - part * rows)
    found = tl.load(block + row * SOURCE_ROW + column, mask=given, other=0.0)
    tl.store(target + row * TARGET_ROW + column, found, mask=inside)


def push_embedded(
    ids: torch.Tensor, vocabulary: Vocabulary, addresses: torch.Tensor, share: int, position: int
) -> None:
    """Writes the rows of the tokens that this rank has into the memory of the ranks whose tokens they are.

    Args:
        ids: int64 or int32 [sp * share], tokens of all ranks.
        vocabulary: this rank's part.
        addresses: as of `push`; targets are [share, hidden].
        share: tokens of each rank.
        position: this rank's place in the group.
    """
    last = vocabulary.first + len(vocabulary.table)
    numbers = (share, vocabulary.first, last, vocabulary.total, position)
    _push_rows((len(ids), 1), vocabulary.table, ids, addresses, numbers, embedded=True)


def push_chosen(rows: torch.Tensor, chosen: torch.Tensor, addresses: torch.Tensor, position: int) -> None:
    """Writes some of this rank's rows into the memory of all ranks.

    Args:
        rows: [share, width], contiguous.
        chosen: int64 or int32 [any], which of all ranks' rows; those of other ranks are left out.
        addresses: as of `push`; targets are [sp * share, width].
        position: this rank's place in the group.
    """
    _push_rows(
        (len(chosen), len(addresses)), rows, chosen, addresses, (len(rows), 0, 0, 0, position), embedded=False
    )


def push_embedded_twin(
    ids: torch.Tensor, vocabulary: Vocabulary, targets: list[torch.Tensor], share: int, position: int
) -> None:
    """What `push_embedded` does, of tensors that one process can reach; `targets` are [share, hidden]."""
    for token, number in enumerate(ids.tolist()):
        if 0 <= number - vocabulary.first < len(vocabulary.table):
            targets[token // share][token % share] = vocabulary.table[number - vocabulary.first]
        elif not 0 <= number < vocabulary.total and token // share == position:
            targets[position][token % share] = 0


def push_chosen_twin(
    rows: torch.Tensor, chosen: torch.Tensor, targets: list[torch.Tensor], position: int
) -> None:
    """What `push_chosen` does, of tensors that one process can reach; `targets` are [sp * share, width]."""
    for token in chosen.tolist():
        if token // len(rows) == position:
            for target in targets:
                target[token] = rows[token % len(rows)]


def _push_rows(
    grid: tuple[int, int], source: torch.Tensor, index: torch.Tensor, addresses: torch.Tensor,
    numbers: tuple[int, int, int, int, int], *, embedded: bool,
) -> None:  # fmt: skip
    width, size = source.shape[1], source.element_size()
    if 0 in (*grid, width):
        return
    assert source.is_contiguous()
    aligned = width * size % _ALIGNED == 0 and source.data_ptr() % _ALIGNED == 0
    _rows_kernel[grid](
        source, index, addresses, *numbers, WIDTH=width, BLOCK=min(triton.next_power_of_2(width), 4096),
        EMBEDDED=embedded, ALIGNED=_ALIGNED if aligned else size, num_warps=_WARPS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["share", "first", "last", "total", "position"])
def _rows_kernel(
    source: tl.tensor, index: tl.tensor, addresses: tl.tensor, share: int, first: int, last: int, total: int,
    position: int, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EMBEDDED: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:  # fmt: skip
    item = tl.program_id(0)
    number = tl.load(index + item).to(tl.int64)
    if EMBEDDED:
        own, row = (number >= first) & (number < last), number - first
        part, there = item // share, (item % share).to(tl.int64)
        # What nobody has is zeros, which whose token it is sees to: an earlier step's row lies there.
        writes = own | ((part == position) & ((number < 0) | (number >= total)))
    else:
        own, row = number // share == position, number % share
        part, there = tl.program_id(1), number
        writes = own
    if writes:
        target = tl.load(addresses + part).to(tl.pointer_type(source.dtype.element_ty))
        target = tl.multiple_of(target + there * WIDTH, ALIGNED)
        found = tl.multiple_of(source + tl.where(own, row, 0) * WIDTH, ALIGNED)
        for start in range(0, WIDTH, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < WIDTH
            tl.store(target + column, tl.load(found + column, mask=inside & own, other=0.0), mask=inside)
