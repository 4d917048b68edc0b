"""What every input is turned into."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from batch_sdk.errors import SourceError
from batch_sdk.flow import regroup

Kind = Literal["arrow", "polars"]
HASHED_ROWS = 4_096
"""Rows that are hashed, and for that copied, at a time. Another number is another hash."""


COUNTED_ROWS = 65_536
"""Rows that are read at a time where they are only counted."""


def fingerprint_file(path: Path) -> dict[str, Any]:
    """Return what tells one version of a file from another. Raises `SourceError` if it is gone."""
    try:
        known = path.stat()
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    # A file's name says its kind: where it is a link into a store, what is behind it often has none.
    place = path.parent.resolve() / path.name
    return {"path": str(place), "size": known.st_size, "mtime_ns": known.st_mtime_ns}


def fingerprint_table(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
    """Return a table's schema, rows and a hash of its contents; reads every byte once.

    How the rows are cut into batches does not matter.
    """
    digest = _Digest()
    rows = 0
    with pa.ipc.new_stream(pa.PythonFile(digest, mode="w"), schema) as writer:
        for pieces in regroup(batches, HASHED_ROWS):
            for batch in _joined(pieces, HASHED_ROWS):
                rows += batch.num_rows
                writer.write_batch(batch)
    return {"schema": schema.to_string(show_schema_metadata=False), "rows": rows, "hash": digest.hexdigest()}


def _joined(pieces: list[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows as one batch, or as halves, where a column of one batch would be too large."""
    try:
        # Also of a single piece: a slice is written with bits of its neighbours.
        joined = pa.concat_batches(pieces)
    except pa.ArrowInvalid:
        half = -(-rows // 2)
        for fewer in regroup(pieces, half):
            yield from _joined(fewer, half)
    else:
        yield joined


class _Digest(io.RawIOBase):
    """A file that keeps nothing but the hash of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Hash the bytes."""
        self._hash.update(data)
        return len(data)

    def hexdigest(self) -> str:
        """Return the hash of all so far."""
        return self._hash.hexdigest()


class Source(ABC):
    """A table that can be read in order, in pieces, by column.

    Attributes:
        kind: the family that an in-memory result goes back to.
        paths: the local files it reads, if any: an output may not replace them.
        urls: the same for files elsewhere.
        traced: whether these are all that it reads; nobody knows what a stream or a query reads while it runs.
        rereadable: whether `batches` may be called again.
        all_columns: whether the job wants all columns, not those that it names: then one that comes later is an error.
    """

    kind: Kind = "arrow"
    paths: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()
    traced: bool = True
    rereadable: bool = True
    all_columns: bool = True

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns, before projection."""

    @property
    @abstractmethod
    def num_rows(self) -> int | None:
        """Rows in all, or None where only reading would tell."""

    def count(self) -> int:
        """Return the rows in all, reading one column if nothing else tells.

        Raises:
            SourceError: see `batches`.
        """
        if self.num_rows is not None:
            return self.num_rows
        # Rather one that costs little and has nothing to be refused.
        plain = [
            f.name for f in self.schema if not pa.types.is_nested(f.type) and not pa.types.is_floating(f.type)
        ]
        column = [*plain, *self.schema.names][:1]
        return sum(batch.num_rows for batch in self.batches(column, COUNTED_ROWS))

    @abstractmethod
    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order as record batches of these columns.

        Args:
            columns: at least one name; each batch has them in this order.
            max_rows: a hint for the size of a batch; larger and empty ones are allowed.

        Raises:
            SourceError: the data cannot be read, or changed since the source was opened.
        """

    def batches_from(self, columns: Sequence[str], max_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """Yield what `batches` does, without the first `start` rows.

        This one reads and drops them. A source that can skip does better.
        """
        for batch in self.batches(columns, max_rows):
            if start >= batch.num_rows:
                start -= batch.num_rows
            else:
                yield batch.slice(start)
                start = 0

    def fingerprint(self) -> dict[str, Any] | None:
        """Return plain data that is equal for the same input and differs for another.

        Of files it is path, size and time of change; None means that the input cannot be recognised again,
        so that a job on it cannot be resumed.
        """
        if not self.paths or self.urls:
            return None
        return {"files": [fingerprint_file(path) for path in self.paths]}

    def restore(self, table: pa.Table) -> Any:
        """Return an in-memory result as the kind of table that the input was."""
        return table
