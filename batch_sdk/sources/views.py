"""Columns of string and binary views, as which Polars writes its strings: they are read as large strings and binaries.

A slice of views has all the bytes of its column, not those of its rows: wherever it was written or measured, each batch
would count for the whole table.
"""

from __future__ import annotations

import pyarrow as pa


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema without view types."""
    return pa.schema([field.with_type(_plain(field.type)) for field in schema], schema.metadata)


def plain_array(column: pa.Array) -> pa.Array:
    """Return the column, as it is or with its views as values of its own."""
    kind = _plain(column.type)
    # Of a slice of lists, cast() would turn all the values there are.
    return column if kind == column.type else pa.concat_arrays([column]).cast(kind)


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch without view types."""
    schema = plain_schema(batch.schema)
    if schema == batch.schema:
        return batch
    return pa.RecordBatch.from_arrays([plain_array(column) for column in batch.columns], schema=schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([_field(field) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_field(kind.value_field), kind.list_size)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain(kind.value_type), kind.ordered)
    return kind


def _field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain(field.type))
