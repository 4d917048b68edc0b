"""Python's garbage collector while a job runs.

Rows in work are tens of thousands of objects that are freed by their counts alone, without a cycle. Looking through
them after every 700 new ones takes an eighth of a job's time on the host.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS = 50_000
_lock = threading.Lock()
_jobs = 0
_before = gc.get_threshold()


@contextmanager
def seldom() -> Iterator[None]:
    """Collect after every 50,000 new objects, until the last of the jobs that run at the same time is over."""
    global _jobs, _before
    with _lock:
        _jobs += 1
        if _jobs == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < _OBJECTS:  # 0: somebody has turned it off
                gc.set_threshold(_OBJECTS, *_before[1:])
    try:
        yield
    finally:
        with _lock:
            _jobs -= 1
            if _jobs == 0:
                gc.set_threshold(*_before)
