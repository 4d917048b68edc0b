"""The sinks' door."""

from __future__ import annotations

import os
from pathlib import Path

from batch_sdk.errors import OutputError
from batch_sdk.kinds import format_of
from batch_sdk.remote import file_system, is_url, plain
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source

__all__ = ["Sink", "open_lines_sink", "open_sink"]


def open_sink(
    output: str | os.PathLike[str] | None,
    source: Source,
    *,
    overwrite: bool = False,
    rows_per_file: int = 1_000_000,
) -> Sink:
    """Return the sink for an output.

    Args:
        output: None for a table in memory, of the input's kind; a path or URL whose ending chooses a file of
            Parquet, Arrow or JSONL; any other local path for a directory of Parquet parts.
        source: the job's input; its files may not be the output.
        overwrite: whether an existing output may be replaced.
        rows_per_file: rows of a part, if the output is a directory.

    Raises:
        OutputError: the output is not a path, is of a kind that is not written, or is (or holds) one of the
            input's files.
    """
    if output is None:
        from batch_sdk.sinks.memory import MemorySink

        return MemorySink(source)
    if not isinstance(output, (str, os.PathLike)):
        raise OutputError(
            f"an output of type {type(output).__name__}", "a path, or None for a table in memory"
        )
    path = _checked(os.fspath(output), source)
    found = format_of(path)
    if not is_url(path) and (found is None or found.kind == "parquet"):
        from batch_sdk.sinks.parquet import ParquetSink

        return ParquetSink(path, overwrite=overwrite, rows_per_file=rows_per_file)
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
