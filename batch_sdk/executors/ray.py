"""A job on a Ray cluster: Ray Data places the workers, feeds them and starts them again; this process commits.

The rows that are missing are cut into parts. A worker writes a part under a name that no other attempt has, and
only this process makes it part of the output and records it. So a part counts once, however often it was made.
"""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from batch_sdk.engines import engine_name
from batch_sdk.engines.base import Engine
from batch_sdk.errors import BatchError, EngineError, OptionError, OutputError, SourceError, output_begun
from batch_sdk.executors.cluster import check_room, joined, require
from batch_sdk.executors.options import RayOptions
from batch_sdk.executors.worker import HELLO, Answer, Work, Worker, answer_of, as_row
from batch_sdk.figures import Figures
from batch_sdk.job import Job
from batch_sdk.look import Look
from batch_sdk.manifest import package_versions
from batch_sdk.plan import Plan
from batch_sdk.progress import Progress
from batch_sdk.report.recorder import Recorder
from batch_sdk.sinks.base import Sink
from batch_sdk.sinks.parts import PartsSink
from batch_sdk.sources.base import Source
from batch_sdk.summary import JobSummary
from batch_sdk.units import Unit

# Parts that a replica gets at least, where there are rows enough: the last one to finish is not far behind.
_PARTS_PER_REPLICA = 4
_RAISED = re.compile(r"[\w.]*(Error|Exception): ")


def run_on_ray(
    job: Job,
    plan: Plan,
    source: Source,
    sink: Sink,
    engine: Engine,
    options: Mapping[str, Any],
    *,
    look: Look,
    max_restarts: int,
) -> tuple[Any, JobSummary]:
    """Run a job whose output is a directory.

    Args:
        engine: not started: it tells the workers what to start.
        options: see `RayOptions`.
        max_restarts: how often each replica's engine, and besides its worker, may die.

    All others and what is returned: see `run_job`.

    Raises:
        BatchError: see `run_job`.
    """
    if type(max_restarts) is not int or max_restarts < 0:
        raise OptionError(f"max_restarts={max_restarts!r}", "a whole number from 0")
    checked = RayOptions.from_mapping(options)
    parts = _check(source, sink, engine)
    require()
    with ExitStack() as stack:
        stack.callback(parts.abort)
        parts.prepare(plan.provisional)
        figures = Figures(parts.done(), engine, parts.where)
        if not parts.complete:
            recorder = look.watch(stack, job, source, parts, engine, figures)
            total = _rows(source, job)
            units = parts.units(total, checked.replicas * _PARTS_PER_REPLICA)
            work = _work(job, plan, engine, parts.make_work(), max_restarts)
            bar = stack.enter_context(Progress(figures, total, look.progress, plan.task))
            answers = stack.enter_context(closing(_answers(work, source, units, checked)))
            # Before the workers' end: that is no part of a job's time.
            stack.callback(figures.stop)
            _commit_all(parts, answers, figures, bar, recorder)
            # The workers go before the folder that they write to.
            answers.close()
        with output_begun():
            output = parts.commit()
        figures.stop()
    return output, figures.summary()


def _check(source: Source, sink: Sink, engine: Engine) -> PartsSink:
    if not isinstance(sink, PartsSink):
        what = "one file" if sink.where is not None else "a table in memory"
        if sink.where is not None and os.path.isdir(sink.where):
            raise OptionError("resume='errors' with executor='ray'", "executor='local' for error rows")
        raise OutputError(f"executor='ray' with {what} as the output", "a directory, e.g. output='out/'")
    if engine.started:
        raise OptionError(
            "executor='ray' with a started engine, which lives in this process",
            "model= as a path or hub name",
        )
    if not source.rereadable or (source.num_rows is None and not (source.paths or source.urls)):
        raise SourceError(
            "executor='ray' with a stream or a lazy query, of which a worker cannot read its own rows",
            "files, a table or a frame",
            "collect() it, or write it to a file first",
        )
    return sink


def _rows(source: Source, job: Job) -> int:
    """Return the rows of the output, counting those of files that do not say."""
    total = source.count()
    return total if job.limit_rows is None else min(total, job.limit_rows)


