"""What a run is about, as plain data for its report and its metrics. Nothing in it is read from the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from batch_sdk.engines import engine_name
from batch_sdk.engines.base import Engine
from batch_sdk.job import GenerateJob, Job
from batch_sdk.manifest import public, version
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source

_PACKAGES = ("arctic-sglang", "sglang", "torch", "pyarrow", "polars")
_INPUTS_NAMED = 20


@dataclass(frozen=True, slots=True)
class Facts:
    """One run of a job.

    Attributes:
        command: "generate" or "embed".
        job: the job's fields that are set.
        engine: the engine's name.
        engine_options: without secrets.
        versions: of Python and the packages.
        inputs: the first twenty files or URLs; empty for a table in memory.
        input_files: how many there are.
        total_rows: rows of the job; None where only reading would tell.
        output: path, or None for a table in memory.
    """

    command: str
    job: dict[str, Any]
    engine: str
    engine_options: dict[str, Any]
    versions: dict[str, str]
    inputs: tuple[str, ...]
    input_files: int
    total_rows: int | None
    output: str | None


def total_rows(job: Job, source: Source) -> int | None:
    """Return how many rows a job has in the end; None where only reading would tell."""
    total = source.num_rows
    if job.limit_rows is None:
        return total
    return job.limit_rows if total is None else min(total, job.limit_rows)


def describe_run(job: Job, source: Source, sink: Sink, engine: Engine, options: Mapping[str, Any]) -> Facts:
    """Return the facts of a run that is about to begin."""
    inputs = [*map(str, source.paths), *source.urls]
    return Facts(
        command="generate" if isinstance(job, GenerateJob) else "embed",
        job={f.name: as_data(getattr(job, f.name)) for f in fields(job) if getattr(job, f.name) is not None},
        engine=engine_name(engine),
        engine_options={name: as_data(value) for name, value in public(options).items()},
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        inputs=tuple(inputs[:_INPUTS_NAMED]),
        input_files=len(inputs),
        total_rows=total_rows(job, source),
        output=sink.where,
    )


def as_data(value: Any) -> Any:
    """Return the value as JSON can hold it. What it cannot is told by its `repr`, as nobody reads it back."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: as_data(item) for name, item in asdict(value).items() if item is not None}
    if isinstance(value, Mapping):
        return {str(name): as_data(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(item) for item in value]
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return value.model_json_schema()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
