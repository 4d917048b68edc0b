"""CSV and TSV through Arrow's streaming reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from batch_sdk.errors import SourceError
from batch_sdk.sources.files import File
from batch_sdk.sources.tables import FileSource, check_same

# No row may be longer. Arrow reads up to 32 blocks ahead, which is what bounds the memory.
_BLOCK_BYTES = 4 << 20


@contextmanager
def _open(file: File, **convert: Any) -> Iterator[pc.CSVStreamingReader]:
    try:
        with file.open() as stream:
            yield pc.open_csv(
                stream,
                # Only on one thread do Arrow's messages name the row.
                read_options=pc.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                parse_options=pc.ParseOptions(
                    delimiter="\t" if file.format.kind == "tsv" else ",",
                    newlines_in_values=True,  # texts have line breaks
                ),
                convert_options=pc.ConvertOptions(**convert),
            )
    except SourceError as error:
        if "straddling" not in error.got:
            raise
        raise SourceError(
            f"{file.name!r} has a row of more than {_BLOCK_BYTES >> 20} MiB", "shorter rows", "or use JSONL"
        ) from error


class DelimitedSource(FileSource):
    """CSV or TSV with a header line. Types come from the first block of the first file that has rows, and
    hold for all that follows."""

    def _inspect(self) -> pa.Schema:
        schema: pa.Schema | None = None
        for file in self._files:
            with _open(file) as reader:
                schema = reader.schema
                try:
                    rows = reader.read_next_batch().num_rows
                except StopIteration:
                    rows = 0
            if rows:
                break
        assert schema is not None
        # A column without a single value says nothing of its type; in CSV everything is text at first.
        fields = [pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in schema]
        return pa.schema(fields)

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        types = dict(zip(self._stored.names, self._stored.types, strict=True))
        with _open(file, column_types=types) as reader:
            check_same(file, reader.schema, self._files[0], self._stored)
        with _open(file, column_types=types, include_columns=columns) as reader:
            yield from reader
