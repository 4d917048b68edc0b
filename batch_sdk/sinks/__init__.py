"""The sinks' door."""

from __future__ import annotations

import os
from pathlib import Path

from batch_sdk.errors import OutputError
from batch_sdk.kinds import format_of
from batch_sdk.remote import is_url, plain
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source

__all__ = ["Sink", "open_sink"]


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
    return _path_sink(os.fspath(output), source, overwrite, rows_per_file)


def _path_sink(output: str, source: Source, overwrite: bool, rows_per_file: int) -> Sink:
    if not output:
        raise OutputError("the output ''", "a path")
    found = format_of(output)
    if is_url(output):
        if output in source.urls:
            raise OutputError(f"the output {output!r} is the input's own place", "another path")
        from batch_sdk.sinks.files import url_sink

        return url_sink(output, found, overwrite)
    output = plain(output)
    target = Path(output).resolve()
    for path in source.paths:
        read = path.resolve()
        if read == target or target in read.parents:
            raise OutputError(f"the output {output!r} is the input's own place", "another path")
    if found is None or found.kind == "parquet":
        from batch_sdk.sinks.parquet import ParquetSink

        return ParquetSink(output, overwrite=overwrite, rows_per_file=rows_per_file)
    from batch_sdk.sinks.files import local_sink

    return local_sink(output, found, overwrite)
