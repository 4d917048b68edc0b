"""Runs one job from its first check to its committed output, and cleans up whatever happens."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pyarrow as pa

from batch_sdk.ahead import ahead
from batch_sdk.chunks import Tally
from batch_sdk.duplicates import Duplicates
from batch_sdk.engines.base import Engine
from batch_sdk.engines.restarting import RestartingEngine
from batch_sdk.errors import OptionError
from batch_sdk.flow import Flow, MakeChunk, rebatch
from batch_sdk.job import GenerateJob, Job
from batch_sdk.ordering import PrefixOrder
from batch_sdk.plan import Plan
from batch_sdk.progress import Progress
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source
from batch_sdk.summary import JobSummary


def run_job(
    job: Job,
    plan: Plan,
    source: Source,
    sink: Sink,
    engine: Engine,
    *,
    progress: bool | None,
    max_restarts: int = 0,
) -> tuple[Any, JobSummary]:
    """Run a job.

    Args:
        job: what to do; `plan` is the same job bound to `source`.
        plan: see `job`.
        source: the input.
        sink: the output.
        engine: started, and then left running; or not, and then started here and closed at the end.
        progress: see `Progress`.
        max_restarts: how often an engine that is started here may die; see `RestartingEngine`.

    Returns:
        What the sink's `commit` returned, and the figures.

    Raises:
        BatchError: the job could not start, or could not go on. What is left then is the sink's to say.
    """
    if type(max_restarts) is not int or max_restarts < 0:
        raise OptionError(f"max_restarts={max_restarts!r}", "a whole number from 0")
    with ExitStack() as stack:
        # These run on every way out, Ctrl-C included, the last one first; abort() after a commit does
        # nothing.
        stack.callback(sink.abort)
        sink.prepare(plan.provisional)
        tally = sink.done()
        earlier = replace(tally)
        started = done = time.monotonic()
        ready = started
        if not sink.complete:
            if not engine.started:
                engine = RestartingEngine(engine, max_restarts)
                stack.callback(engine.close)
                engine.start()
            else:
                stack.callback(engine.abandon)
            ready = time.monotonic()
            schema, make_chunk = plan.bind(engine.info, tally)
            sink.open(schema)
            # After the engine's: rows that are done are kept before the engine's end can take time.
            stack.callback(sink.abort)
            stream(job, plan, source, sink, engine, schema, make_chunk, tally, progress)
        output = sink.commit()
        done = time.monotonic()
    return output, JobSummary(
        rows=tally.rows,
        errors={kind: rows for kind, rows in tally.errors.items() if rows},
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        seconds=done - ready,
        engine_start_seconds=ready - started,
        output=output if isinstance(output, str) else None,
        earlier_rows=earlier.rows,
        earlier_tokens=earlier.prompt_tokens + earlier.completion_tokens,
        engine_restarts=engine.restarts if isinstance(engine, RestartingEngine) else 0,
    )


def stream(
    job: Job,
    plan: Plan,
    source: Source,
    sink: Sink,
    engine: Engine,
    schema: pa.Schema,
    make_chunk: MakeChunk,
    tally: Tally,
    progress: bool | None,
) -> None:
    """Send the rows that the sink lacks through a started engine, and write what comes back.

    Args:
        schema: the output's; with `make_chunk` from `plan.bind`.
        make_chunk: see `schema`.
        tally: counts what is done.

    All others are those of `run_job`.
    """
    total = source.num_rows
    if job.limit_rows is not None:
        total = job.limit_rows if total is None else min(total, job.limit_rows)
    with ExitStack() as stack:
        read = _generator(source, plan, job, sink)
        if source.paths or source.urls:  # of other sources nobody knows which thread they are bound to
            read = ahead(read)
        stack.enter_context(closing(read))
        bar = stack.enter_context(Progress(tally, total, progress, plan.task))
        flow = Flow(
            rebatch(read, job.batch_rows),
            make_chunk,
            engine,
            window_rows=job.window_rows,
            batch_rows=job.batch_rows,
            on_progress=bar.update,
            start=sink.position,
            **ways(job),
        )
        for chunk in flow.run():
            sink.write(chunk.to_batch(schema))


def ways(job: Job) -> dict[str, Any]:
    """Return the arguments of `Flow` that say in which order a job's rows run, and which."""
    if not isinstance(job, GenerateJob):
        return {}
    return {
        "order": PrefixOrder(job.window_rows) if job.order == "prefix" else None,
        "duplicates": Duplicates() if job.dedupe else None,
    }


def _generator(source: Source, plan: Plan, job: Job, sink: Sink) -> Any:
    """The rows to compute as a generator, so that closing it closes the files behind it."""
    yield from sink.missing(source, plan.read, job.batch_rows, job.limit_rows)
