"""Polars frames, eager and lazy. The one module that uses Polars' unstable streaming interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from batch_sdk.errors import SourceError
from batch_sdk.frames import to_frame
from batch_sdk.sources.base import HASHED_ROWS, Kind, Source, fingerprint_table


def _to_batches(frame: pl.DataFrame) -> Iterator[pa.RecordBatch]:
    yield from frame.to_arrow().to_batches()


class _PolarsSource(Source):
    """What both kinds of frame share: the schema, and the way back."""

    kind: Kind = "polars"

    def __init__(self, dtypes: pl.Schema) -> None:
        self._dtypes = dtypes
        try:
            self._schema = pl.DataFrame(schema=dtypes).to_arrow().schema
        except (pl.exceptions.PolarsError, pa.ArrowException, TypeError) as error:
            raise SourceError(f"the frame has a column that Arrow cannot hold: {error}") from error

    @property
    def schema(self) -> pa.Schema:
        """The frame's columns as Arrow types."""
        return self._schema

    def restore(self, table: pa.Table) -> pl.DataFrame:
        """Return a DataFrame whose passed-through columns have the input's own dtypes."""
        frame = to_frame(table)
        changed = {
            name: dtype
            for name, dtype in self._dtypes.items()
            if name in table.schema.names and table.schema.field(name).type == self._schema.field(name).type
            if frame.schema[name] != dtype
        }
        return frame.cast(changed) if changed else frame  # type: ignore[arg-type]


class FrameSource(_PolarsSource):
    """A `polars.DataFrame`."""

    def __init__(self, frame: pl.DataFrame) -> None:
        super().__init__(frame.schema)
        self._frame = frame

    @property
    def num_rows(self) -> int:
        """The frame's height."""
        return self._frame.height

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield slices; each is converted when its turn comes, so that strings are never copied all at
        once."""
        yield from self.batches_from(columns, max_rows, 0)

    def batches_from(self, columns: Sequence[str], max_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """Yield slices from row `start` on."""
        for piece in self._frame.select(list(columns)).slice(start).iter_slices(max_rows):
            yield from _to_batches(piece)

    def fingerprint(self) -> dict[str, Any]:
        """Hash the contents."""
        return fingerprint_table(self.schema, self.batches(self.schema.names, HASHED_ROWS))


class LazySource(_PolarsSource):
    """A `polars.LazyFrame`: runs on Polars' streaming engine while the job consumes it."""

    traced = False

    def __init__(self, frame: pl.LazyFrame) -> None:
        try:
            schema = frame.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise SourceError(f"the lazy frame cannot be resolved: {error}") from error
        super().__init__(schema)
        self._frame = frame

    @property
    def num_rows(self) -> None:
        """Unknown until it has run."""
        return None

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches in the frame's order; the projection is pushed down into the query."""
        query = self._frame.select(list(columns))
        pieces: Iterator[Any] = iter(query.collect_batches(chunk_size=max_rows, maintain_order=True))
        while True:
            try:
                piece = next(pieces)
            except StopIteration:
                return
            except (pl.exceptions.PolarsError, OSError) as error:
                raise SourceError(f"the lazy frame failed: {error}") from error
            yield from _to_batches(piece)