def _work(job: Job, plan: Plan, engine: Engine, folder: Path, max_restarts: int) -> Work:
    if os.path.exists(engine.model):
        engine = copy.copy(engine)
        engine.model = os.path.abspath(engine.model)  # a worker runs in a folder of its own
    return Work(
        job=job,
        plan=type(plan),
        engine=engine,
        versions=package_versions(),
        folder=folder,
        error_column=f"{job.details_prefix}error",
        max_restarts=max_restarts,
    )


def _commit_all(
    sink: PartsSink, answers: Iterator[Answer], figures: Figures, bar: Progress, recorder: Recorder | None
) -> None:
    """Record every part as it comes."""
    with ExitStack() as begun:
        for answer in answers:
            if answer.error is not None:
                raise answer.error
            figures.restarts_elsewhere += answer.restarts
            if figures.ready is None:
                assert answer.schema is not None
                figures.ready = time.monotonic()
                sink.open(answer.schema)
                begun.enter_context(output_begun())
                if recorder is not None:
                    recorder.begin()
            if answer.part is not None and answer.file is not None and answer.tally is not None:
                sink.adopt(answer.file, answer.part)
                figures.tally.add(answer.tally)
                bar.update()
                if recorder is not None:
                    recorder.tick()
                    _record(recorder, sink.target / answer.part.name, answer.part.start)


def _record(recorder: Recorder, file: Path, position: int) -> None:
    """Show a part to the report, which wants the columns about its rows alone."""
    parquet = pq.ParquetFile(file)
    wanted = [name for name in parquet.schema_arrow.names if name in recorder.columns]
    for batch in parquet.iter_batches(columns=wanted):
        recorder.add(position, batch)
        position += batch.num_rows


def _answers(work: Work, source: Source, units: list[Unit], options: RayOptions) -> Iterator[Answer]:
    """Yield the workers' answers as they come: first that an engine is up, then the parts in any order."""
    ray = require()
    with ExitStack() as stack:
        stack.enter_context(joined(options))
        _check_gpus(work, options, ray.cluster_resources().get("GPU", 0))
        check_room(options)
        try:
            job = ray.put((work, source))
        except Exception as error:  # pickle's boundary: any object may refuse in its own way
            raise OptionError(f"this job cannot be sent to another process: {error}") from error
        try:
            batches = iter(_batches(ray, job, units, options))
            stack.callback(getattr(batches, "close", lambda: None))
            for batch in batches:
                yield from map(answer_of, batch.to_pylist())
        except BatchError:
            raise
        except Exception as error:  # the boundary to Ray Data, whose errors share no base class
            raise EngineError(
                f"Ray could not go on: {_cause(error)}",
                remedy="see Ray's logs of its workers; all machines need the same packages",
            ) from error


def _cause(error: Exception) -> str:
    """Return the line that matters of a text that holds the tracebacks of several processes."""
    lines = str(error).splitlines()
    return next((line.strip() for line in reversed(lines) if _RAISED.match(line)), f"{type(error).__name__}")


def _check_gpus(work: Work, options: RayOptions, gpus: float) -> None:
    if options.gpus_per_replica is None and gpus and engine_name(work.engine) == "sglang":
        raise OptionError(
            f"no gpus_per_replica, and the Ray cluster has {gpus:g} GPUs",
            "how many an engine takes: tp_size times dp_size times pp_size",
            "0 runs the engines without",
        )


def _batches(ray: Any, job: Any, units: list[Unit], options: RayOptions) -> Any:
    """Return the answers as Arrow tables, each as soon as it is there."""

    class RayWorker(Worker):
        """A worker as Ray Data makes it: of the class and these arguments."""

        def __init__(self, job: Any) -> None:
            super().__init__(lambda: ray.get(job), ray.get_runtime_context().get_actor_id())

    todo = [HELLO, *map(as_row, units)]
    found = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
        RayWorker,
        fn_constructor_args=(job,),
        # An engine is driven by the main thread of its process, and does one part at a time. Ray starts a worker
        # that was killed again, and its part, for ever: the worker itself counts and puts an end to it.
        compute=ray.data.ActorPoolStrategy(
            size=options.replicas,
            max_tasks_in_flight_per_actor=1,
            max_concurrent_calls_per_actor=1,
            enable_true_multi_threading=True,
        ),
        num_cpus=options.cpus_per_replica,
        num_gpus=options.gpus_per_replica or None,
    )
    found.context.enable_progress_bars = False
    found.context.print_on_execution_start = False
    # Nothing is fetched ahead: a part is recorded when it is there, not when the next one is.
    return found.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
