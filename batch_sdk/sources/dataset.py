"""A `pyarrow.dataset.Dataset`: files, partitions and filters as the user has put them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from batch_sdk.errors import SourceError
from batch_sdk.sources.base import Source
from batch_sdk.sources.views import plain_batch, plain_schema

# Batches that are read before they are asked for, of one file.
_AHEAD = 2


def _local_files(dataset: ds.Dataset) -> list[Path] | None:
    """Return the files that a dataset reads, or None if they are not all on this machine and known."""
    if isinstance(dataset, ds.UnionDataset):
        parts = [_local_files(child) for child in dataset.children]
        return None if None in parts else [path for part in parts for path in part or ()]
    if isinstance(dataset, ds.FileSystemDataset) and isinstance(dataset.filesystem, LocalFileSystem):
        return [Path(name) for name in dataset.files]
    return None


class DatasetSource(Source):
    """Reads the columns and rows that a dataset says, in its order. Its files do not tell its rows: it may filter."""

    def __init__(self, dataset: ds.Dataset) -> None:
        self._dataset = dataset
        files = _local_files(dataset)
        self.traced = files is not None
        self.paths = tuple(files or ())

    @property
    def schema(self) -> pa.Schema:
        """The dataset's."""
        return plain_schema(self._dataset.schema)

    @property
    def num_rows(self) -> None:
        """A filter would have to be run."""
        return None

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what the dataset's scanner gives; only these columns are read."""
        options = {"batch_size": max_rows, "batch_readahead": _AHEAD, "fragment_readahead": 1}
        if isinstance(getattr(self._dataset, "format", None), ds.ParquetFileFormat):
            # Else what is read ahead of a file stays in memory until its end.
            options["fragment_scan_options"] = ds.ParquetFragmentScanOptions(pre_buffer=False)
        try:
            yield from map(plain_batch, self._dataset.scanner(columns=list(columns), **options).to_batches())
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"the dataset cannot be read: {error}") from error

    def fingerprint(self) -> dict[str, Any] | None:
        """Nothing would recognise its filters, so a job on it cannot be resumed."""
        return None
