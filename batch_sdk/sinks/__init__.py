"""The sinks' door."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from batch_sdk.errors import OptionError, OutputError
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source

if TYPE_CHECKING:
    from batch_sdk.manifest import Manifest

__all__ = ["Resume", "Sink", "open_sink"]

Resume = bool | Literal["errors"]


def open_sink(
    output: str | os.PathLike[str] | None,
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
        output: None for a table in memory, of the input's kind; a path ending in `.parquet` for one file; any
            other path for a directory of parts.
        source: the job's input; its files may not be the output.
        describe: returns the job's manifest; asked only for a directory.
        overwrite: whether an existing output may be replaced.
        resume: True to go on with a directory that the same job began, "errors" to compute the error rows of
            a finished one again.
        rows_per_file: rows of a part at most, if the output is a directory.
        part_seconds: time after which a part is closed, if the output is a directory.

    Raises:
        OptionError: options that do not go together.
        OutputError: the output is not a path, is a URL, or is (or holds) one of the input's files.
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
    if not isinstance(output, (str, os.PathLike)):
        raise OutputError(
            f"an output of type {type(output).__name__}", "a path, or None for a table in memory"
        )
    path = os.fspath(output)
    if "://" in path or not path:
        raise OutputError(f"the output {path!r}", "a local path")
    _refuse_input(path, source)
    if path.endswith(".parquet"):
        from batch_sdk.sinks.parquet import ParquetSink

        if resume:
            raise OutputError(
                f"the output {path!r} is one file, which is written whole or not at all",
                "a directory to resume",
            )
        return ParquetSink(path, overwrite=overwrite)
    from batch_sdk.sinks.parts import PartsSink
    from batch_sdk.sinks.patch import PatchSink

    if resume == "errors":
        return PatchSink(path, describe)
    return PartsSink(
        path,
        describe,
        overwrite=overwrite,
        resume=bool(resume),
        rows_per_file=rows_per_file,
        part_seconds=part_seconds,
    )


def _refuse_input(output: str, source: Source) -> None:
    target = Path(os.path.abspath(output)).resolve()
    for path in source.paths:
        read = path.resolve()
        if read == target or target in read.parents:
            raise OutputError(f"the output {output!r} is the input's own place", "another path")
