"""What an output directory says of the job that writes it: what was asked for, and which rows are there.

Plain data, no files: `folder.py` puts it on the disk. Two manifests are of the same job if everything that
shapes the output is the same; how fast the rows are computed may differ.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import metadata
from typing import Any

import pyarrow as pa

from batch_sdk.chunks import Tally
from batch_sdk.engines.pace import shaping
from batch_sdk.errors import OutputError
from batch_sdk.job import GenerateJob, Job
from batch_sdk.sources.base import Source

# 1 had no options for a started engine.
FORMAT = 2
_READABLE = (1, 2)
# Fields of a job that leave the output's rows as they are.
_PACE_FIELDS = ("window_rows", "batch_rows", "block_rows", "order")
# Marks a pydantic model, which is told by its name and its schema.
CLASS_KEY = "$pydantic"
# Marks an engine option that is no data, a function say, which is told by its type.
OBJECT_KEY = "$object"
_SECRET = re.compile(r"(^|_)(key|token|secret|password|headers?)$")
_USER_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@")
_PACKAGES = ("arctic-sglang", "sglang")
_VALUE_CHARS = 60
UNKNOWN_INPUT = "a URL, a dataset, a stream or a lazy query"
BEGIN_ANEW = "delete the directory and begin anew, or choose another output"
"""What is left to do where the input is unknown: it might read what `overwrite` deletes."""


@dataclass(frozen=True, slots=True)
class Part:
    """A committed part file: rows `start` to `start + rows - 1` of the output, with their figures."""

    name: str
    start: int
    rows: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, start: int, tally: Tally) -> Part:
        """Return the record of a part with these figures."""
        return cls(name, start, tally.rows, tally.prompt_tokens, tally.completion_tokens, dict(tally.errors))

    def tally(self) -> Tally:
        """Return the figures."""
        return Tally(self.rows, self.prompt_tokens, self.completion_tokens, Counter(self.errors))


@dataclass(frozen=True, slots=True)
class Manifest:
    """A job and how far it is.

    Attributes:
        command: "generate" or "embed".
        job: the job's fields as plain data.
        engine: the engine's name.
        engine_options: of the last run, without secrets.
        versions: of the packages that shape the output.
        kept: the input columns that are passed through.
        input: the input's fingerprint; None if it cannot be recognised again, so that nothing can be resumed.
        input_rows: rows of the output when it is complete; None where only reading would tell.
        rows_per_file: of the last run.
        output_schema: name and type of every output column; empty until the engine has started.
        parts: what is committed, in order. Workers side by side leave gaps for a while: see `units.py`.
        complete: whether all rows are there.
        format: of the file that it was read from.
    """

    command: str
    job: dict[str, Any]
    engine: str
    engine_options: dict[str, Any]
    versions: dict[str, str]
    kept: tuple[str, ...]
    input: dict[str, Any] | None
    input_rows: int | None
    rows_per_file: int
    output_schema: tuple[tuple[str, str], ...] = ()
    parts: tuple[Part, ...] = ()
    complete: bool = False
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Committed rows."""
        return sum(part.rows for part in self.parts)

    @property
    def error_column(self) -> str:
        """Name of the column that says why a row has no result."""
        return f"{self.job['details_prefix']}error"

    def tally(self) -> Tally:
        """Return the committed rows, tokens and errors."""
        total = Tally()
        for part in self.parts:
            total.add(part.tally())
        return total

    def with_part(self, part: Part) -> Manifest:
        """Return the manifest with this part added, or in place of the one of its name."""
        names = [known.name for known in self.parts]
        if part.name not in names:
            return replace(self, parts=tuple(sorted((*self.parts, part), key=lambda known: known.start)))
        return replace(self, parts=tuple(part if p.name == part.name else p for p in self.parts))

    def to_json(self) -> str:
        """Return the manifest as a JSON text for people and programs."""
        data = {"format": self.format, **asdict(self)}
        text = json.dumps(data, indent=1, ensure_ascii=False)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # a file's name that is not UTF-8: escaped, it can be written
            return json.dumps(data, indent=1)
        return text

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Parse `to_json`'s text; `where` names the file in errors.

        Raises:
            OutputError: it is something else, or a later version's.
        """
        try:
            data = json.loads(text)
            known = data["format"]
            if known in _READABLE:
                data["kept"] = tuple(data["kept"])
                data["parts"] = tuple(Part(**part) for part in data["parts"])
                data["output_schema"] = tuple((name, kind) for name, kind in data["output_schema"])
                return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(f"{where!r} is no manifest of a batch job: {error}") from error
        raise OutputError(
            f"{where!r} has format {known}", f"format {FORMAT} at most", "use the version that wrote it"
        )


def describe_schema(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """Return the columns as the manifest has them."""
    return tuple((field.name, str(field.type)) for field in schema)


def describe_job(
    job: Job, source: Source, *, engine: str, engine_options: Mapping[str, Any], rows_per_file: int
) -> Manifest:
    """Return the manifest of a job that has not begun. Fingerprints the input, which may read a table once.

    Raises:
        OutputError: an option of the job is no plain data, so that it could not be read back.
    """
    known = public(engine_options)
    total = source.num_rows
    if job.limit_rows is not None:
        total = job.limit_rows if total is None else min(total, job.limit_rows)
    options = {name: _plain(getattr(job, name), name) for name in (f.name for f in fields(job))}
    # A path has to mean the same model from any working directory.
    options["model"] = os.path.realpath(job.model) if os.path.exists(job.model) else job.model
    return Manifest(
        command="generate" if isinstance(job, GenerateJob) else "embed",
        job=options,
        engine=engine,
        engine_options={name: _option(value, f"engine option {name}") for name, value in known.items()},
        versions=package_versions(),
        kept=tuple(source.schema.names if job.keep is None else job.keep),
        input=source.fingerprint(),
        input_rows=total,
        rows_per_file=rows_per_file,
    )


def public(engine_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may be written down: those that do not look like secrets, and URLs without a user."""
    return {name: _without_user(value) for name, value in engine_options.items() if not _SECRET.search(name)}


