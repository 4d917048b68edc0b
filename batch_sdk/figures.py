"""The figures of one run of a job while it runs: what the progress bar, the metrics and the report look at."""

from __future__ import annotations

import time
from collections import deque

import pyarrow as pa

from batch_sdk.chunks import Chunk, Tally
from batch_sdk.engines.base import Engine
from batch_sdk.engines.restarting import RestartingEngine
from batch_sdk.flow import MakeChunk
from batch_sdk.summary import JobSummary


class Figures:
    """What a run has done so far. The thread that runs the job writes, any thread may read.

    Attributes:
        tally: rows, tokens and errors, those of earlier runs included.
        earlier: what of `tally` was there before this run.
        engine: that runs the rows.
        output: the output's path, or None for a table in memory.
        started: when the engine's start began, in seconds of `time.monotonic`.
        ready: when the engine was ready; None before.
        restarts_elsewhere: of engines in other processes.
        done: when the output was in place, or what ended the run came; None before.
    """

    def __init__(self, tally: Tally, engine: Engine, output: str | None) -> None:
        self.tally = tally
        self.earlier = Tally()
        self.earlier.add(tally)
        self.engine = engine
        self.output = output
        self.started = time.monotonic()
        self.ready: float | None = None
        self.done: float | None = None
        self.restarts_elsewhere = 0
        self._open: deque[Chunk] = deque()
        self._closed_rows = 0

    def watched(self, make_chunk: MakeChunk) -> MakeChunk:
        """Return a `make_chunk` whose chunks count as open until `close_chunk`, which comes in their order."""

        def make(position: int, batch: pa.RecordBatch) -> Chunk:
            chunk = make_chunk(position, batch)
            self._open.append(chunk)
            return chunk

        return make

    def close_chunk(self) -> None:
        """The oldest open chunk is finished."""
        self._closed_rows += self._open.popleft().rows

    def stop(self) -> None:
        """The run is over, if it was not over already."""
        self.done = self.done or time.monotonic()

    @property
    def rows(self) -> int:
        """Rows that this run has finished."""
        return self.tally.rows - self.earlier.rows

    @property
    def rows_in_flight(self) -> int:
        """Rows that were handed out for the engine and have no result yet."""
        # Copied in one step: another thread may be adding to it.
        taken = sum(chunk.taken for chunk in list(self._open))
        return max(0, taken + self._closed_rows - self.rows)

    @property
    def restarts(self) -> int:
        """How often an engine was started again."""
        here = self.engine.restarts if isinstance(self.engine, RestartingEngine) else 0
        return here + self.restarts_elsewhere

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of this run's prompt tokens that were in the engine's prefix cache; None if it does not say."""
        cached, tokens = self.tally.cached_tokens, self.tally.prompt_tokens - self.earlier.prompt_tokens
        return None if cached is None else cached / max(1, tokens)

    def summary(self) -> JobSummary:
        """Return the figures as they are now."""
        now = self.done or time.monotonic()
        ready = self.ready or now
        return JobSummary(
            rows=self.tally.rows,
            errors={kind: rows for kind, rows in self.tally.errors.items() if rows},
            prompt_tokens=self.tally.prompt_tokens,
            completion_tokens=self.tally.completion_tokens,
            seconds=now - ready,
            engine_start_seconds=ready - self.started,
            output=self.output,
            earlier_rows=self.earlier.rows,
            earlier_tokens=self.earlier.prompt_tokens + self.earlier.completion_tokens,
            engine_restarts=self.restarts,
            cached_tokens=self.tally.cached_tokens,
            cache_hit_rate=self.cache_hit_rate,
        )
