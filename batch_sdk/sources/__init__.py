"""The sources' door: anything tabular in, a `Source` out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_sdk.errors import SourceError
from batch_sdk.kinds import FileKind
from batch_sdk.sources.base import Source

if TYPE_CHECKING:
    from batch_sdk.sources.files import File

__all__ = ["Source", "open_recorded", "open_source"]


def open_source(data: Any) -> Source:
    """Open a table, a frame, a stream or paths for reading; reads no rows.

    Args:
        data: a Polars DataFrame or LazyFrame; a pyarrow Table, RecordBatch, RecordBatchReader or Dataset;
            anything with `__arrow_c_stream__`; a path, URL, glob or directory of Parquet, Arrow, JSONL, CSV or TSV
            files, or a list of these; a `Source`.

    Raises:
        SourceError: `data` is none of these, or cannot be read.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        from batch_sdk.sources.arrow import TableSource

        return TableSource(data)
    polars = sys.modules.get("polars")  # whoever holds a frame has imported it
    if polars is not None and isinstance(data, (polars.DataFrame, polars.LazyFrame)):
        from batch_sdk.sources.polars import FrameSource, LazySource

        return FrameSource(data) if isinstance(data, polars.DataFrame) else LazySource(data)
    datasets = sys.modules.get("pyarrow.dataset")
    if datasets is not None and isinstance(data, datasets.Dataset):
        from batch_sdk.sources.dataset import DatasetSource

        return DatasetSource(data)
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    if isinstance(data, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in data):
        return _open_files(data)
    if hasattr(data, "__arrow_c_stream__"):
        from batch_sdk.sources.arrow import StreamSource

        return StreamSource(data)
    raise SourceError(
        f"an input of type {type(data).__name__}",
        "a Polars frame, a pyarrow table or dataset, an object with __arrow_c_stream__, or paths of files",
    )


def _open_files(specs: Sequence[str | os.PathLike[str]]) -> Source:
    from batch_sdk.sources.files import find_files

    return _source_of(find_files(specs))


def open_recorded(files: Sequence[Mapping[str, Any]]) -> Source:
    """Open the files of a fingerprint (`Source.fingerprint`) again. Raises `SourceError` if they cannot be read."""
    from batch_sdk.sources.files import recorded

    return _source_of([recorded(file["path"], file.get("partitions", {})) for file in files])


def _source_of(files: Sequence[File]) -> Source:
    from batch_sdk.sources.csv import DelimitedSource
    from batch_sdk.sources.ipc import ArrowSource
    from batch_sdk.sources.jsonl import JsonLinesSource
    from batch_sdk.sources.parquet import ParquetSource
    from batch_sdk.sources.tables import FileSource

    readers: dict[FileKind, type[FileSource]] = {
        "parquet": ParquetSource,
        "arrow": ArrowSource,
        "jsonl": JsonLinesSource,
        "csv": DelimitedSource,
        "tsv": DelimitedSource,
    }
    return readers[files[0].format.kind](files)
