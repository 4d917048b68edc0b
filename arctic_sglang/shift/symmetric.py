"""The exchanges of a sequence group in memory that every GPU of it can write to: no NCCL, no multicast.

Each exchange has a region of its own in one allocation of every rank. A rank pushes its blocks into the regions of
all, then they meet at a barrier, and each reads what has arrived. One barrier is enough because no region is used
twice in a row: whoever writes to a region again has met all others at the barrier of the exchange in between, and
they came there after they had read. All of it runs on the current stream, within CUDA graphs or without.

Large steps are sent part by part while products are computed. Query, key and value are computed for one rank of the
group after the other, and the product's kernel writes them there. Attention's output is taken by copy engines, which
cost no multiprocessor that computes, and each rank's columns are multiplied as they come, own ones first; who has sent
a part says so to its reader alone. (Of two such exchanges one ends at the barrier, so the rule above holds.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.distributed import _symmetric_memory as symmetric_memory

from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.push import Blocks, push
from arctic_sglang.shift.topology import Tokens

_START = 1024  # bytes that a region starts at a multiple of
_BARRIER, _SENT = 0, 1  # channels of signals
# Rows of a rank from which on parts are sent while products are computed: those of a part then fill the GPU.
OVERLAPPED = 2048


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
    """A part of the memory of all ranks: [elements] here, and the same at each of them."""

    def __init__(self, there: list[torch.Tensor], position: int) -> None:
        self.there, self.here = there, there[position]
        addresses = [part.data_ptr() for part in there]
        self.addresses = torch.tensor(addresses, dtype=torch.int64, device=self.here.device)


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
        memories = [
            self._memory if rank == position else self._handle.get_buffer(rank, (end,), torch.uint8)
            for rank in range(sp)
        ]
        self._heads, self._rows, self._scattered, self._gathered = (
            _Region([m[start : start + size * dtype.itemsize].view(dtype) for m in memories], position)
            for start, size in zip(starts, sizes, strict=True)
        )
        self._side = torch.cuda.Stream(device)

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

    def overlaps(self, tokens: Tokens) -> bool:
        """See `Exchange`."""
        return tokens.share >= OVERLAPPED and tokens.padded <= self.tokens

    def heads_from_parts(
        self, write: Callable[[int, torch.Tensor], None], kind: torch.Tensor, tokens: Tokens
    ) -> torch.Tensor:
        """See `Exchange`. Products are written straight into the memory of those who want them."""
        share, width = tokens.share, kind.shape[1]
        start = self._position * share * width
        for step in range(1, self._sp + 1):
            part = (self._position + step) % self._sp
            write(part, self._heads.there[part][start : start + share * width].view(share, width))
        self._handle.barrier(channel=_BARRIER)
        return self._heads.here[: tokens.count * width].view(tokens.count, width)

    def rows_in_parts(self, heads: torch.Tensor, tokens: Tokens) -> Iterator[tuple[int, torch.Tensor]]:
        """See `Exchange`."""
        main, share, width = torch.cuda.current_stream(), tokens.share, heads.shape[1]
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            for step in range(1, self._sp):
                part = (self._position + step) % self._sp
                target = self._rows.there[part][: self._sp * share * width].view(self._sp, share, width)
                _copy_padded(target[self._position], heads, tokens.of_position(part))
                self._handle.put_signal(part, channel=_SENT)
        own = tokens.of_position(self._position)
        rows = heads[own.start : own.stop]
        missing = share - len(own)
        yield self._position, torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        found = self._rows.here[: self._sp * share * width].view(self._sp, share, width)
        for step in range(1, self._sp):
            part = (self._position - step) % self._sp
            self._handle.wait_signal(part, channel=_SENT)
            yield part, found[part]
        main.wait_stream(self._side)  # `heads` may be written to again

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
        push(source, region.addresses, self._position, blocks)
        self._handle.barrier(channel=_BARRIER)


def _copy_padded(target: torch.Tensor, heads: torch.Tensor, own: range) -> None:
    """Some rows, and zeros behind them."""
    target[: len(own)].copy_(heads[own.start : own.stop])
    if len(own) < len(target):
        target[len(own) :].zero_()
