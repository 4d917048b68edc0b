"""Reading ahead: the next batches are read in a thread while the last ones are worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

_DEPTH = 2
_POLL_SECONDS = 0.1


class _End:
    """What comes after the last batch."""


def ahead(batches: Generator[pa.RecordBatch, Any, None]) -> Iterator[pa.RecordBatch]:
    """Yield the same batches; at most two are ready before they are asked for.

    `batches` runs, and is closed, in a thread of its own. Closing this iterator waits for that. What `batches`
    raises comes out here, in its place.
    """
    ready: queue.Queue[pa.RecordBatch | type[_End] | BaseException] = queue.Queue(_DEPTH)
    stop = threading.Event()
    thread = threading.Thread(target=_read, args=(batches, ready, stop), name="batch-sdk-reader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if item is _End:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _read(
    batches: Generator[pa.RecordBatch, Any, None], ready: queue.Queue[Any], stop: threading.Event
) -> None:
    try:
        with closing(batches):
            for batch in batches:
                if not _put(batch, ready, stop):
                    return
        _put(_End, ready, stop)
    # To the one who asks for the next batch; this thread has nobody else to tell.
    except BaseException as error:  # noqa: BLE001
        _put(error, ready, stop)


def _put(item: Any, ready: queue.Queue[Any], stop: threading.Event) -> bool:
    """Wait for room; False if nobody wants it any more."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False
