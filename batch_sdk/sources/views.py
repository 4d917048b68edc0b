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


def cast_dictionaries(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with its dictionary columns cast to the types of a schema.

    Each dictionary is cast once, however many chunks and slices share it: there may be as many values as rows.
    """
    for index, field in enumerate(schema):
        if pa.types.is_dictionary(field.type) and field.type != table.field(index).type:
            table = table.set_column(index, field, _cast_dictionary(table.column(index), field.type))
    return table


def _cast_dictionary(column: pa.ChunkedArray, kind: pa.DictionaryType) -> pa.ChunkedArray:
    made: dict[tuple[int, ...], pa.Array] = {}
    chunks = []
    for chunk in column.chunks:
        values = chunk.dictionary
        buffers = (0 if buffer is None else buffer.address for buffer in values.buffers())
        place = (values.offset, len(values), *buffers)
        if place not in made:
            made[place] = values.cast(kind.value_type)
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, made[place], ordered=kind.ordered))
    return pa.chunked_array(chunks, kind)


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
