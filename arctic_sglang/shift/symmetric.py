"""The exchanges of a sequence group in memory that every GPU of it can write to: no NCCL, no multicast.

Each exchange has a region of its own in one allocation of every rank. A rank pushes its blocks into the regions of
all, then they meet at a barrier, and each reads what has arrived. One barrier is enough because no region is used
twice in a row: whoever writes to a region again has met all others at the barrier of the exchange in between, and
they came there after they had read. All of it runs on the current stream, within CUDA graphs or without.
"""

from dataclasses import dataclass

import torch
from torch.distributed import _symmetric_memory as symmetric_memory

from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.push import Blocks, push
from arctic_sglang.shift.topology import Tokens

_START = 1024  # bytes that a region starts at a multiple of


@dataclass(frozen=True, slots=True)
class Widths:
    """Elements of the rows that travel.

    Attributes:
        heads: query, key and value of one rank's heads.
        rows: attention's output of one rank's heads.
        hidden: of the model.
    """

    heads: int
    rows: int
    hidden: int


class _Region:
    """A part of the memory of all ranks: [elements] here, and where it is at each of them."""

    def __init__(self, here: torch.Tensor, addresses: list[int]) -> None:
        self.here = here
        self.addresses = torch.tensor(addresses, dtype=torch.int64, device=here.device)


class Symmetric:
    """An `Exchange` by pushes into symmetric memory, for the GPUs of one host.

    All ranks of the sequence group make one, at the same time.

    Args:
        slow: for steps of more tokens than there is memory for, and for sums over other shards.
        position: this rank's place in the sequence group.
        sp: ranks of the group.
        widths: of what travels.
        tokens: of the largest step that fits.
        dtype: of what travels.
        device: this rank's.
    """

    def __init__(
        self, slow: Collectives, position: int, sp: int, widths: Widths, tokens: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._slow, self._position, self._sp = slow, position, sp
        self.tokens = Tokens(tokens, sp).padded
        sizes = [self.tokens * width for width in (widths.heads, widths.rows, widths.hidden, widths.hidden)]
        starts, end = [], 0
        for size in sizes:
            starts.append(end)
            end += -(-size * dtype.itemsize // _START) * _START
        self._memory = symmetric_memory.empty(end, dtype=torch.uint8, device=device)
        self._memory.zero_()
        group = slow.sequence
        self._handle = symmetric_memory.rendezvous(
            self._memory, torch.distributed.group.WORLD if group is None else group
        )
        self._heads, self._rows, self._scattered, self._gathered = (
            _Region(
                self._memory[start : start + size * dtype.itemsize].view(dtype),
                [address + start for address in self._handle.buffer_ptrs],
            )
            for start, size in zip(starts, sizes, strict=True)
        )
        self._last: _Region | None = None

    @property
    def bytes(self) -> int:
        """Memory of this rank."""
        return self._memory.numel()

    def to_heads(self, rows: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """See `Exchange`."""
        if tokens.padded > self.tokens:
            return self._slow.to_heads(rows, tokens)
        share, width = tokens.share, rows.shape[1] // self._sp
        blocks = Blocks(width, share, rows.stride(0), width, width, self._position * share * width)
        self._push(rows, self._heads, blocks)
        return self._heads.here[: tokens.count * width].view(tokens.count, width)

    def to_rows(self, heads: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """See `Exchange`."""
        if tokens.padded > self.tokens:
            return self._slow.to_rows(heads, tokens)
        share, width = tokens.share, heads.shape[1]
        blocks = Blocks(
            width, share, heads.stride(0), share * heads.stride(0), self._sp * width, self._position * width,
            tokens.count,
        )  # fmt: skip
        self._push(heads, self._rows, blocks)
        return self._rows.here[: share * self._sp * width].view(share, self._sp * width)

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        if len(rows) > self.tokens:
            return self._slow.scatter(rows)
        share, width = len(rows) // self._sp, rows.shape[1]
        start = self._position * share * width
        self._push(
            rows, self._scattered, Blocks(width, share, rows.stride(0), share * rows.stride(0), width, start)
        )
        parts = self._scattered.here[: len(rows) * width].view(self._sp, share, width)
        return self.add(parts.sum(0))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        share, width = rows.shape
        if share * self._sp > self.tokens:
            return self._slow.gather(rows)
        self._push(
            rows,
            self._gathered,
            Blocks(width, share, rows.stride(0), 0, width, self._position * share * width),
        )
        return self._gathered.here[: share * self._sp * width].view(share * self._sp, width)

    def add(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        return self._slow.add(rows)

    def _push(self, source: torch.Tensor, region: _Region, blocks: Blocks) -> None:
        # See above for why; a model in which this fails needs another region, or a second barrier.
        assert region is not self._last, "a region was used twice in a row"
        self._last = region
        push(source, region.addresses, self._position, blocks)
        self._handle.barrier(channel=0)
