"""A few output rows as a person can read and judge them."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_NEIGHBOUR_POOL_ROWS = 1000
_VALUE_CHARS = 600
_LINE_CHARS = 90


def head(output: str, rows: int) -> pa.Table:
    """Return the first rows of an output: a Parquet file, or a directory of parts."""
    files = (
        [output] if os.path.isfile(output) else sorted(glob.glob(os.path.join(glob.escape(output), "part-*")))
    )
    batches: list[pa.RecordBatch] = []
    schema = pq.read_schema(files[0])
    left = rows
    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=min(left, 4096)):
                batches.append(batch.slice(0, left))
                left -= batch.num_rows
                if left <= 0:
                    return pa.Table.from_batches(batches, schema=schema)
    return pa.Table.from_batches(batches, schema=schema)


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
    for index, row in enumerate(table.to_pylist()):
        lines.append(_rule(f"row {index}"))
        for name, value in row.items():
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
    table = head(output, max(rows, _NEIGHBOUR_POOL_ROWS))
    vectors = table.column(embedding_column).combine_chunks()
    size = vectors.type.list_size
    # flatten() leaves null rows out; fill them with zeros, whose cosine with anything is 0.
    matrix = np.zeros((len(vectors), size), np.float32)
    valid = np.asarray(vectors.is_valid())
    matrix[valid] = np.asarray(vectors.flatten()).reshape(-1, size)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit = matrix / np.where(norms > 0, norms, 1)
    texts = table.column(column).to_pylist() if column in table.column_names else [None] * len(table)
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


def _one_line(text: Any, row: int) -> str:
    if text is None:
        return f"(row {row})"
    return _shorten(" ".join(str(text).split()), _LINE_CHARS)
