"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator

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
                if schema is None:
                    schema = opened.schema_arrow
                check_same(file, opened.schema_arrow, self._files[0], schema)
                self._rows.append(opened.metadata.num_rows)
        assert schema is not None
        return schema

    @property
    def num_rows(self) -> int:
        """Rows of all files, from their footers."""
        return sum(self._rows)

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        with file.open() as stream, _open(stream) as opened:
            for batch in opened.iter_batches(batch_size=max_rows, columns=columns):
                # Parquet finds columns by path prefix and returns them in the file's order.
                yield batch.select(columns)


def _open(stream: pa.NativeFile) -> pq.ParquetFile:
    # With its buffer ahead, pyarrow keeps all it has read of a file until the file is closed.
    return pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
