"""What a report keeps of a run while it runs: a bounded amount, however long the run is.

Nothing here looks at single rows in Python: a batch costs the same few array operations whatever is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_sdk.chunks import Tally

_FIRST_SPAN_SECONDS = 0.1
_MOST_SPANS = 240  # even, so that they merge in pairs
_EXAMPLES = 5
_MESSAGE_CHARS = 500
_OCTAVES = 24


def _edges() -> np.ndarray:
    """0, 1, 2, 3, and from 4 on four steps to every power of two: bins of 19 to 25 % in width, the same ever."""
    octaves = [2**power * quarter // 4 for power in range(2, _OCTAVES) for quarter in range(4, 8)]
    return np.array([0, 1, 2, 3, *octaves], np.int64)


EDGES = _edges()
"""First value of every bin; the last one is open."""


class Span(NamedTuple):
    """What was finished between two moments, in seconds since the engine was ready."""

    start: float
    end: float
    rows: int
    prompt_tokens: int
    completion_tokens: int
    error_rows: int

    def merged(self, later: Span) -> Span:
        """Return this and the next one as one."""
        sums = (mine + other for mine, other in zip(self[2:], later[2:], strict=True))
        return Span(self.start, later.end, *sums)


class Timeline:
    """How much was finished when, in at most 240 spans: when there are that many, neighbours become one.

    Args:
        tally: read, never written.
        clock: returns seconds.
    """

    def __init__(self, tally: Tally, clock: Callable[[], float] = time.monotonic) -> None:
        self._tally = tally
        self._clock = clock
        self._begun = clock()
        self._last = self._begun
        self._every = _FIRST_SPAN_SECONDS
        self._counts = self._now()
        self.spans: list[Span] = []

    def _now(self) -> tuple[int, int, int, int]:
        tally = self._tally
        return tally.rows, tally.prompt_tokens, tally.completion_tokens, tally.errors.total()

    def tick(self) -> None:
        """End the span if it is long enough."""
        now = self._clock()
        if now - self._last >= self._every:
            self._end(now)

    def _end(self, now: float) -> None:
        counts = self._now()
        done = (new - old for new, old in zip(counts, self._counts, strict=True))
        self.spans.append(Span(self._last - self._begun, now - self._begun, *done))
        self._last, self._counts = now, counts
        if len(self.spans) == _MOST_SPANS:
            pairs = zip(self.spans[::2], self.spans[1::2], strict=True)
            self.spans = [one.merged(other) for one, other in pairs]
            self._every *= 2

    def finish(self, now: float) -> None:
        """End the last span at that moment. A short one joins its neighbour: its rate would be noise."""
        short = now - self._last < self._every / 2
        if short and self._counts == self._now():
            return
        self._end(now)
        if short and len(self.spans) > 1:
            last = self.spans.pop()
            self.spans[-1] = self.spans[-1].merged(last)


class Histogram:
    """How many values fell into each of the bins of `EDGES`."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(EDGES), np.int64)
        self.total = 0
        self.largest = 0

    def add(self, column: pa.Array) -> None:
        """Count a column of whole numbers from 0; nulls are no values."""
        values = column.drop_null().to_numpy()
        if len(values):
            bins = np.searchsorted(EDGES, values, side="right") - 1
            self.counts += np.bincount(bins, minlength=len(EDGES))
            self.total += int(values.sum(dtype=np.int64))
            self.largest = max(self.largest, int(values.max()))

    def to_data(self) -> dict[str, Any]:
        """Return the bins from the first to the last that has a value, `[from, to, rows]` with both ends in it."""
        taken = np.flatnonzero(self.counts)
        rows = int(self.counts.sum())
        bins = []
        if rows:
            for index in range(taken[0], taken[-1] + 1):
                # The last bin has no end but its largest value.
                end = EDGES[index + 1] - 1 if index + 1 < len(EDGES) else self.largest
                bins.append([int(EDGES[index]), int(end), int(self.counts[index])])
        return {
            "rows": rows,
            "mean": self.total / rows if rows else None,
            "largest": self.largest,
            "bins": bins,
        }


@dataclass
class Examples:
    """The first few error rows of every kind: their place in the input and what was wrong."""

    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, errors: pa.StructArray, row_of: Callable[[int], int]) -> None:
        """Look through an error column; `row_of` says where in the input its row number so-and-so is."""
        if errors.null_count == len(errors):
            return
        kinds, messages = errors.flatten()
        for kind in pc.unique(kinds.drop_null()).to_pylist():
            known = self.found.setdefault(kind, [])
            if len(known) < _EXAMPLES:
                rows = np.flatnonzero(pc.equal(kinds, kind).fill_null(False))
                for row in rows[: _EXAMPLES - len(known)].tolist():
                    message = messages[row].as_py() or ""
                    known.append({"row": row_of(row), "message": message[:_MESSAGE_CHARS]})


class Recorder:
    """Watches the output batches of one run.

    Attributes:
        columns: names of those that it looks at.
        timeline: from the moment on that `begin` is called; None before.
        tokens: histograms by the columns' names, without the prefix.
        examples: of errors.

    Args:
        tally: the run's.
        prefix: what stands before the names of the columns about a row.
        row_of: the place in the input of the run's row number so-and-so.
    """

    def __init__(self, tally: Tally, prefix: str, row_of: Callable[[int], int]) -> None:
        self._tally = tally
        self._prefix = prefix
        self._row_of = row_of
        self.timeline: Timeline | None = None
        self.columns = {f"{prefix}{name}" for name in ("prompt_tokens", "completion_tokens", "error")}
        self.tokens = {"prompt_tokens": Histogram(), "completion_tokens": Histogram()}
        self.examples = Examples()

    def begin(self) -> None:
        """The engine is ready."""
        self.timeline = Timeline(self._tally)

    def tick(self) -> None:
        """To be called often; cheap."""
        assert self.timeline is not None
        self.timeline.tick()

    def add(self, position: int, batch: pa.RecordBatch) -> None:
        """Take the next finished rows, the first of which is the run's row `position`."""
        for name, histogram in self.tokens.items():
            index = batch.schema.get_field_index(f"{self._prefix}{name}")
            if index >= 0:
                histogram.add(batch.column(index))
        errors = batch.column(f"{self._prefix}error")
        self.examples.add(errors, lambda row: self._row_of(position + row))
