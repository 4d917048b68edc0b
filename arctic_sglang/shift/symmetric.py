"""The exchanges of a sequence group in memory that every GPU of it can write to: no NCCL, no multicast.

Each exchange has a region of its own in one allocation of every rank. A rank pushes its blocks into the regions of
all, then they meet at a barrier, and each reads what has arrived. One barrier is enough because no region is used
twice in a row: whoever writes to a region again has met all others at the barrier of the exchange in between, and
they came there after they had read. All of it runs on the current stream, within CUDA graphs or without.

Large steps are sent part by part beside the products, by copy engines, which cost no multiprocessor that computes.
Query, key and value are computed for one rank of the group after the other, this one's last, so that all but the last
copy is hidden. Attention's output comes in chunks of rows, and while one is multiplied the next is under way; each has
a barrier of its own, on the stream that sends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from cuda.bindings import runtime as cudart
from torch.distributed import _symmetric_memory as symmetric_memory

from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.push import Blocks, Vocabulary, push, push_chosen, push_embedded
from arctic_sglang.shift.topology import Tokens, Topology

_START = 1024  # bytes that a region starts at a multiple of
_CHUNKS = 4  # of attention's output, that travel one after the other
# Rows of a rank from which on parts are sent while products are computed: those of a part then fill the GPU.
OVERLAPPED = 4096


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
        topology: all ranks.
        rank: this one.
        widths: of what travels.
        tokens: of the largest step that fits.
        dtype: of what travels.
        device: this rank's.
    """

    def __init__(
        self, slow: Collectives, topology: Topology, rank: int, widths: Widths, tokens: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        position, sp = topology.position(rank), topology.sp
        self._slow, self._position, self._sp, self._shards = slow, position, sp, topology.tp
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
            self._memory if other == position else self._handle.get_buffer(other, (end,), torch.uint8)
            for other in range(sp)
        ]
        self._heads, self._rows, self._scattered, self._gathered = (
            _Region([m[start : start + size * dtype.itemsize].view(dtype) for m in memories], position)
            for start, size in zip(starts, sizes, strict=True)
        )
        self._side, self._own = torch.cuda.Stream(device), torch.cuda.Stream(device)

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
        self, compute: Callable[..., torch.Tensor], kind: torch.Tensor, tokens: Tokens
    ) -> torch.Tensor:
        """See `Exchange`."""
        main, share, width = torch.cuda.current_stream(), tokens.share, kind.shape[1]
        start = self._position * share * width
        kept = []  # until they have been read
        for step in range(1, self._sp + 1):
            part = (self._position + step) % self._sp
            target = self._heads.there[part][start : start + share * width].view(share, width)
            if part == self._position:
                compute(part, target)
                continue
            rows = compute(part)
            kept.append(rows)
            self._side.wait_stream(main)
            with torch.cuda.stream(self._side):
                target.copy_(rows)
        main.wait_stream(self._side)
        self._handle.barrier(channel=0)
        return self._heads.here[: tokens.count * width].view(tokens.count, width)

    def rows_in_chunks(self, heads: torch.Tensor, tokens: Tokens) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Exchange`."""
        main, share, width = torch.cuda.current_stream(), tokens.share, heads.shape[1]
        targets = [
            there[: share * self._sp * width].view(share, self._sp * width) for there in self._rows.there
        ]
        found = targets[self._position]
        own = tokens.of_position(self._position)
        found[len(own) :].zero_()  # padding, which nobody sends
        ready = self._send_chunks(heads, tokens, targets)
        for chunk, event in ready:
            main.wait_event(event)
            yield chunk, found[chunk]

    def _send_chunks(
        self, heads: torch.Tensor, tokens: Tokens, targets: list[torch.Tensor]
    ) -> list[tuple[slice, torch.cuda.Event]]:
        """Sends rows for all ranks' first chunk, then their second one, and so on; an event says that one has come."""
        main, share, width, ready = torch.cuda.current_stream(), tokens.share, heads.shape[1], []
        column, height = self._position * width, -(-share // _CHUNKS)
        self._side.wait_stream(main)
        self._own.wait_stream(main)
        for number, first in enumerate(range(0, share, height)):
            chunk = slice(first, min(first + height, share))
            for step in range(1, self._sp + 1):
                part = (self._position + step) % self._sp
                given = tokens.of_position(part)[chunk]
                stream = self._own if part == self._position else self._side
                target = targets[part][first : first + len(given), column : column + width]
                copy_rows(target, heads[given.start : given.stop], stream)
            self._side.wait_stream(self._own)
            with torch.cuda.stream(self._side):
                self._handle.barrier(channel=1 + number)
                event = torch.cuda.Event()
                event.record()
            ready.append((chunk, event))
        return ready

    def embed(self, ids: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """See `Exchange`."""
        share, width = len(ids) // self._sp, vocabulary.table.shape[1]
        if self._shards > 1 or len(ids) > self.tokens:
            return self.scatter(vocabulary.rows(ids))
        push_embedded(ids, vocabulary, self._scattered.addresses, share, self._position)
        self._handle.barrier(channel=0)
        # A model adds to it while it runs, and experts scatter their rows to the same region.
        return self._scattered.here[: share * width].view(share, width).clone()

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

    def gather(self, rows: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """See `Exchange`."""
        share, width = rows.shape
        if share * self._sp > self.tokens:
            return self._slow.gather(rows)
        if chosen is None:
            start = self._position * share * width
            self._push(rows, self._gathered, Blocks(width, share, rows.stride(0), 0, width, start))
        else:
            push_chosen(rows.contiguous(), chosen, self._gathered.addresses, self._position)
            self._handle.barrier(channel=0)
        return self._gathered.here[: share * self._sp * width].view(share * self._sp, width)

    def add(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        return self._slow.add(rows)

    def _push(self, source: torch.Tensor, region: _Region, blocks: Blocks) -> None:
        push(source, region.addresses, self._position, blocks)
        self._handle.barrier(channel=0)


def copy_rows(target: torch.Tensor, source: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Copies rows that lie at other distances, by a copy engine; torch would take multiprocessors for that.

    Args:
        target: [rows, width] with a stride of 1 along the width, of any GPU that this one can reach.
        source: [rows, width] likewise, of the same type.
        stream: where it is put.

    Raises:
        RuntimeError: CUDA refused.
    """
    if len(source) == 0:
        return
    size = source.element_size()
    (error,) = cudart.cudaMemcpy2DAsync(
        target.data_ptr(), target.stride(0) * size, source.data_ptr(), source.stride(0) * size,
        source.shape[1] * size, len(source), cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream.cuda_stream,
    )  # fmt: skip
    if error != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"a copy of {list(source.shape)} between GPUs failed: {error}")
