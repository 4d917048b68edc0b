"""The output as a table in memory, of the same kind as the input."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source


class MemorySink(Sink):
    """Collects the batches; `commit` returns a `pyarrow.Table`, or a Polars DataFrame for a Polars input."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._schema: pa.Schema | None = None
        self._batches: list[pa.RecordBatch] = []

    def prepare(self, schema: pa.Schema) -> None:
        """Nothing can be in the way."""

    def open(self, schema: pa.Schema) -> None:
        """Note the schema, for an output without rows."""
        self._schema = schema

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep the batch."""
        self._batches.append(batch)

    def commit(self) -> Any:
        """Return the table."""
        table = pa.Table.from_batches(self._batches, schema=self._schema)
        self._batches = []
        return self._source.restore(table)

    def abort(self) -> None:
        """Let go of the batches."""
        self._batches = []
