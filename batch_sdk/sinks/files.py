"""The output as one file: Arrow IPC or JSONL, here or behind a URL; and one Parquet file behind a URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from batch_sdk.errors import OutputError
from batch_sdk.kinds import Format
from batch_sdk.sinks.base import Sink
from batch_sdk.sinks.encoders import ArrowEncoder, Encoder, JsonLinesEncoder, ParquetEncoder
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
        self._place = place
        self._encoder = encoder
        self._codec = codec
        self._streams: list[pa.NativeFile] = []

    def prepare(self, schema: pa.Schema) -> None:
        """Check that the place is free, and that the file can hold all the types."""
        self._encoder.check(schema)
        self._place.check()

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
        while self._streams:
            stream = self._streams.pop()
            try:
                with self._place.errors():
                    stream.close()
            except OutputError:
                continue  # what is deleted next need not be whole
        self._place.abort()


def _make(place: Place, found: Format | None) -> FileSink:
    encoders: dict[tuple[str, str | None], Callable[[], Encoder]] = {
        ("parquet", None): ParquetEncoder,
        ("arrow", None): ArrowEncoder,
        ("jsonl", None): JsonLinesEncoder,
        ("jsonl", "gzip"): JsonLinesEncoder,
        ("jsonl", "zstd"): JsonLinesEncoder,
    }
    if found is None or found not in encoders:
        reason = ""
        if found is not None and found.kind in ("csv", "tsv"):
            reason = "CSV cannot hold the error column, which is a struct, nor vectors"
        raise OutputError(f"the output {place.name!r}", f"a name that ends in {', '.join(_WRITTEN)}", reason)
    return FileSink(place, encoders[found](), found.codec)


def local_sink(output: str, found: Format, overwrite: bool) -> FileSink:
    """Return the sink for one local file. Raises `OutputError` for a kind that is not written."""
    return _make(LocalPlace(Path(os.path.abspath(output)), overwrite), found)


def url_sink(url: str, found: Format | None, overwrite: bool) -> FileSink:
    """Return the sink for one file behind fsspec.

    Raises:
        OutputError: the kind is not written, or fsspec cannot reach the place.
    """
    return _make(UrlPlace(url, overwrite), found)
