"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk.sources.files import File
from batch_sdk.sources.tables import FileSource, check_same

_BUFFER_BYTES = 1 << 20  # of a column that is read at a time


class ParquetSource(FileSource):
    """Parquet files with one schema; only footers are read on opening."""

    def _inspect(self) -> pa.Schema:
        self._rows: list[int] = []
        schema: pa.Schema | None = None
        for file in self._files:
            with file.open() as stream, pq.ParquetFile(stream) as opened:
                schema = check_same(file, opened.schema_arrow, self._files[0], schema or opened.schema_arrow)
                self._rows.append(opened.metadata.num_rows)
        assert schema is not None
        return schema

    @property
    def num_rows(self) -> int:
        """Rows of all files, from their footers."""
        return sum(self._rows)

    def fingerprint(self) -> dict[str, Any] | None:
        """Add the rows to what is known of any file."""
        found = super().fingerprint()
        if found is not None:
            for file, rows in zip(found["files"], self._rows, strict=True):
                file["rows"] = rows
        return found

    def batches_from(self, columns: Sequence[str], max_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from `start` on; files and row groups before it are not read."""
        for file, rows in zip(self._files, self._rows, strict=True):
            if start < rows:
                stored = self._read_from(file, self._stored_of(columns), max_rows, start)
                yield from self._arranged(file, columns, stored)
            start = max(0, start - rows)

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        return self._read_from(file, columns, max_rows, 0)

    def _read_from(
        self, file: File, columns: list[str], max_rows: int, start: int
    ) -> Iterator[pa.RecordBatch]:
        # With its buffer ahead, pyarrow keeps all it has read of a file until the file is closed.
        with (
            file.open() as stream,
            pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES) as opened,
        ):
            groups = list(range(opened.num_row_groups))
            while groups and start >= opened.metadata.row_group(groups[0]).num_rows:
                start -= opened.metadata.row_group(groups.pop(0)).num_rows
            for batch in opened.iter_batches(batch_size=max_rows, columns=columns, row_groups=groups):
                skipped = min(start, batch.num_rows)
                start -= skipped
                # Parquet finds columns by path prefix and returns them in the file's order.
                yield batch.select(columns).slice(skipped)
