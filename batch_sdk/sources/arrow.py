"""Tables in memory and streams of record batches, through Arrow's C stream protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from batch_sdk.errors import SourceError
from batch_sdk.sources.base import HASHED_ROWS, Source, fingerprint_table
from batch_sdk.sources.views import cast_dictionaries, plain_batch, plain_schema


class TableSource(Source):
    """A `pyarrow.Table` or `RecordBatch`: can be read any number of times."""

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        own = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        self._own = own.schema
        self._schema = plain_schema(own.schema)
        # The other views are read slice by slice.
        self._table = cast_dictionaries(own, self._schema)

    @property
    def schema(self) -> pa.Schema:
        """The table's."""
        return self._schema

    @property
    def num_rows(self) -> int:
        """The table's."""
        return int(self._table.num_rows)

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield slices of the table's chunks; nothing is copied."""
        yield from self.batches_from(columns, max_rows, 0)

    def batches_from(self, columns: Sequence[str], max_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """Yield slices from row `start` on."""
        pieces = self._table.select(list(columns)).slice(start).to_batches(max_chunksize=max_rows)
        yield from map(plain_batch, pieces)

    def fingerprint(self) -> dict[str, Any]:
        """Hash the contents."""
        return fingerprint_table(self.schema, self.batches(self.schema.names, HASHED_ROWS))

    def restore(self, table: pa.Table) -> pa.Table:
        """Return a table whose passed-through columns have the input's own types."""
        own = dict(zip(self._schema, self._own, strict=True))
        schema = pa.schema([own.get(field, field) for field in table.schema])
        return table if schema == table.schema else cast_dictionaries(table, schema).cast(schema)


class StreamSource(Source):
    """A `RecordBatchReader`, or anything with `__arrow_c_stream__`: read once, never held as a whole."""

    rereadable = False
    traced = False

    def __init__(self, stream: Any) -> None:
        if isinstance(stream, pa.RecordBatchReader):
            self._reader = stream
        else:
            try:
                self._reader = pa.RecordBatchReader.from_stream(stream)
            except (pa.ArrowException, TypeError) as error:
                raise SourceError(
                    f"{type(stream).__name__} does not export a table through Arrow: {error}",
                    "a stream of record batches",
                ) from error
        self._read = False

    @property
    def schema(self) -> pa.Schema:
        """The stream's."""
        return plain_schema(self._reader.schema)

    @property
    def num_rows(self) -> None:
        """A stream does not say."""
        return None

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the stream's batches as they come."""
        if self._read:
            raise SourceError("this stream was read before", "a fresh stream", "pass a table to run it again")
        self._read = True
        reader = iter(self._reader)
        while True:
            try:
                batch = next(reader)
            except StopIteration:
                return
            except pa.ArrowException as error:
                raise SourceError(f"the input stream failed: {error}") from error
            yield plain_batch(batch.select(list(columns)))
