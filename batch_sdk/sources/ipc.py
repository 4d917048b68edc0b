"""Arrow IPC: files (also called Feather 2) and streams, told apart by their first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from batch_sdk.sources.files import File
from batch_sdk.sources.tables import FileSource, check_same

_FILE_MAGIC = b"ARROW1"


@contextmanager
def _open(file: File, columns: list[str] | None = None) -> Iterator[Any]:
    """Open a file's reader: of a file, with random access, or of a stream. Only `columns` are decoded."""
    with file.open() as stream:
        whole = stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        stream.seek(0)
        make = pa.ipc.open_file if whole else pa.ipc.open_stream
        if columns is None:
            fields = None
        else:
            names = make(stream).schema.names
            fields = [names.index(name) for name in columns]
            stream.seek(0)
        with make(stream, options=pa.ipc.IpcReadOptions(included_fields=fields)) as reader:
            yield reader


class ArrowSource(FileSource):
    """IPC files or streams with one schema; opening reads no rows."""

    def _inspect(self) -> pa.Schema:
        counts: list[int | None] = []
        schema: pa.Schema | None = None
        for file in self._files:
            with _open(file) as reader:
                schema = check_same(file, reader.schema, self._files[0], schema or reader.schema)
                counts.append(
                    reader.count_rows() if isinstance(reader, pa.ipc.RecordBatchFileReader) else None
                )
        known = [count for count in counts if count is not None]
        self._rows = sum(known) if len(known) == len(counts) else None
        assert schema is not None
        return schema

    @property
    def num_rows(self) -> int | None:
        """Rows of all files; None if one of them is a stream, which does not say."""
        return self._rows

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        with _open(file, columns) as reader:
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                for index in range(reader.num_record_batches):
                    yield reader.get_batch(index)
            else:
                yield from reader
