"""The sinks' door."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from batch_sdk.errors import OptionError, OutputError
from batch_sdk.kinds import format_of
from batch_sdk.remote import file_system, is_url, plain
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source

if TYPE_CHECKING:
    from batch_sdk.manifest import Manifest

__all__ = ["Resume", "Sink", "open_lines_sink", "open_sink"]

Resume = bool | Literal["errors"]


def open_sink(
    output: str | os.PathLike[str] | Callable[[pa.RecordBatch], Any] | None,
    source: Source,
    describe: Callable[[], Manifest],
    *,
    overwrite: bool = False,
    resume: Resume = False,
    rows_per_file: int = 100_000,
    part_seconds: float = 300.0,
) -> Sink:
    """Return the sink for an output.

    Args:
        output: None for a table in memory, of the input's kind; a function that takes each record batch; a path
            or URL whose ending chooses a file of Parquet, Arrow or JSONL; any other local path for a directory of
            Parquet parts.
        source: the job's input; its files may not be the output.
        describe: returns the job's manifest; asked only for a directory.
        overwrite: whether an existing output may be replaced.
        resume: True to go on with a directory that the same job began, "errors" to compute the error rows of
            a finished one again.
        rows_per_file: rows of a part at most, if the output is a directory.
        part_seconds: time after which a part is closed, if the output is a directory.

    Raises:
        OptionError: options that do not go together.
        OutputError: the output is not a path, is of a kind that is not written, or is (or holds) one of the
            input's files, or could be.
    """
    if resume not in (True, False, "errors"):
        raise OptionError(f"resume={resume!r}", "True, False or 'errors'")
    if resume and overwrite:
        raise OptionError("resume together with overwrite", "one of them")
    if output is None:
        if resume:
            raise OptionError("resume without an output", "output=, a directory")
        from batch_sdk.sinks.memory import MemorySink

        return MemorySink(source)
    if callable(output):
        if resume or overwrite:
            raise OptionError("resume or overwrite with a function as the output", "a directory to resume")
        from batch_sdk.sinks.calls import CallSink

        return CallSink(output)
    if not isinstance(output, (str, os.PathLike)):
        raise OutputError(
            f"an output of type {type(output).__name__}",
            "a path, a function that takes record batches, or None for a table in memory",
        )
    path = _checked(os.fspath(output), source)
    found = format_of(path)
    if found is not None or is_url(path):
        return _file_sink(path, overwrite, resume)
    from batch_sdk.sinks.parts import PartsSink
    from batch_sdk.sinks.patch import PatchSink

    if overwrite and not source.traced:
        _refuse_overwriting(path)
    if resume == "errors":
        return PatchSink(path, describe)
    return PartsSink(
        path,
        describe,
        overwrite=overwrite,
        resume=bool(resume),
        rows_per_file=rows_per_file,
        part_seconds=part_seconds,
        traced=source.traced,
    )


def _refuse_overwriting(path: str) -> None:
    """Raise `OutputError` for a directory with files, which go before the input has been read."""
    if os.path.isdir(path) and os.listdir(path):
        raise OutputError(
            f"overwriting directory {path!r}, which the input may read: of a lazy frame, a stream or such a dataset"
            " nobody can tell",
            "a new path",
            "or delete the directory first, or name the input's files as paths",
        )


def _file_sink(path: str, overwrite: bool, resume: Resume) -> Sink:
    if resume:
        raise OutputError(
            f"the output {path!r} is one file, which is written whole or not at all", "a directory to resume"
        )
    found = format_of(path)
    if not is_url(path) and found is not None and found.kind == "parquet":
        from batch_sdk.sinks.parquet import ParquetSink

        return ParquetSink(path, overwrite=overwrite)
    from batch_sdk.sinks.files import file_sink

    return file_sink(path, overwrite)


def open_lines_sink(output: str | os.PathLike[str], source: Source, *, overwrite: bool = False) -> Sink:
    """Return the sink for batches of one string column that are written as lines, as they are.

    Raises:
        OutputError: the output is no JSONL file, or is one of the input's files.
    """
    from batch_sdk.sinks.files import lines_sink

    return lines_sink(_checked(os.fspath(output), source), overwrite)


def _checked(output: str, source: Source) -> str:
    """Return the path without `file://`, or the URL; raise `OutputError` if it is the input's own."""
    if not output:
        raise OutputError("the output ''", "a path")
    if is_url(output):
        system, path = file_system(output, OutputError)
        own = system.unstrip_protocol(path) in source.urls
    else:
        output = plain(output)
        target = Path(output).resolve()
        own = any(read == target or target in read.parents for read in (p.resolve() for p in source.paths))
    if own:
        raise OutputError(f"the output {output!r} is the input's own place", "another path")
    return output
