"""The output as one file: Arrow IPC or JSONL, here or behind a URL; and one Parquet file behind a URL."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from batch_sdk.errors import OutputError
from batch_sdk.kinds import Format, format_of
from batch_sdk.remote import is_url
from batch_sdk.sinks.base import Sink
from batch_sdk.sinks.encoders import ArrowEncoder, Encoder, JsonLinesEncoder, LinesEncoder, ParquetEncoder
from batch_sdk.sinks.place import LocalPlace, Place, UrlPlace

_WRITTEN = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst")


class FileSink(Sink):
    """Writes one file.

    Args:
        place: where to.
        encoder: turns record batches into the file's bytes.
        codec: "gzip" or "zstd" for a compressed file, or None.
    """

    def __init__(self, place: Place, encoder: Encoder, codec: str | None = None) -> None:
        self.where = place.name
        self._place = place
        self._encoder = encoder
        self._codec = codec
        self._streams: list[pa.NativeFile] = []

    def prepare(self, schema: pa.Schema) -> None:
        """Check that the place is free, and that the file can hold all the types."""
        self._encoder.check(schema)
        self._place.prepare()

    def open(self, schema: pa.Schema) -> None:
        """Begin the file."""
        with self._place.errors():
            self._streams.append(self._place.open())
            if self._codec is not None:
                self._streams.append(pa.CompressedOutputStream(self._streams[0], self._codec))
            self._encoder.open(self._streams[-1], schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write the rows."""
        with self._place.errors():
            self._encoder.write(batch)

    def commit(self) -> str:
        """End the file, put it in its place and return its path or URL."""
        with self._place.errors():
            self._encoder.close()
            while self._streams:
                self._streams.pop().close()
            self._place.commit()
        return self._place.name

    def abort(self) -> None:
        """Remove what was written."""
        closing = [stream.close for stream in reversed(self._streams)]
        if self._streams:
            closing.insert(0, self._encoder.close)
        self._streams = []
        for close in closing:
            # What is deleted next need not be whole: its last bytes may not fit a full disk.
            with suppress(OutputError, pa.ArrowException), self._place.errors():
                close()
        self._place.abort()


def file_sink(output: str, overwrite: bool) -> FileSink:
    """Return the sink for a table as one file, at a path or URL.

    Raises:
        OutputError: the kind is not written, or fsspec cannot reach the place.
    """
    found = format_of(output)
    encoders: dict[Format | None, type[Encoder]] = {
        Format("parquet", None): ParquetEncoder,
        Format("arrow", None): ArrowEncoder,
        Format("jsonl", None): JsonLinesEncoder,
        Format("jsonl", "gzip"): JsonLinesEncoder,
        Format("jsonl", "zstd"): JsonLinesEncoder,
    }
    if found is None or found not in encoders:
        csv = found is not None and found.kind in ("csv", "tsv")
        reason = "CSV cannot hold the error column, which is a struct, nor vectors" if csv else ""
        raise OutputError(f"the output {output!r}", f"a name that ends in {', '.join(_WRITTEN)}", reason)
    return FileSink(_place(output, overwrite), encoders[found](), found.codec)


def lines_sink(output: str, overwrite: bool) -> FileSink:
    """Return the sink for finished lines of text, at a path or URL. Raises `OutputError` as `file_sink`
    does."""
    found = format_of(output)
    if found not in (Format("jsonl", None), Format("jsonl", "gzip"), Format("jsonl", "zstd")):
        raise OutputError(f"the output {output!r}", "a name that ends in .jsonl, .jsonl.gz or .jsonl.zst")
    return FileSink(_place(output, overwrite), LinesEncoder(), found.codec)


def _place(output: str, overwrite: bool) -> Place:
    if is_url(output):
        return UrlPlace(output, overwrite)
    return LocalPlace(Path(os.path.abspath(output)), overwrite)
