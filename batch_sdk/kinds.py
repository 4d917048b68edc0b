"""Which kind of table a file name stands for."""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import urlsplit

FileKind = Literal["parquet", "arrow", "jsonl", "csv", "tsv"]
Codec = Literal["gzip", "bz2", "xz", "zstd"]

_KINDS: dict[str, FileKind] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_CODECS: dict[str, Codec] = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_TEXT = ("jsonl", "csv", "tsv")

KNOWN = f"{', '.join(_KINDS)}; {', '.join(f'.{kind}' for kind in _TEXT)} also with {', '.join(_CODECS)}"
"""The known endings, for messages."""


class Format(NamedTuple):
    """A kind of table and, for text, how the file is compressed."""

    kind: FileKind
    codec: Codec | None


def format_of(name: str) -> Format | None:
    """Return what a file's name says of its contents; None if it says nothing known.

    Args:
        name: a path or URL; the query of an http URL is no part of the name.
    """
    if name.startswith(("http://", "https://")):
        name = urlsplit(name).path
    stem, codec = name.lower(), None
    for ending, value in _CODECS.items():
        if stem.endswith(ending):
            stem, codec = stem.removesuffix(ending), value
    for ending, kind in _KINDS.items():
        if stem.endswith(ending) and (codec is None or kind in _TEXT):
            return Format(kind, codec)
    return None
