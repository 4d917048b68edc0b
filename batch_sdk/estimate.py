"""What a job over a whole table would take, from a sample of it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pyarrow as pa

from batch_sdk.api import embed, generate
from batch_sdk.engines import Engine, create_engine
from batch_sdk.engines.base import Task
from batch_sdk.errors import OptionError, SourceError
from batch_sdk.flow import limit
from batch_sdk.sources import Source, open_source
from batch_sdk.summary import BatchResult, JobSummary

_PIECES = 16
_READ_ROWS = 1024
_FIRST_SHARE = 4  # the first run has one row in so many
_BOUND = 1.96  # standard errors to either side: 95 of 100 samples
_PLACES = (
    "output", "overwrite", "resume", "rows_per_file", "part_seconds", "limit_rows", "report", "metrics_port",
    "executor", "executor_options", "return_summary",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would take. Times are without the engine's start.

    Attributes:
        rows: of the table.
        sample_rows: that were run.
        seconds: for all rows.
        rows_per_second: in the long run.
        prompt_tokens: of all rows.
        prompt_tokens_margin: half the width of its 95 % interval, as far as the sample can tell.
        completion_tokens: of all rows; 0 for embeddings.
        completion_tokens_margin: half the width of its 95 % interval.
        error_rows: of all rows, by the sample's share.
        output_bytes: in memory, before compression.
        memory_bytes: of this process with the sample done; a job needs no more for more rows. The engine's own
            processes are not in it.
        engine_start_seconds: 0 if the engine was running already.
    """

    rows: int
    sample_rows: int
    seconds: float
    rows_per_second: float
    prompt_tokens: int
    prompt_tokens_margin: int
    completion_tokens: int
    completion_tokens_margin: int
    error_rows: int
    output_bytes: int
    memory_bytes: int
    engine_start_seconds: float

    def __str__(self) -> str:
        def tokens(name: str) -> str:
            return (
                f"{getattr(self, name):,} {name.partition('_')[0]} (+- {getattr(self, f'{name}_margin'):,})"
            )

        hours, rest = divmod(round(self.seconds), 3600)
        lines = [
            f"rows      {self.rows:,}, estimated from {self.sample_rows:,}",
            f"time      {hours}:{rest // 60:02}:{rest % 60:02} ({self.rows_per_second:,.1f} rows/s), "
            f"and {self.engine_start_seconds:.1f} s to start the engine",
            f"tokens    {tokens('prompt_tokens')}, {tokens('completion_tokens')}",
            f"errors    {self.error_rows:,} rows",
            f"output    {self.output_bytes / 1e6:,.1f} MB before compression",
            f"memory    {self.memory_bytes / 1e6:,.0f} MB, whatever the rows; without the engine's processes",
        ]
        return "\n".join(lines)