def _without_user(value: Any) -> Any:
    if isinstance(value, str):
        return _USER_IN_URL.sub("", value)
    if isinstance(value, (list, tuple)):
        return [_without_user(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _without_user(item) for key, item in value.items()}
    return value


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that shape an output."""
    return {name: version(name) for name in _PACKAGES}


@functools.cache
def version(package: str) -> str:
    """Return an installed package's version, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _plain(value: Any, name: str) -> Any:
    """Return the value as JSON has it: tuples as lists, dataclasses as objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return {CLASS_KEY: f"{value.__module__}:{value.__qualname__}", "schema": value.model_json_schema()}
    raise OutputError(
        f"{name} is a {type(value).__name__}, which a job's manifest cannot hold",
        "plain data",
        "write to one file (NAME.parquet)",
    )


def _option(value: Any, name: str) -> Any:
    try:
        return _plain(value, name)
    except OutputError:
        kind = value if isinstance(value, type) or callable(value) else type(value)
        return {OBJECT_KEY: f"{kind.__module__}:{getattr(kind, '__qualname__', type(value).__qualname__)}"}


def differences(then: Manifest, now: Manifest) -> list[str]:
    """Return what shapes the output and is not the same, one phrase each; empty if the job is the same."""
    if then.command != now.command:
        return [_differs("the command", then.command, now.command)]
    found = [
        _differs(name, then.job.get(name), now.job.get(name))
        for name in sorted({*then.job, *now.job} - {*_PACE_FIELDS, "sampling"})
        if then.job.get(name) != now.job.get(name)
    ]
    found += _changed(then.job.get("sampling", {}), now.job.get("sampling", {}), "{}")
    if then.engine != now.engine:
        found.append(_differs("engine", then.engine, now.engine))
    if then.engine_options or then.format > 1:
        old, new = (shaping(m.engine, m.engine_options) for m in (then, now))
        found += _changed(old, new, "engine option {}")
    found += _changed(then.versions, now.versions, "the version of {}")
    if then.output_schema and now.output_schema:
        found += _changed(dict(then.output_schema), dict(now.output_schema), "the type of column {!r}")
        if not found and then.output_schema != now.output_schema:
            found.append("the order of the columns")
    return found + _input_differences(then.input, now.input)


def _differs(name: str, then: Any, now: Any) -> str:
    return f"{name} was {_short(then)} and is {_short(now)}"


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], label: str) -> list[str]:
    names = [*then, *(name for name in now if name not in then)]
    return [
        _differs(label.format(name), then.get(name), now.get(name))
        for name in names
        if then.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}..."


def _input_differences(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    if then is None or now is None:
        return [f"the input is {UNKNOWN_INPUT}, which cannot be recognised again"]
    if then == now:
        return []
    if "files" not in then or "files" not in now:
        kinds = ["files" if "files" in known else "a table in memory" for known in (then, now)]
        if kinds[0] != kinds[1]:
            return [f"the input was {kinds[0]} and is {kinds[1]}"]
        return _changed(then, now, "the input's {}")
    return _file_differences(then["files"], now["files"])


def _file_differences(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    old = {file["path"]: file for file in then}
    new = {file["path"]: file for file in now}
    found = [f"input file {path!r} is gone" for path in old if path not in new]
    found += [f"input file {path!r} is new" for path in new if path not in old]
    found += [
        f"input file {path!r} has changed (was {_stamp(file)}, is {_stamp(new[path])})"
        for path, file in old.items()
        if path in new and file != new[path]
    ]
    return found or ["the order of the input files"]


def _stamp(file: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in file.items() if name != "path")
