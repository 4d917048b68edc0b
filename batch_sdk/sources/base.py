"""What every input is turned into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["arrow", "polars"]


class Source(ABC):
    """A table that can be read in order, in pieces, by column.

    Attributes:
        kind: the family that an in-memory result goes back to.
        paths: the local files it reads, if any: an output may not replace them.
        urls: the same for files elsewhere.
    """

    kind: Kind = "arrow"
    paths: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns, before projection."""

    @property
    @abstractmethod
    def num_rows(self) -> int | None:
        """Rows in all, or None where only reading would tell."""

    @abstractmethod
    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order as record batches of these columns.

        Args:
            columns: at least one name; each batch has them in this order.
            max_rows: a hint for the size of a batch; larger and empty ones are allowed.

        Raises:
            SourceError: the data cannot be read, or changed since the source was opened.
        """

    def restore(self, table: pa.Table) -> Any:
        """Return an in-memory result as the kind of table that the input was."""
        return table