def estimate(
    data: Any,
    *,
    model: str | Engine,
    sample_rows: int = 256,
    engine: str = "sglang",
    engine_options: dict[str, Any] | None = None,
    **options: Any,
) -> Estimate:
    """Run a sample of the rows and say what all of them would take. Writes nothing.

    The sample is taken from the whole table, in up to sixteen pieces. It runs in two parts, so that what a job
    costs once, filling and draining the engine, is told from what each row costs. A sample much smaller than
    the rows that the engine can work on at once makes the time look longer than it will be.

    Args:
        data: as for `generate`; not a stream, which could be read only once. Files that do not say how many
            rows they have are read twice.
        model: as for `generate`.
        sample_rows: rows to run; all of them if there are fewer.
        engine: as for `generate`.
        engine_options: as for `generate`.
        **options: those of `generate`, or with `column` those of `embed`, but for where the output goes.

    Raises:
        BatchError: see `generate`.
    """
    if type(sample_rows) is not int or sample_rows < 2:
        raise OptionError(f"sample_rows={sample_rows!r}", "a whole number from 2")
    for name in _PLACES:
        if options.get(name) is not None:
            raise OptionError(f"{name} in an estimate", "the options that say what a row becomes")
    task: Task = "embed" if "column" in options else "generate"
    options |= {"progress": False, "return_summary": True}
    rows, sample = _sample(open_source(data), sample_rows)
    _check(task, sample.slice(0, 0), model, options)
    if not rows:
        return Estimate(0, 0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, _memory(), 0.0)
    first = max(1, len(sample) // _FIRST_SHARE)
    started = time.monotonic()
    with ExitStack() as stack:
        if isinstance(model, Engine):
            worker = model
        else:
            worker = create_engine(engine, model=model, task=task, options=engine_options)
            stack.enter_context(worker)
        ready = time.monotonic()
        pieces = [piece for piece in (sample.slice(0, first), sample.slice(first)) if len(piece)]
        parts = [_run(task, piece, worker, options) for piece in pieces]
    found = _scaled(rows, sample, parts, options.get("details_prefix", ""))
    return found if worker is model else replace(found, engine_start_seconds=ready - started)


def _check(task: Task, nothing: pa.Table, model: str | Engine, options: dict[str, Any]) -> None:
    """Run no row on an engine that can do anything: what only the model knows is left to it."""
    able: dict[str, Any] = {"max_input_tokens": sys.maxsize}
    dimensions = options.get("dimensions")
    if type(dimensions) is int and dimensions > 0:
        able["embedding_size"] = dimensions
    name = model.model if isinstance(model, Engine) else model
    engine = create_engine("dummy", model=name, task=task, options=able)
    engine.start()
    _run(task, nothing, engine, {name: value for name, value in options.items() if name != "prompt_name"})


def _run(task: Task, table: pa.Table, engine: Engine, options: dict[str, Any]) -> BatchResult:
    run = embed if task == "embed" else generate
    result: BatchResult = run(table, model=engine, **options)
    return result


def _sample(source: Source, wanted: int) -> tuple[int, pa.Table]:
    """Return how many rows there are, and some from all over the table."""
    _check_rereadable(source)
    rows = source.count()
    wanted = min(wanted, rows)
    pieces = min(_PIECES, max(1, wanted))
    batches: list[pa.RecordBatch] = []
    for piece in range(pieces):
        # Each piece from the middle of its share of the table; the cuts are those of the sample's own rows.
        count = wanted * (piece + 1) // pieces - wanted * piece // pieces
        start = rows * piece // pieces
        share = rows * (piece + 1) // pieces - start
        batches += _rows(source, start + (share - count) // 2, count, source.schema.names)
    return rows, pa.Table.from_batches(batches, schema=source.schema)


def _check_rereadable(source: Source) -> None:
    if not source.rereadable:
        raise SourceError(
            "a stream, which can be read only once", "a table, a frame or files", "estimate on a part of it"
        )


def _rows(source: Source, start: int, count: int | None, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with closing(_generator(source, start, columns)) as batches:
        yield from limit(batches, count)


def _generator(source: Source, start: int, columns: Sequence[str]) -> Generator[pa.RecordBatch, None, None]:
    yield from source.batches_from(columns, _READ_ROWS, start)


def _scaled(rows: int, sample: pa.Table, parts: list[BatchResult], prefix: str) -> Estimate:
    first, second = parts[0].summary, parts[-1].summary  # the same if the sample is of one row
    answers = pa.concat_tables([part.table for part in parts])
    scale = rows / len(sample)
    each = _seconds_per_row(first, second)
    fixed = max(0.0, second.seconds - each * second.rows)
    prompt, prompt_margin = _total(answers, f"{prefix}prompt_tokens", scale)
    completion, completion_margin = _total(answers, f"{prefix}completion_tokens", scale)
    return Estimate(
        rows=rows,
        sample_rows=len(sample),
        seconds=fixed + each * rows,
        rows_per_second=1 / each if each else math.inf,
        prompt_tokens=prompt,
        prompt_tokens_margin=prompt_margin,
        completion_tokens=completion,
        completion_tokens_margin=completion_margin,
        error_rows=round(scale * sum(part.summary.error_rows for part in parts)),
        output_bytes=round(scale * answers.nbytes),
        memory_bytes=_memory(),
        engine_start_seconds=0.0,
    )


def _seconds_per_row(first: JobSummary, second: JobSummary) -> float:
    """Return the slope between two runs; the mean of the larger one where noise makes it nonsense."""
    mean = second.seconds / max(1, second.rows)
    if second.rows <= first.rows:
        return mean
    slope = (second.seconds - first.seconds) / (second.rows - first.rows)
    return slope if 0 < slope <= mean else mean


def _total(answers: pa.Table, column: str, scale: float) -> tuple[int, int]:
    """Return a column's sum over the whole table, and its margin. A null counts as none."""
    if column not in answers.column_names:
        return 0, 0
    values = [value or 0 for value in answers.column(column).to_pylist()]
    count = len(values)
    mean = sum(values) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, count - 1))
    unseen = max(0.0, 1 - 1 / scale)  # a sample of everything is no sample
    margin = _BOUND * spread / math.sqrt(count) * math.sqrt(unseen) * count * scale
    return round(scale * sum(values)), round(margin)


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)
