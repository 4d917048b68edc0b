"""A job as a source of a lazy Polars query: rows stream through the engine while the query runs.

With sources/polars.py one of the two modules that use Polars' unstable interfaces.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from batch_sdk.chunks import Tally
from batch_sdk.engines.base import Engine, EngineInfo
from batch_sdk.errors import EngineError, OptionError
from batch_sdk.flow import Flow, rebatch
from batch_sdk.job import EmbedJob, GenerateJob
from batch_sdk.plan import EmbedPlan, GeneratePlan, Plan
from batch_sdk.runner import ways
from batch_sdk.sources.polars import LazySource

_busy: weakref.WeakSet[Engine] = weakref.WeakSet()
_busy_lock = threading.Lock()
_LET_GO_SECONDS = 3.0
_POLL_SECONDS = 0.01


class EngineLender:
    """Where a query gets its engine from: one that runs already, or one of its own for each run.

    Args:
        given: a started engine; left running.
        make: makes an engine, if none is given.
    """

    def __init__(self, *, given: Engine | None = None, make: Callable[[], Engine] | None = None) -> None:
        self._given = given
        self._make = make
        self._idle: Engine | None = None
        self._guard: weakref.finalize[[], EngineLender] | None = None

    def info(self) -> EngineInfo:
        """Return what the engine says; one that has to be started for it is kept for the next `lend`."""
        if self._given is not None:
            return self._given.info
        if self._idle is None:
            engine = self._new()
            engine.start()
            self._idle = engine
            # A query that is asked for its schema and never run: its engine ends with it.
            self._guard = weakref.finalize(self, engine.close)
        return self._idle.info

    def _new(self) -> Engine:
        assert self._make is not None
        return self._make()

    @contextmanager
    def lend(self) -> Iterator[Engine]:
        """Lend a started engine for one run.

        Raises:
            EngineError: it does not start, or the given one is at work in another part of a query.
        """
        if self._given is None:
            engine, self._idle = self._idle or self._new(), None
            # Stays on guard during the run too: Polars may keep a query that stopped early until the process ends.
            guard, self._guard = self._guard or weakref.finalize(self, engine.close), None
            try:
                with engine:
                    yield engine
            finally:
                guard.detach()
            return
        _claim(self._given)
        try:
            yield self._given
        finally:
            # Also where the query stopped early, e.g. by head(): rows in flight would come to the next job.
            self._given.abandon()
            _busy.discard(self._given)


def _claim(engine: Engine) -> None:
    deadline = time.monotonic() + _LET_GO_SECONDS
    while True:
        with _busy_lock:
            if engine not in _busy:
                _busy.add(engine)
                return
        if time.monotonic() > deadline:
            raise EngineError(
                "one engine in two parts of a query that run at the same time",
                "one part at a time",
                "concatenate the frames first, or collect one of them before",
            )
        # Polars lets go of the generator of a query that stopped early when it is called next, for anything.
        pl.Series()
        time.sleep(_POLL_SECONDS)


def lazy_job(
    frame: pl.LazyFrame, job: GenerateJob | EmbedJob, lender: EngineLender, size: int | None = None
) -> pl.LazyFrame:
    """Return the frame with the job's columns, to be computed when the query runs.

    Args:
        frame: the input; asked for its schema here.
        job: what to do. Its `limit_rows` is not used.
        lender: see `EngineLender`.
        size: floats in a vector of the model's, for an `EmbedJob`; None asks the engine as soon as Polars wants the
            schema, unless the job's `dimensions` say how many are kept.

    Raises:
        BatchError: the job does not fit the frame.
    """
    query = _Query(frame, job, lender, size)
    return register_io_source(
        query.run,
        schema=query.schema,
        validate_schema=True,
        is_pure=True,
        explain_name=f"arctic {type(job).__name__}",
    )


def _plan(job: GenerateJob | EmbedJob, schema: pa.Schema) -> Plan:
    return GeneratePlan(job, schema) if isinstance(job, GenerateJob) else EmbedPlan(job, schema)


class _Query:
    def __init__(
        self, frame: pl.LazyFrame, job: GenerateJob | EmbedJob, lender: EngineLender, size: int | None
    ) -> None:
        self._frame = frame
        self._job = job
        self._lender = lender
        self._source = LazySource(frame)
        self._plan = _plan(job, self._source.schema)
        self._size = size
        self._schema: pl.Schema | None = None
        if size is not None:
            self.schema()  # here an error is raised as it is; Polars would wrap it in one of its own

    def schema(self) -> pl.Schema:
        """Return the output's columns and dtypes."""
        if self._schema is None:
            arrow = self._plan.provisional
            if isinstance(self._plan, EmbedPlan) and (self._size is not None or not self._plan.cuts):
                if self._size is None:
                    self._size = self._lender.info().embedding_size
                arrow = self._plan.schema(EngineInfo(self._job.model, embedding_size=self._size))
            self._schema = self._source.restore(arrow.empty_table()).schema
        return self._schema

    def run(
        self,
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        """Yield the output; the arguments are those of `register_io_source`."""
        wanted = list(self.schema()) if with_columns is None else with_columns
        before, after = split_predicate(predicate, self._plan.kept)
        # In Polars' order: the first n rows, and of those the ones that fit the predicate.
        frame = self._frame if n_rows is None else self._frame.head(n_rows)
        if before is not None:
            frame = frame.filter(before)
        needed = {*wanted, *(after.meta.root_names() if after is not None else ())}
        batch_rows = min(batch_size or self._job.batch_rows, self._job.batch_rows)
        if needed <= set(self._plan.kept):
            yield from frame.select(wanted).collect_batches(chunk_size=batch_rows, maintain_order=True)
            return
        keep = [name for name in self._plan.kept if name in needed]
        job = replace(self._job, keep=keep, batch_rows=batch_rows)
        for piece in self._compute(frame, job):
            yield (piece if after is None else piece.filter(after)).select(wanted)

    def _compute(self, frame: pl.LazyFrame, job: GenerateJob | EmbedJob) -> Iterator[pl.DataFrame]:
        source = LazySource(frame)
        plan = _plan(job, source.schema)
        with self._lender.lend() as engine:
            size = engine.info.embedding_size
            if self._size not in (None, size):
                raise OptionError(f"size={self._size}", f"{size}, the floats in a vector of {job.model!r}")
            schema, make_chunk = plan.bind(engine.info, Tally())
            with closing(source.batches(plan.read, job.batch_rows)) as read:
                flow = Flow(
                    rebatch(read, job.batch_rows),
                    make_chunk,
                    engine,
                    window_rows=job.window_rows,
                    batch_rows=job.batch_rows,
                    on_progress=_nobody_looks,
                    **ways(job),
                )
                for chunk in flow.run():
                    yield source.restore(pa.Table.from_batches([chunk.to_batch(schema)]))


def _nobody_looks() -> None:
    """A query has no progress bar."""


def split_predicate(
    predicate: pl.Expr | None, before: tuple[str, ...]
) -> tuple[pl.Expr | None, pl.Expr | None]:
    """Split a predicate into the part that reads only columns of `before`, and the rest.

    Rows that fit both parts are those that fit the whole. Polars hands a source only predicates that look at
    one row at a time, so that the order of filtering does not matter.
    """
    early: pl.Expr | None = None
    late: pl.Expr | None = None
    for part in _conjuncts(predicate) if predicate is not None else ():
        if set(part.meta.root_names()) <= set(before):
            early = part if early is None else early & part
        else:
            late = part if late is None else late & part
    return early, late


def _conjuncts(predicate: pl.Expr) -> Iterator[pl.Expr]:
    inputs = predicate.meta.pop()
    if len(inputs) == 2 and (inputs[1] & inputs[0]).meta.eq(predicate):
        yield from _conjuncts(inputs[1])
        yield from _conjuncts(inputs[0])
    else:
        yield predicate
