"""CSV and TSV through Arrow's streaming reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from batch_sdk.errors import SourceError
from batch_sdk.sources.digits import first_rounded, large
from batch_sdk.sources.files import File
from batch_sdk.sources.tables import FileSource, check_same

# No row may be longer. Arrow reads up to 32 blocks ahead, which is what bounds the memory.
_BLOCK_BYTES = 4 << 20


@contextmanager
def _open(file: File, **convert: Any) -> Iterator[pcsv.CSVStreamingReader]:
    try:
        with file.open() as stream:
            reader = pcsv.open_csv(
                stream,
                # Only on one thread do Arrow's messages name the row.
                read_options=pcsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                parse_options=pcsv.ParseOptions(
                    delimiter="\t" if file.format.kind == "tsv" else ",",
                    newlines_in_values=True,  # texts have line breaks
                ),
                convert_options=pcsv.ConvertOptions(**convert),
            )
            list(reader.schema.names)  # which have to be UTF-8 too
            yield reader
    except SourceError as error:
        if "straddling" not in error.got:
            raise
        raise SourceError(
            f"{file.name!r} has a row of more than {_BLOCK_BYTES >> 20} MiB", "shorter rows", "or use JSONL"
        ) from error


def _batches(file: File, **convert: Any) -> Iterator[pa.RecordBatch]:
    with _open(file, **convert) as reader:
        yield from reader


def _first_batch(file: File, **convert: Any) -> pa.RecordBatch:
    with _open(file, **convert) as reader:
        return next(iter(reader), None) or pa.RecordBatch.from_pylist([], reader.schema)


def _type_of(file: File, name: str, column: pa.Array, texts: pa.Array | None) -> pa.DataType:
    """Return the type of a column.

    Args:
        file: where it is.
        name: its name.
        column: its first rows in Arrow's reading.
        texts: these as they are written, if they are large doubles.
    """
    if pa.types.is_binary(column.type):
        raise SourceError(
            f"column {name!r} of {file.name!r} is not in UTF-8", "a file in UTF-8", "convert it (iconv)"
        )
    if pa.types.is_null(column.type):
        # Without a single value it says nothing of its type; in CSV everything is text at first.
        return pa.string()
    if texts is not None:
        # Arrow does not think of uint64, but reads it.
        with suppress(pa.ArrowInvalid):
            pc.utf8_trim_whitespace(texts.filter(column.is_valid())).cast(pa.uint64())
            return pa.uint64()
        if first_rounded(texts) is not None:
            return pa.string()
    return column.type


def _as_text(names: Sequence[str]) -> dict[str, Any]:
    return {"column_types": dict.fromkeys(names, pa.string()), "include_columns": names}


def _check_digits(file: File, row: int, texts: pa.RecordBatch) -> None:
    for name, column in zip(texts.schema.names, texts.columns, strict=True):
        found = first_rounded(column)
        if found is not None:
            raise SourceError(
                f"{file.name!r}, row {row + found}: column {name!r} is of doubles, which would round {column[found]}",
                remedy="use Parquet: a CSV file says its types only by its first rows",
            )


class DelimitedSource(FileSource):
    """CSV or TSV with a header line. Types come from the first block of the first file that has rows, and
    hold for all that follows."""

    def _inspect(self) -> pa.Schema:
        for file in self._files:
            batch = _first_batch(file)
            if batch.num_rows:
                break
        columns = list(zip(batch.schema.names, batch.columns, strict=True))  # two may have the same name
        # The same rows once more, for all such columns together.
        wide = list(dict.fromkeys(name for name, column in columns if large(column)))
        texts = _first_batch(file, **_as_text(wide)) if wide else {}
        return pa.schema(
            [
                pa.field(name, _type_of(file, name, column, texts[name] if name in wide else None))
                for name, column in columns
            ]
        )

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        types = dict(zip(self._stored.names, self._stored.types, strict=True))
        with _open(file, column_types=types) as reader:
            check_same(file, reader.schema, self._files[0], self._stored)
        doubles = [name for name in columns if pa.types.is_float64(types[name])]
        texts = enumerate(_batches(file, **_as_text(doubles)))
        row = 2  # after the header
        for index, batch in enumerate(_batches(file, column_types=types, include_columns=columns)):
            if any(large(batch.column(name)) for name in doubles):
                # The same rows once more, as they are written: both readers cut blocks at the same places.
                _check_digits(file, row, next(text for number, text in texts if number == index))
            row += batch.num_rows
            yield batch
