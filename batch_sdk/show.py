"""A few output rows as a person can read and judge them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batch_sdk.embed_inputs import column_values
from batch_sdk.flow import limit
from batch_sdk.sources import open_source

_NEIGHBOUR_POOL_ROWS = 1000
_VALUE_CHARS = 600
_LINE_CHARS = 90


def head(output: str, rows: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the first rows of an output that a job wrote: all columns, or those of `columns` that it has."""
    source = open_source(output)
    names = [name for name in source.schema.names if columns is None or name in columns]
    batches = limit(source.batches(names, min(rows, 4096)), rows)
    return pa.Table.from_batches(batches, schema=pa.schema([source.schema.field(name) for name in names]))


def _shorten(value: Any, chars: int) -> str:
    text = str(value)
    return (
        text if len(text) <= chars else f"{text[:chars].rstrip()} [... {len(text) - chars:,} more characters]"
    )


def _field(name: str, value: Any, width: int) -> Iterator[str]:
    text = "null" if value is None else _shorten(value, _VALUE_CHARS)
    lines = text.split("\n")
    yield f"{name.ljust(width)}  {lines[0]}".rstrip()
    for line in lines[1:]:
        yield f"{' ' * width}  {line}".rstrip()


def _rule(title: str) -> str:
    columns = min(shutil.get_terminal_size((80, 24)).columns, _LINE_CHARS)
    return f"-- {title} ".ljust(columns, "-")


def generated_rows(output: str, rows: int) -> str:
    """Return the first `rows` rows of a generate job's output, one field a line."""
    table = head(output, rows)
    width = max(len(name) for name in table.column_names)
    lines: list[str] = []
    columns = [column_values(column.combine_chunks()) for column in table.columns]
    for index, row in enumerate(zip(*columns, strict=True)):
        lines.append(_rule(f"row {index}"))
        for name, value in zip(table.column_names, row, strict=True):
            if value is not None or not pa.types.is_struct(table.schema.field(name).type):
                lines += _field(name, value, width)
    return "\n".join(lines)


def nearest_rows(output: str, column: str, embedding_column: str, rows: int, neighbours: int = 3) -> str:
    """Return the first `rows` texts of an embed job's output, each with the rows most like it.

    Args:
        output: path that the job wrote.
        column: text column; the row number stands in for it if it was not kept.
        embedding_column: vector column.
        rows: how many texts.
        neighbours: how many rows for each, by cosine, among the first 1,000 rows.
    """
    table = head(output, max(rows, _NEIGHBOUR_POOL_ROWS), (column, embedding_column))
    matrix, valid = _matrix(table.column(embedding_column).combine_chunks())
    size = matrix.shape[1]
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit = matrix / np.where(norms > 0, norms, 1)
    texts: list[Any] = [None] * len(table)
    if column in table.column_names:
        texts = column_values(table.column(column).combine_chunks())
    lines: list[str] = []
    for index in range(min(rows, len(table))):
        lines.append(_rule(f"row {index}: {size} floats, length {float(norms[index, 0]):.3f}"))
        lines.append(_one_line(texts[index], index))
        scores = unit @ unit[index]
        scores[index] = -np.inf
        scores[~valid] = -np.inf
        for other in np.argsort(-scores)[:neighbours]:
            if scores[other] > -np.inf and valid[index]:
                lines.append(f"  {scores[other]:6.3f}  {_one_line(texts[other], int(other))}")
    return "\n".join(lines)


def _matrix(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors, float32 [rows, components], zeros where there are none, and where there are some."""
    # From JSON they come as lists of doubles, or as nothing but nulls.
    vectors = column.cast(pa.list_(pa.float32()))
    valid = np.asarray(vectors.is_valid())
    found = int(valid.sum())
    items = np.asarray(vectors.flatten())  # of the rows that are not null
    if getattr(column.type, "value_type", None) == pa.uint8():
        items = 2.0 * np.unpackbits(items.astype(np.uint8)) - 1  # bits, as signs
    matrix = np.zeros((len(vectors), len(items) // max(1, found)), np.float32)
    matrix[valid] = items.reshape(found, matrix.shape[1])
    return matrix, valid


def _one_line(text: Any, row: int) -> str:
    if text is None:
        return f"(row {row})"
    return _shorten(" ".join(str(text).split()), _LINE_CHARS)
