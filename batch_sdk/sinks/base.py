"""Where the output goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyarrow as pa


class Sink(ABC):
    """Takes record batches in order. All or nothing: what was not committed does not exist.

    Calls come in this order: `prepare`, `open`, any number of `write`, then either `commit` or `abort`.
    `abort` is allowed at any time and more than once, and does nothing after a `commit`.
    """

    @abstractmethod
    def prepare(self, schema: pa.Schema) -> None:
        """Fail now rather than after an hour.

        Args:
            schema: the output's columns; a vector column may still have a provisional length.

        Raises:
            OutputError: the place is taken or not writable, or a type cannot be stored there.
        """

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
        """Remove every trace of an output that is not committed."""
