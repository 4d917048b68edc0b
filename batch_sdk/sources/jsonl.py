"""JSON lines: blocks of whole lines, each parsed by Arrow with the schema of the first one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.json as pj

from batch_sdk.errors import SourceError
from batch_sdk.sources.files import File
from batch_sdk.sources.tables import FileSource

_BLOCK_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"
_LINE_START = re.compile(rb"^[ \t\r]*([^ \t\r\n])", re.MULTILINE)


class Block(NamedTuple):
    """Some whole lines of a file; `line` is the number of the first, from 1."""

    line: int
    data: bytes


def blocks(file: File) -> Iterator[Block]:
    """Yield a text file as blocks that end where a line ends; a longer line makes a longer block.

    A byte order mark is dropped. Raises `SourceError` for a file that cannot be read.
    """
    with file.open() as stream:
        line, held = 1, b""
        while piece := stream.read(max(_BLOCK_BYTES, len(held))):
            # A line longer than a block: each read doubles it, so that copying stays linear.
            held += piece
            end = held.rfind(b"\n") + 1
            if end:
                yield _block(line, held[:end])
                line += held.count(b"\n", 0, end)
                held = held[end:]
        if held:
            yield _block(line, held)


def _block(line: int, data: bytes) -> Block:
    return Block(line, data.removeprefix(_BOM) if line == 1 else data)


def _parse(data: bytes, schema: pa.Schema | None, strict: bool) -> pa.Table:
    """Parse whole lines. Raises `pa.ArrowException` for what is no JSON object or does not fit `schema`."""
    starts = _LINE_START.findall(data)
    # Arrow takes a bare null for an object, and dies of a block that holds nothing else.
    if any(start != b"{" for start in starts):
        raise pa.ArrowInvalid("a line that is not a JSON object")
    if not starts:
        return (schema or pa.schema([])).empty_table()
    unexpected = "infer" if schema is None else "error" if strict else "ignore"
    table = pj.read_json(
        pa.BufferReader(data),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )
    if table.num_rows != len(starts):
        raise pa.ArrowInvalid("a line that is not exactly one JSON object")
    return table


def _parsed(file: File, block: Block, schema: pa.Schema | None, strict: bool) -> pa.Table:
    try:
        return _parse(block.data, schema, strict)
    except pa.ArrowException as error:
        number, reason = _culprit(block, schema, strict) or (block.line, str(error))
        raise SourceError(
            f"{file.name!r}, line {number}: {reason.removesuffix(' in row 0')}",
            "one JSON object a line, with the types of the file's beginning",
        ) from error


def _culprit(block: Block, schema: pa.Schema | None, strict: bool) -> tuple[int, str] | None:
    """Find the first line that fails alone."""
    for offset, line in enumerate(block.data.split(b"\n")):
        try:
            _parse(line, schema, strict)
        except pa.ArrowException as error:
            return block.line + offset, str(error)
    return None


def _plain(kind: pa.DataType) -> pa.DataType:
    """Take back Arrow's guess that strings which look like times are times: JSON has none."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind


class JsonLinesSource(FileSource):
    """JSON lines. Columns and types come from the first block of the first file that has rows, and hold for
    all that follows; a field that a line lacks is null.

    A field that the first block lacks is an error where all columns are read, and not looked at where some
    are.
    """

    def _inspect(self) -> pa.Schema:
        for file in self._files:
            for block in blocks(file):
                table = _parsed(file, block, None, strict=True)
                if table.num_rows:
                    return pa.schema([pa.field(f.name, _plain(f.type)) for f in table.schema])
        raise SourceError(f"{self._files[0].name!r} holds no rows", "at least one, to know the columns by")

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self._stored.field(name) for name in columns])
        strict = set(columns) == set(self._stored.names)
        for block in blocks(file):
            table = _parsed(file, block, schema, strict)
            yield from table.select(columns).combine_chunks().to_batches(max_chunksize=max_rows)
