"""The output as one Parquet file, or as a directory of parts.

Everything is written under a hidden name beside the target, flushed to disk, and renamed at the end. A job
that stops half-way leaves nothing that looks like a result.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk.errors import OutputError
from batch_sdk.sinks.base import Sink

_PART_NAME = re.compile(r"part-\d{5,}\.parquet")
# A row group is closed at either bound: large enough to compress and scan well, small enough to hold in
# memory.
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 << 20


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn a full or vanished disk into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{str(target)!r} cannot be written: {error}", "a disk with room") from error


def _sync(path: Path) -> None:
    """Flush a file's or a directory's contents to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ParquetSink(Sink):
    """Writes to `target`.

    Args:
        target: a path ending in `.parquet` is one file; any other is a directory of `part-00000.parquet` and
            so on.
        overwrite: whether an existing output may be replaced. A directory is replaced only if it holds
            nothing but such parts.
        rows_per_file: rows of a part; the last may have fewer.
    """

    def __init__(
        self, target: str | os.PathLike[str], *, overwrite: bool = False, rows_per_file: int = 1_000_000
    ) -> None:
        if type(rows_per_file) is not int or rows_per_file < 1:
            raise OutputError(f"rows_per_file={rows_per_file!r}", "a whole number from 1")
        self.target = Path(os.path.abspath(target))
        self._single = self.target.suffix == ".parquet"
        self._overwrite = overwrite
        self._rows_per_file = rows_per_file
        self._staging = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._parts = 0
        self._part_rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0

    def prepare(self, schema: pa.Schema) -> None:
        """Check that the target is free, its parent can be written, and Parquet has all the types."""
        self._check_free()
        try:
            pq.ParquetWriter(io.BytesIO(), schema).close()
        except pa.ArrowException as error:
            raise OutputError(
                f"Parquet cannot hold the output: {error}", remedy="leave that column out with keep=[...]"
            ) from error
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{str(self.target.parent)!r} cannot be made: {error.strerror}") from error
        if not os.access(self.target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{str(self.target.parent)!r} is not writable", "a directory that is")

    def _check_free(self) -> None:
        target = self.target
        if not os.path.lexists(target) or (
            not self._single and target.is_dir() and not any(target.iterdir())
        ):
            return
        if not self._overwrite:
            raise OutputError(
                f"{str(target)!r} exists", "a new path", "pass overwrite=True (--overwrite) to replace it"
            )
        if self._single != target.is_file():
            wanted = "a file" if self._single else "a directory"
            raise OutputError(f"{str(target)!r} exists and is not {wanted}", remedy="choose another output")
        if self._single:
            return
        for entry in sorted(target.iterdir()):
            if not _PART_NAME.fullmatch(entry.name):
                raise OutputError(
                    f"directory {str(target)!r} holds {entry.name!r}, which no job wrote",
                    "a directory of part files only",
                    "choose another output",
                )

    def open(self, schema: pa.Schema) -> None:
        """Begin the first part."""
        self._schema = schema
        with _disk_errors(self.target):
            if not self._single:
                self._staging.mkdir()
            self._open_part()

    def _part_path(self) -> Path:
        return self._staging if self._single else self._staging / f"part-{self._parts:05d}.parquet"

    def _open_part(self) -> None:
        self._writer = pq.ParquetWriter(self._part_path(), self._schema, compression="zstd")
        self._part_rows = 0

    def _close_part(self) -> None:
        self._flush()
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        _sync(self._part_path())
        self._parts += 1

    def _flush(self) -> None:
        if not self._pending:
            return
        assert self._writer is not None
        table = pa.Table.from_batches(self._pending, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, self._pending_rows))
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Buffer the rows up to one row group; start the next part where this one is full."""
        with _disk_errors(self.target):
            self._write(batch)

    def _write(self, batch: pa.RecordBatch) -> None:
        start = 0
        while start < batch.num_rows:
            if not self._single and self._part_rows == self._rows_per_file:
                self._close_part()
                self._open_part()
            room = batch.num_rows if self._single else self._rows_per_file - self._part_rows
            piece = batch.slice(start, room)
            start += piece.num_rows
            self._part_rows += piece.num_rows
            self._pending.append(piece)
            self._pending_rows += piece.num_rows
            self._pending_bytes += piece.nbytes
            if self._pending_rows >= _GROUP_ROWS or self._pending_bytes >= _GROUP_BYTES:
                self._flush()

    def commit(self) -> str:
        """Close the last part, put everything in its place and return the path."""
        with _disk_errors(self.target):
            self._close_part()
            self._check_free()
            if self._single:
                os.replace(self._staging, self.target)
            else:
                _sync(self._staging)
                self._swap_directory()
            _sync(self.target.parent)
        return str(self.target)

    def _swap_directory(self) -> None:
        if not self.target.exists() or not any(self.target.iterdir()):
            os.rename(self._staging, self.target)
            return
        # A directory that is not empty cannot be replaced in one step: move the old one aside, and only
        # delete it when the new one is in place.
        old = self._staging.with_suffix(".old")
        os.rename(self.target, old)
        os.rename(self._staging, self.target)
        shutil.rmtree(old)

    def abort(self) -> None:
        """Delete what was written."""
        if self._writer is not None:
            with suppress(OSError):  # the footer of a file that is deleted next may not fit a full disk
                self._writer.close()
            self._writer = None
        self._pending = []
        if self._staging.is_dir():
            shutil.rmtree(self._staging)
        else:
            self._staging.unlink(missing_ok=True)
