"""OpenAI batch files: the lines of an input file in, the lines of an output file out.

import batch_sdk

batch_sdk.run_openai_batch("requests.jsonl", "answers.jsonl", model="path/of/model")
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from batch_sdk.api import _engine, _model_name
from batch_sdk.engines import Engine
from batch_sdk.engines.base import Task
from batch_sdk.errors import OptionError, SourceError
from batch_sdk.job import Job
from batch_sdk.look import Look
from batch_sdk.openai_batch.chunk import INPUT, BatchFilePlan
from batch_sdk.openai_batch.requests import TASKS, Call, parse
from batch_sdk.runner import run_job
from batch_sdk.sinks import open_lines_sink
from batch_sdk.sources.files import File, PathLike, find_files
from batch_sdk.sources.jsonl import blocks
from batch_sdk.sources.tables import FileSource
from batch_sdk.summary import JobSummary

__all__ = ["run_openai_batch"]


class LinesSource(FileSource):
    """Text files as rows of bytes, one for each line that is not blank; nothing is parsed."""

    def _inspect(self) -> pa.Schema:
        for file in self._files:
            with file.open():
                pass
        return INPUT

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        for block in blocks(file):
            found = [
                (line, block.line + offset)
                for offset, line in enumerate(block.data.split(b"\n"))
                if line.strip()
            ]
            lines = pa.array([line for line, _ in found], pa.binary())
            numbers = pa.array([number for _, number in found], pa.int64())
            yield pa.RecordBatch.from_arrays([lines, numbers], schema=INPUT)


def _first_task(source: LinesSource) -> Task:
    """Return the task of the first request that can be understood; generate, if none can."""
    for batch in source.batches(INPUT.names, 1):
        for line in batch.column("line").to_pylist():
            call = parse(line, 1)
            if isinstance(call, Call):
                return TASKS[call.url]
    return "generate"


def run_openai_batch(
    data: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    model: str | Engine,
    engine: str = "sglang",
    engine_options: dict[str, Any] | None = None,
    default_max_tokens: int = 1024,
    window_rows: int = 2048,
    limit_rows: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> JobSummary:
    """Run a file made for the OpenAI or vLLM batch API; see `docs/batch-tables.md` for what is understood.

    Every line that is not blank becomes one line of the output, in the same order. A line that makes no
    sense, or asks for what is not supported, becomes an answer with an error and the same `custom_id` (or
    `line-7` where line 7 has none). All requests run on `model`, whatever model their bodies name.

    Args:
        data: path, URL, glob or directory of JSONL files, or a list of these.
        output: path or URL that ends in .jsonl, .jsonl.gz or .jsonl.zst.
        model: path or hub name; or a started `Engine`. Generates or embeds as the first good line asks.
        engine: "sglang", "http" or "dummy".
        engine_options: the engine's own options.
        default_max_tokens: tokens of an answer to a chat that sets no limit.
        window_rows: how far the engine's newest line may run ahead of the oldest unfinished one.
        limit_rows: stop after so many lines.
        overwrite: replace an existing output.
        progress: show a progress bar on stderr; None shows it on a terminal.

    Raises:
        BatchError: as for `generate`.
    """
    if type(default_max_tokens) is not int or default_max_tokens < 1:
        raise OptionError(f"default_max_tokens={default_max_tokens!r}", "a whole number from 1")
    job = Job(model=_model_name(model), keep=(), window_rows=window_rows, limit_rows=limit_rows)
    source = _open(data)
    sink = open_lines_sink(output, source, overwrite=overwrite)
    plan = BatchFilePlan(job, _first_task(source), default_max_tokens)
    runner = _engine(model, engine, engine_options, plan.task)
    _, summary = run_job(job, plan, source, sink, runner, look=Look(progress=progress))
    return summary


def _open(data: PathLike | Sequence[PathLike]) -> LinesSource:
    files = find_files([data] if isinstance(data, (str, os.PathLike)) else data)
    if files[0].format.kind != "jsonl":
        raise SourceError(f"{files[0].name!r} is {files[0].format.kind}", "a JSONL file of requests")
    return LinesSource(files)
