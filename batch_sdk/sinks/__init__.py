"""The sinks' door."""

from __future__ import annotations

import os
from typing import Any

from batch_sdk.errors import OutputError
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
        output: None for a table in memory, of the input's kind; a path for Parquet.
        source: the job's input; its files may not be the output.
        overwrite: whether an existing output may be replaced.
        rows_per_file: rows of a part, if the output is a directory.

    Raises:
        OutputError: the output is not a path, is a URL, or is (or holds) one of the input's files.
    """
    if output is None:
        from batch_sdk.sinks.memory import MemorySink

        return MemorySink(source)
    if not isinstance(output, (str, os.PathLike)):
        raise OutputError(
            f"an output of type {type(output).__name__}", "a path, or None for a table in memory"
        )
    return _parquet_sink(os.fspath(output), source, overwrite, rows_per_file)


def _parquet_sink(output: str, source: Source, overwrite: bool, rows_per_file: int) -> Any:
    from batch_sdk.sinks.parquet import ParquetSink

    if "://" in output or not output:
        raise OutputError(f"the output {output!r}", "a local path")
    sink = ParquetSink(output, overwrite=overwrite, rows_per_file=rows_per_file)
    target = sink.target.resolve()
    for path in source.paths:
        read = path.resolve()
        if read == target or target in read.parents:
            raise OutputError(f"the output {output!r} is the input's own place", "another path")
    return sink
