"""Runs one job from its first check to its committed output, and cleans up whatever happens."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Any

import pyarrow as pa

from batch_sdk.chunks import Tally
from batch_sdk.engines.base import Engine
from batch_sdk.flow import Flow, MakeChunk, limit, rebatch
from batch_sdk.job import Job
from batch_sdk.plan import Plan
from batch_sdk.progress import Progress
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source
from batch_sdk.summary import JobSummary


def run_job(
    job: Job, plan: Plan, source: Source, sink: Sink, engine: Engine, *, progress: bool | None
) -> tuple[Any, JobSummary]:
    """Run a job.

    Args:
        job: what to do; `plan` is the same job bound to `source`.
        plan: see `job`.
        source: the input.
        sink: the output.
        engine: started, and then left running; or not, and then started here and closed at the end.
        progress: see `Progress`.

    Returns:
        What the sink's `commit` returned, and the figures.

    Raises:
        BatchError: the job could not start, or could not go on. Nothing is left at the output.
    """
    sink.prepare(plan.provisional)
    tally = Tally()
    with ExitStack() as stack:
        # These run on every way out, Ctrl-C included, the last one first; abort() after a commit does
        # nothing.
        begun = time.monotonic()
        if engine.started:
            stack.callback(engine.abandon)
        else:
            stack.callback(engine.close)
            engine.start()
        engine_ready = time.monotonic()
        schema, make_chunk = plan.bind(engine.info, tally)
        stack.callback(sink.abort)
        sink.open(schema)
        _stream(job, plan, source, sink, engine, schema, make_chunk, tally, progress)
        output = sink.commit()
        done = time.monotonic()
    return output, JobSummary(
        rows=tally.rows,
        errors=dict(tally.errors),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        seconds=done - engine_ready,
        engine_start_seconds=engine_ready - begun,
        output=output if isinstance(output, str) else None,
    )


def _stream(
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
    total = source.num_rows
    if job.limit_rows is not None:
        total = job.limit_rows if total is None else min(total, job.limit_rows)
    with ExitStack() as stack:
        read = stack.enter_context(closing(_generator(source, plan, job)))
        batches = rebatch(limit(read, job.limit_rows), job.batch_rows)
        bar = stack.enter_context(Progress(tally, total, progress, plan.task))
        flow = Flow(
            batches,
            make_chunk,
            engine,
            window_rows=job.window_rows,
            batch_rows=job.batch_rows,
            on_progress=bar.update,
        )
        for chunk in flow.run():
            sink.write(chunk.to_batch(schema))


def _generator(source: Source, plan: Plan, job: Job) -> Any:
    """The source's rows as a generator, so that closing it closes the files behind it."""
    yield from source.batches(plan.read, job.batch_rows)
