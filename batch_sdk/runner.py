"""Runs one job from its first check to its committed output, and cleans up whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import pyarrow as pa

from batch_sdk import collector
from batch_sdk.ahead import ahead
from batch_sdk.behind import behind
from batch_sdk.duplicates import Duplicates
from batch_sdk.engines.base import Engine
from batch_sdk.engines.restarting import RestartingEngine
from batch_sdk.errors import OptionError, output_begun
from batch_sdk.figures import Figures
from batch_sdk.flow import Flow, MakeChunk, rebatch
from batch_sdk.job import GenerateJob, Job
from batch_sdk.look import Look
from batch_sdk.ordering import PrefixOrder
from batch_sdk.plan import Plan
from batch_sdk.progress import Progress
from batch_sdk.report.facts import total_rows
from batch_sdk.report.recorder import Recorder
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
    look: Look,
    max_restarts: int = 0,
) -> tuple[Any, JobSummary]:
    """Run a job.

    Args:
        job: what to do; `plan` is the same job bound to `source`.
        plan: see `job`.
        source: the input.
        sink: the output.
        engine: started, and then left running; or not, and then started here and closed at the end.
        look: what is shown, served and reported of the run.
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
        figures = Figures(sink.done(), engine, sink.where)
        if not sink.complete:
            recorder = look.watch(stack, job, source, sink, engine, figures)
            fresh = not engine.started
            if fresh:
                engine = figures.engine = RestartingEngine(engine, max_restarts)
            stack.callback(engine.close if fresh else engine.abandon)
            # Before the engine's end: that is no part of a job's time.
            stack.callback(figures.stop)
            if fresh:
                engine.start()
            figures.ready = time.monotonic()
            schema, make_chunk = plan.bind(engine.info, figures.tally)
            sink.open(schema)
            stack.enter_context(output_begun())
            # After the engine's: rows that are done are kept before the engine's end can take time.
            stack.callback(sink.abort)
            stream(job, plan, source, sink, engine, schema, make_chunk, figures, look, recorder)
        output = sink.commit()
        figures.stop()
    return output, figures.summary()


def stream(
    job: Job,
    plan: Plan,
    source: Source,
    sink: Sink,
    engine: Engine,
    schema: pa.Schema,
    make_chunk: MakeChunk,
    figures: Figures,
    look: Look,
    recorder: Recorder | None,
) -> None:
    """Send the rows that the sink lacks through a started engine, and write what comes back.

    Args:
        schema: the output's; with `make_chunk` from `plan.bind`.
        make_chunk: see `schema`.
        figures: of the run; its tally is the one that `plan.bind` got.
        recorder: sees the output batches, if anybody wants a report.

    All others are those of `run_job`.
    """
    with ExitStack() as stack:
        stack.enter_context(collector.seldom())
        read = _generator(source, plan, job, sink)
        if source.paths or source.urls:  # of other sources nobody knows which thread they are bound to
            read = ahead(read)
        stack.enter_context(closing(read))
        total = total_rows(job, source)
        bar = stack.enter_context(Progress(figures, total, look.progress, plan.task))
        watchers = [bar.update]
        if recorder is not None:
            recorder.begin()
            watchers.append(recorder.tick)
        # Vectors take time to compress and write, in which an engine would get no work. Texts do not, and where a job
        # does little but render prompts, a thread more costs more than it saves. A function as output is called here.
        in_thread = plan.task == "embed" and sink.where is not None
        write = stack.enter_context(behind(sink.write)) if in_thread else sink.write
        flow = Flow(
            rebatch(read, job.batch_rows),
            figures.watched(make_chunk),
            engine,
            window_rows=job.window_rows,
            batch_rows=job.batch_rows,
            on_progress=_all(watchers),
            start=sink.position,
            **ways(job),
        )
        for chunk in flow.run():
            figures.close_chunk()
            batch = chunk.to_batch(schema)
            write(batch)
            if recorder is not None:
                recorder.add(chunk.position, batch)


def _all(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def call() -> None:
        for one in calls:
            one()

    return calls[0] if len(calls) == 1 else call


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
    source.all_columns = job.keep is None
    yield from sink.missing(source, plan.read, job.batch_rows, job.limit_rows)
