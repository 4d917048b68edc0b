"""From Arrow to Polars."""

from __future__ import annotations

import polars as pl
import pyarrow as pa


def to_frame(data: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """Return the rows as a Polars frame. Raises what Polars raises of a type or value that it cannot hold."""
    if isinstance(data, pa.RecordBatch):
        frame = pl.from_arrow(_whole(data))
    else:
        frame = pl.from_arrow(pa.Table.from_batches(map(_whole, data.to_batches()), data.schema))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch without slices that Polars (2.1) refuses: those of lists of one size, nulls among them."""
    columns = [
        pa.concat_arrays([column])
        if pa.types.is_fixed_size_list(column.type) and column.null_count
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
