"""The output as one Parquet file: written under a hidden name beside the target, flushed, and renamed at the
end. A job that stops half-way leaves nothing that looks like a result."""

from __future__ import annotations

import io
import os
import uuid
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk.errors import OutputError
from batch_sdk.folder import disk_errors, sync
from batch_sdk.sinks.base import Sink

# A row group is closed at either bound: large enough to compress and scan well, small enough to hold in
# memory.
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 << 20


def check_types(schema: pa.Schema) -> None:
    """Raise `OutputError` unless Parquet has all the types."""
    try:
        pq.ParquetWriter(io.BytesIO(), schema).close()
    except pa.ArrowException as error:
        raise OutputError(
            f"Parquet cannot hold the output: {error}", remedy="leave that column out with keep=[...]"
        ) from error


def check_parent(target: Path) -> None:
    """Make the directory that is to hold `target`. Raises `OutputError` if it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{str(target.parent)!r} cannot be made: {error.strerror}") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{str(target.parent)!r} is not writable", "a directory that is")


class RowGroupWriter:
    """One Parquet file, written in row groups of a sensible size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Buffer the rows, up to one row group."""
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes
        if self._pending_rows >= _GROUP_ROWS or self._pending_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, schema=self._schema)
            self._writer.write_table(table, row_group_size=max(1, self._pending_rows))
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def close(self) -> None:
        """Write what is buffered, and the footer."""
        self._flush()
        self._writer.close()

    def drop(self) -> None:
        """Close the file without what is buffered: it is to be deleted."""
        with suppress(OSError):  # the footer may not fit a full disk
            self._writer.close()


class ParquetSink(Sink):
    """Writes one file, `target`.

    Args:
        target: the file's path.
        overwrite: whether an existing file may be replaced.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        self.where = str(self.target)
        self._overwrite = overwrite
        self._staging = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._writer: RowGroupWriter | None = None

    def prepare(self, schema: pa.Schema) -> None:
        """Check that the target is free, its parent can be written, and Parquet has all the types."""
        self._check_free()
        check_types(schema)
        check_parent(self.target)

    def _check_free(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._overwrite:
            raise OutputError(
                f"{self.where!r} exists", "a new path", "pass overwrite=True (--overwrite) to replace it"
            )
        if not self.target.is_file():
            raise OutputError(f"{self.where!r} exists and is not a file", remedy="choose another output")

    def open(self, schema: pa.Schema) -> None:
        """Begin the file."""
        with disk_errors(self.target):
            self._writer = RowGroupWriter(self._staging, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows."""
        assert self._writer is not None
        with disk_errors(self.target):
            self._writer.write(batch)

    def commit(self) -> str:
        """Put the file in its place and return the path."""
        assert self._writer is not None
        with disk_errors(self.target):
            self._writer.close()
            sync(self._staging)
            self._check_free()
            os.replace(self._staging, self.target)
            sync(self.target.parent)
        self._writer = None
        return str(self.target)

    def abort(self) -> None:
        """Delete what was written."""
        if self._writer is not None:
            self._writer.drop()
            self._writer = None
        self._staging.unlink(missing_ok=True)
