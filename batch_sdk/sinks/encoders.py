"""Record batches as the bytes of one file."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk.errors import OutputError
from batch_sdk.frames import to_frame

_REMEDY = "leave that column out with keep=[...]"


class Encoder(ABC):
    """Writes one table to a stream that it does not own."""

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Raise `OutputError` for a type that the format cannot hold."""

    @abstractmethod
    def open(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        """Write what comes before the rows."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Write some rows."""

    @abstractmethod
    def close(self) -> None:
        """Write what comes after the rows; the stream stays open."""


class _Writer(Encoder):
    """A format that pyarrow has a writer for."""

    _writer: Any = None

    @abstractmethod
    def _make(self, stream: Any, schema: pa.Schema) -> Any: ...

    def check(self, schema: pa.Schema) -> None:
        """Write an empty file into memory."""
        try:
            self._make(io.BytesIO(), schema).close()
        except pa.ArrowException as error:
            raise OutputError(f"the file cannot hold the output: {error}", remedy=_REMEDY) from error

    def open(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        """Write the file's head."""
        self._writer = self._make(stream, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write the batch."""
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Write the file's foot, if its head was written."""
        if self._writer is not None:
            self._writer.close()


class ParquetEncoder(_Writer):
    """Parquet; a row group for each output batch."""

    def _make(self, stream: Any, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(stream, schema, compression="zstd")


class ArrowEncoder(_Writer):
    """The Arrow IPC file format, also called Feather 2.

    Dictionary-encoded columns are written as their values: a file has one dictionary for all its batches, and
    that is known only at the end.
    """

    def check(self, schema: pa.Schema) -> None:
        """Refuse dictionaries inside lists and structs, which Arrow cannot decode in place."""
        for field in schema:
            if _has_dictionary(_decoded(field.type)):
                raise OutputError(
                    f"column {field.name!r} has a dictionary inside ({field.type})",
                    "plain values, for an Arrow file",
                    _REMEDY,
                )
        super().check(schema)

    def _make(self, stream: Any, schema: pa.Schema) -> Any:
        self._schema = pa.schema([field.with_type(_decoded(field.type)) for field in schema])
        return pa.ipc.new_file(stream, self._schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write the batch, dictionaries decoded."""
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        super().write(pa.RecordBatch.from_arrays(columns, schema=self._schema))


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(index).type) for index in range(kind.num_fields))


@contextmanager
def _json_errors() -> Iterator[None]:
    try:
        yield
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
    ) as error:  # of which no Exception is a base
        said = next(iter(str(error).splitlines()), "")
        raise OutputError(f"JSON cannot hold the output: {said}", "", _REMEDY) from error


class JsonLinesEncoder(Encoder):
    """One JSON object a line. Not-a-number and the infinities become null, since JSON has none; times are
    ISO 8601 strings, decimals strings."""

    def check(self, schema: pa.Schema) -> None:
        """Refuse bytes, maps and whatever else has no place in JSON."""
        for field in schema:
            if not _fits_json(field.type):
                raise OutputError(f"JSON cannot hold column {field.name!r} of type {field.type}", "", _REMEDY)
        with _json_errors():
            to_frame(pa.RecordBatch.from_pylist([], schema))  # Polars knows some time zones only

    def open(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        """Nothing comes before the rows."""
        self._stream = stream

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a line for each row."""
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise OutputError(f"JSON cannot hold these rows: {error}", "valid values", _REMEDY) from error
        lines = io.BytesIO()
        with _json_errors():
            to_frame(batch).write_ndjson(lines)
        self._stream.write(lines.getbuffer())

    def close(self) -> None:
        """Nothing comes after the rows."""


class LinesEncoder(Encoder):
    """Finished lines: the one column's strings, each with a line end."""

    def check(self, schema: pa.Schema) -> None:
        """Text fits everywhere."""

    def open(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        """Nothing comes before the lines."""
        self._stream = stream

    def write(self, batch: pa.RecordBatch) -> None:
        """Write the lines."""
        self._stream.write("".join(f"{line}\n" for line in batch.column(0).to_pylist()).encode())

    def close(self) -> None:
        """Nothing comes after the lines."""


_JSON_SCALARS = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_timestamp,
    pa.types.is_decimal128,
)


def _fits_json(kind: pa.DataType) -> bool:
    if any(check(kind) for check in _JSON_SCALARS):
        return True
    if pa.types.is_dictionary(kind):
        return _fits_json(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _fits_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_fits_json(field.type) for field in kind)
    return False
