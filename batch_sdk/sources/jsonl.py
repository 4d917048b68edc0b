"""JSON lines: blocks of whole lines, each parsed by Arrow with the schema of the first one."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.json as pj

from batch_sdk.errors import SourceError
from batch_sdk.sources import json_lines
from batch_sdk.sources.digits import large
from batch_sdk.sources.files import File
from batch_sdk.sources.tables import FileSource

_BLOCK_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"
_UNEXPECTED = "unexpected field"
_REMEDY = "name the columns to keep (keep=[...]): others may come and go; or use Parquet"
_REMEDY_INSIDE = "use Parquet, or give the first line a value for every field"
_IN_ROW = re.compile(r" in row \d+$")
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
        offset, reason = _culprit(block.data, schema, strict)
        remedy = _remedy(reason) if reason.startswith(_UNEXPECTED) else ""
        raise _error(file, block.line + offset, _IN_ROW.sub("", reason), remedy) from error


def _remedy(path: str) -> str:
    """Return what to do about a field: one inside a column stays whatever columns are kept."""
    return _REMEDY_INSIDE if "." in path else _REMEDY


def _error(file: File, line: int, reason: str, remedy: str = "") -> SourceError:
    wanted = "one JSON object a line, with the types of the file's beginning"
    return SourceError(f"{file.name!r}, line {line}: {reason}", wanted, remedy)


def _culprit(data: bytes, schema: pa.Schema | None, strict: bool) -> tuple[int, str]:
    """Return the first line, from 0, that cannot follow those before it, and why."""
    lines = data.split(b"\n")

    def reason(some: list[bytes]) -> str:
        try:
            _parse(b"\n".join(some), schema, strict)
        except pa.ArrowException as error:
            return str(error)
        return ""

    first = bisect.bisect_left(range(1, len(lines)), True, key=lambda count: bool(reason(lines[:count])))
    found = reason(lines[first : first + 1]) or reason(lines[: first + 1])
    if schema is not None and _UNEXPECTED in found:
        with suppress(ValueError):  # what follows the field may be no JSON
            name = json_lines.unknown_field(json_lines.load(lines[first]), pa.struct(list(schema)))
            found = f"{_UNEXPECTED} {name!r}"
    return first, found


def _mapped(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with each of its plain types changed."""
    if pa.types.is_list(kind):
        # Arrow (26) miscounts nulls in lists of nothing else.
        bare = pa.types.is_null(kind.value_type)
        return pa.list_(pa.string() if bare else _mapped(kind.value_type, change))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _mapped(field.type, change)) for field in kind])
    return change(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Take back Arrow's guess that strings which look like times are times: JSON has none."""
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _unsigned(kind: pa.DataType) -> pa.DataType:
    return pa.uint64() if pa.types.is_float64(kind) else kind


def _typed(file: File, block: Block, guessed: pa.Schema) -> pa.Schema:
    """Return the types that a block says. Arrow does not think of uint64, but reads it."""
    schema = pa.schema([field.with_type(_mapped(field.type, _plain)) for field in guessed])
    table = _parsed(file, block, schema, strict=True)
    for index, field in enumerate(schema):
        if large(table.column(index)):
            whole = field.with_type(_mapped(field.type, _unsigned))
            with suppress(pa.ArrowException):
                _parse(block.data, pa.schema([whole]), strict=False)
                schema = schema.set(index, whole)
    return schema


class JsonLinesSource(FileSource):
    """JSON lines. Columns and types come from the first block of the first file that has rows, and hold for
    all that follows; a field that a line lacks is null.

    A field that the first block lacks is an error where all columns are read, and inside a column that is read. Where
    the job names the columns to keep, other columns are not looked at.
    """

    def _inspect(self) -> pa.Schema:
        for file in self._files:
            for block in blocks(file):
                table = _parsed(file, block, None, strict=True)
                if table.num_rows:
                    return _typed(file, block, table.schema)
        raise SourceError(f"{self._files[0].name!r} holds no rows", "at least one, to know the columns by")

    def count(self) -> int:
        """Count the objects, whatever is in their columns. Raises `SourceError` for lines that are none."""
        nothing = pa.schema([])
        return sum(
            _parsed(file, block, nothing, strict=False).num_rows
            for file in self._files
            for block in blocks(file)
        )

    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self._stored.field(name) for name in columns])
        for block in blocks(file):
            if self.all_columns and len(columns) == len(self._stored):
                table = _parsed(file, block, schema, strict=True)
            else:
                table = self._some_columns(file, block, schema)
            _check_digits(file, block, table)
            yield from table.select(columns).combine_chunks().to_batches(max_chunksize=max_rows)

    def _some_columns(self, file: File, block: Block, schema: pa.Schema) -> pa.Table:
        nested = {field.name: field.type for field in schema if pa.types.is_nested(field.type)}
        if nested:
            with suppress(pa.ArrowException):
                return _parse(block.data, self._stored, strict=True).select(schema.names)
        table = _parsed(file, block, schema, strict=False)
        # Arrow does not look at other columns, but neither at fields inside these.
        found = json_lines.first_unknown(block.data, nested) if nested else None
        if found is not None:
            offset, name = found
            raise _error(file, block.line + offset, f"{_UNEXPECTED} {name!r}", _remedy(name))
        return table


def _check_digits(file: File, block: Block, table: pa.Table) -> None:
    kinds = {field.name: field.type for field in table.schema if large(table.column(field.name))}
    found = json_lines.first_rounded(block.data, kinds) if kinds else None
    if found is not None:
        offset, name, number = found
        reason = f"column {name!r} is of doubles, which would round {number}"
        raise _error(file, block.line + offset, reason, "write such numbers as strings, or use Parquet")
