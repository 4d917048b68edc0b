"""Parquet files: one, several, a glob or a directory, read in the order of their names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk.errors import SourceError
from batch_sdk.folder import is_unfinished
from batch_sdk.sources.base import Source, fingerprint_file

PathLike = str | os.PathLike[str]


def find_files(spec: PathLike) -> list[Path]:
    """Return the Parquet files that one path, directory or glob means, sorted by name.

    Files and directories whose names begin with `_` or `.` are somebody's bookkeeping and are left out of
    directories.

    Raises:
        SourceError: nothing there, or a layout that is not read yet.
    """
    text = os.fspath(spec)
    if "://" in text:
        raise SourceError(f"{text!r} is a URL", "a local path, directory or glob")
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_below(path)
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())
    if not found:
        raise SourceError(f"no file matches {text!r}", "a Parquet file, a directory of them, or a glob")
    return found


def _files_below(folder: Path) -> list[Path]:
    if is_unfinished(folder):
        raise SourceError(
            f"{str(folder)!r} is the output of a job that has not finished",
            "a finished one",
            "resume it first, or name its files (a glob) to read those that are there",
        )
    files = []
    for file in sorted(folder.rglob("*.parquet")):
        inner = file.relative_to(folder)
        if any(part.startswith(("_", ".")) for part in inner.parts) or not file.is_file():
            continue
        if any("=" in part for part in inner.parts[:-1]):
            raise SourceError(
                f"{str(folder)!r} is partitioned by directory ({inner.parts[0]})",
                "files that hold all their columns",
                "pass a polars.scan_parquet(..., hive_partitioning=True) instead",
            )
        files.append(file)
    if not files:
        raise SourceError(f"no .parquet file in directory {str(folder)!r}", "at least one")
    return files


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{str(path)!r} cannot be read as Parquet: {error}", "a Parquet file") from error


class ParquetSource(Source):
    """Parquet files with one schema; only footers are read on opening."""

    def __init__(self, specs: Sequence[PathLike]) -> None:
        files = [file for spec in specs for file in find_files(spec)]
        if not files:
            raise SourceError("an empty list of paths", "at least one Parquet file")
        self.paths = tuple(files)
        self._rows: list[int] = []
        for file in files:
            with _open(file) as opened:
                if not self._rows:
                    self._schema = opened.schema_arrow
                else:
                    self._check_same(file, opened.schema_arrow)
                self._rows.append(opened.metadata.num_rows)

    def _check_same(self, file: Path, schema: pa.Schema) -> None:
        first = self.paths[0]
        here, there = set(schema.names), set(self._schema.names)
        if here != there:
            wrong = sorted(here ^ there)[0]
            raise SourceError(
                f"{str(file)!r} {'has' if wrong in here else 'lacks'} column {wrong!r}",
                f"the columns of {str(first)!r}",
            )
        for field in self._schema:
            kind = schema.field(field.name).type
            if kind != field.type:
                raise SourceError(
                    f"column {field.name!r} of {str(file)!r} has type {kind}",
                    f"{field.type}, as in {str(first)!r}",
                )

    @property
    def schema(self) -> pa.Schema:
        """The first file's, which all others share."""
        return self._schema

    @property
    def num_rows(self) -> int:
        """Rows of all files, from their footers."""
        return sum(self._rows)

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the files' rows one file after another; only these columns are read from disk."""
        yield from self.batches_from(columns, max_rows, 0)

    def fingerprint(self) -> dict[str, Any]:
        """Add the rows to what is known of any file."""
        files = zip(self.paths, self._rows, strict=True)
        return {"files": [{**fingerprint_file(path), "rows": rows} for path, rows in files]}

    def batches_from(self, columns: Sequence[str], max_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from `start` on; files and row groups before it are not read."""
        for file, rows in zip(self.paths, self._rows, strict=True):
            if start < rows:
                yield from _read(file, list(columns), max_rows, start)
            start = max(0, start - rows)


def _read(file: Path, wanted: list[str], max_rows: int, start: int) -> Iterator[pa.RecordBatch]:
    with _open(file) as opened:
        groups = list(range(opened.num_row_groups))
        while groups and start >= opened.metadata.row_group(groups[0]).num_rows:
            start -= opened.metadata.row_group(groups.pop(0)).num_rows
        pieces = opened.iter_batches(batch_size=max_rows, columns=wanted, row_groups=groups)
        while True:
            try:
                batch = next(pieces)
            except StopIteration:
                break
            except (pa.ArrowException, OSError) as error:
                raise SourceError(f"{str(file)!r} is damaged: {error}") from error
            skipped = min(start, batch.num_rows)
            start -= skipped
            # Parquet finds columns by path prefix and returns them in the file's order.
            yield batch.select(wanted).slice(skipped)
