"""Writing behind: finished batches are written in a thread while the next ones are worked on.

The counterpart of `ahead`. An engine whose event loop runs in the job's own thread gets no new work while that
thread compresses a batch of vectors.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

_DEPTH = 2

Write = Callable[[pa.RecordBatch], None]


@contextmanager
def behind(write: Write) -> Iterator[Write]:
    """Yield a function that has `write` called with each batch, in order, in a thread of its own.

    At most two batches wait for it. What `write` raises comes out of the next call, or at the end of the context;
    nothing is written after it. The context's end waits until all batches are written, whatever ended it.
    """
    writer = _Writer(write)
    writer.start()
    try:
        yield writer.put
    finally:
        writer.finish()
    writer.check()


class _Writer(threading.Thread):
    def __init__(self, write: Write) -> None:
        super().__init__(name="batch-sdk-writer", daemon=True)
        self._write = write
        self._waiting: queue.Queue[pa.RecordBatch | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None

    def run(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # so that nobody waits for room
            try:
                self._write(batch)
            # To the one who brings the next batch; this thread has nobody else to tell.
            except BaseException as error:  # noqa: BLE001
                self._error = error

    def put(self, batch: pa.RecordBatch) -> None:
        self.check()
        self._waiting.put(batch)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        self._waiting.put(None)
        self.join()
