"""The loop at the heart of a job: input batches in, output batches out, bounded by a window of rows.

Let `oldest` be the first row that has no result yet. Row p may be submitted only while p - oldest <
window_rows. That one rule bounds both the rows in flight and the finished rows that wait for an older one,
and with them the memory, however long the table is. Rows come out in the order they came in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from batch_sdk.chunks import Chunk
from batch_sdk.duplicates import Duplicates
from batch_sdk.engines.base import Engine, Request, Result
from batch_sdk.errors import EngineError, SourceError
from batch_sdk.ordering import TableOrder

MakeChunk = Callable[[int, pa.RecordBatch], Chunk]


def limit(batches: Iterable[pa.RecordBatch], rows: int | None) -> Iterator[pa.RecordBatch]:
    """Yield only the first `rows` rows; None is all of them. Reads no batch more than needed."""
    if rows is None:
        yield from batches
        return
    left = rows
    for batch in batches:
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


def regroup(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Yield the same rows as lists of pieces with exactly `rows` in each list, fewer in the last. Pieces are views."""
    held: list[pa.RecordBatch] = []
    held_rows = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, rows - held_rows)
            start += piece.num_rows
            held.append(piece)
            held_rows += piece.num_rows
            if held_rows == rows:
                yield held
                held, held_rows = [], 0
    if held:
        yield held


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of exactly `rows`, the last one shorter. Empty batches vanish.

    Slices are views; only rows that come in smaller batches are copied together.

    Raises:
        SourceError: so many rows have more than one batch can hold: bytes for 32-bit offsets, values for the keys of
            a dictionary.
    """
    for pieces in regroup(batches, rows):
        try:
            joined = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"{rows:,} rows do not go into one batch (a column of 32-bit offsets holds 2 GiB): {error}",
                "fewer rows in a batch",
                "pass a smaller batch_rows (--batch-rows)",
            ) from error
        yield joined


class Flow:
    """Streams one job's rows through an engine.

    Args:
        batches: the input, each of `batch_rows` rows but the last.
        make_chunk: makes the chunk for a batch that begins at a position.
        engine: a started engine with nothing in flight.
        window_rows: see above.
        batch_rows: see `batches`.
        on_progress: called whenever rows have finished.
        start: position of the first row of `batches`.
        order: in which order rows that may be submitted are.
        duplicates: if given, rows that ask for the same are computed once.
    """

    def __init__(
        self,
        batches: Iterator[pa.RecordBatch],
        make_chunk: MakeChunk,
        engine: Engine,
        *,
        window_rows: int,
        batch_rows: int,
        on_progress: Callable[[], None],
        start: int = 0,
        order: TableOrder | None = None,
        duplicates: Duplicates | None = None,
    ) -> None:
        self._batches = batches
        self._make_chunk = make_chunk
        self._engine = engine
        self._window_rows = window_rows
        self._batch_rows = batch_rows
        self._on_progress = on_progress
        self._open: deque[Chunk] = deque()
        self._next_position = start
        self._exhausted = False
        self._in_flight = 0
        self._order = order or TableOrder()
        self._duplicates = duplicates

    def run(self) -> Iterator[Chunk]:
        """Yield the finished chunks in order. Raises `EngineError`, and whatever the source raises."""
        while True:
            self._order.add(self._new())
            requests = self._order.take(self._in_flight)
            if requests:
                self._engine.submit(requests)
                self._in_flight += len(requests)
            while self._open and self._open[0].finished:
                yield self._open.popleft()
                self._on_progress()
            if self._in_flight:
                self._collect()
            elif self._exhausted and not self._open:
                return

    def _new(self) -> list[Request]:
        """Open what the window allows, and answer at once what needs no engine."""
        requests = self._fill()
        if self._duplicates is None:
            return requests
        new = self._duplicates.first_of(requests)
        self._accept(self._duplicates.answers())
        return new

    def _fill(self) -> list[Request]:
        """Take as many rows as the window allows, opening new chunks as needed."""
        requests: list[Request] = []
        front = self._open[0] if self._open else None
        oldest = front.position + front.frontier if front else self._next_position
        end = oldest + self._window_rows
        for chunk in self._open:
            if chunk.taken < chunk.rows:
                requests += chunk.take(end - chunk.position - chunk.taken)
        while not self._exhausted and self._next_position < end and self._all_taken():
            batch = next(self._batches, None)
            if batch is None:
                self._exhausted = True
                break
            chunk = self._make_chunk(self._next_position, batch)
            self._next_position += chunk.rows
            self._open.append(chunk)
            requests += chunk.take(end - chunk.position)
        return requests

    def _all_taken(self) -> bool:
        return not self._open or self._open[-1].taken == self._open[-1].rows

    def _collect(self) -> None:
        results = self._engine.wait()
        if not results:
            raise EngineError("the engine's wait() returned without a result", "at least one")
        self._in_flight -= len(results)
        self._accept(results if self._duplicates is None else self._duplicates.all_of(results))
        self._on_progress()

    def _accept(self, results: Iterable[Result]) -> None:
        for result in results:
            # All open chunks but the last have batch_rows rows, so the division finds the right one.
            index = (result.position - self._open[0].position) // self._batch_rows
            if not 0 <= index < len(self._open):
                raise EngineError(
                    f"the engine returned a result for row {result.position}, which is not in flight"
                )
            self._open[index].accept(result)
