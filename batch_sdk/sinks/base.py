"""Where the output goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from batch_sdk.chunks import Tally
from batch_sdk.flow import limit
from batch_sdk.sources.base import Source


class Sink(ABC):
    """Takes record batches in order.

    Calls come in this order: `prepare`, `open`, any number of `write`, then either `commit` or `abort`.
    `abort` is allowed at any time and more than once, and does nothing after a `commit`. What a sink that
    cannot be resumed did not commit does not exist.

    Attributes:
        where: the output's path, or None for a table in memory.
        complete: after `prepare`: nothing is left to do; only `commit` follows.
        position: after `prepare`: where in the input the first row to compute is.
    """

    where: str | None = None
    complete: bool = False
    position: int = 0

    @abstractmethod
    def prepare(self, schema: pa.Schema) -> None:
        """Fail now rather than after an hour.

        Args:
            schema: the output's columns; a vector column may still have a provisional length.

        Raises:
            OutputError: the place is taken or not writable, or a type cannot be stored there.
        """

    def done(self) -> Tally:
        """Return the figures of the rows that were there before; to be called after `prepare`."""
        return Tally()

    def missing(
        self, source: Source, columns: Sequence[str], max_rows: int, limit_rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the input rows that the output lacks, in order.

        Args:
            source: the whole input.
            columns: see `Source.batches`.
            max_rows: see `Source.batches`.
            limit_rows: rows of the input that the job is about; None is all.
        """
        left = None if limit_rows is None else limit_rows - self.position
        return limit(source.batches_from(columns, max_rows, self.position), left)

    def input_row(self, row: int) -> int:
        """Return where in the input the row is that comes from `missing` with this number, counted from
        `position`."""
        return row

    @abstractmethod
    def open(self, schema: pa.Schema) -> None:
        """Begin, with the final schema."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take the next rows."""

    @abstractmethod
    def commit(self) -> Any:
        """Make the output appear, whole, and return it: a table, or the path as a string."""

    @abstractmethod
    def abort(self) -> None:
        """Leave nothing that is not committed."""
