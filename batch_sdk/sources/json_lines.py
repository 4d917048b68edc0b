"""Single lines of JSON, looked at in Python: for the questions that Arrow's parser of whole blocks leaves open."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa

from batch_sdk.sources.digits import DIGITS, rounded

_LONG = re.compile(rb"\d{%d}" % DIGITS)


def load(line: bytes) -> dict[str, Any]:
    """Return the object of a line that Arrow's parser took; whole numbers as `Decimal`, with all their digits."""
    found: dict[str, Any] = json.loads(line.decode("utf-8", "replace"), parse_int=Decimal, strict=False)
    return found


def first_rounded(data: bytes, kinds: Mapping[str, pa.DataType]) -> tuple[int, str, Decimal] | None:
    """Return the first whole number that a double of these columns does not hold: line from 0, column, number."""
    for offset, line in enumerate(data.split(b"\n")):
        row = load(line) if _LONG.search(line) else {}
        for name, kind in kinds.items():
            for number in _doubles(row.get(name), kind):
                if rounded(number):
                    return offset, name, number
    return None


def _doubles(value: Any, kind: pa.DataType) -> Iterator[Decimal]:
    """Yield the whole numbers that have become doubles."""
    if isinstance(value, Decimal) and pa.types.is_floating(kind):
        yield value
    elif isinstance(value, list) and pa.types.is_list(kind):
        for item in value:
            yield from _doubles(item, kind.value_type)
    elif isinstance(value, dict) and pa.types.is_struct(kind):
        for field in kind:
            yield from _doubles(value.get(field.name), field.type)


def first_unknown(data: bytes, kinds: Mapping[str, pa.DataType]) -> tuple[int, str] | None:
    """Return the first field inside these columns that their types lack: line from 0, and its path."""
    for offset, line in enumerate(data.split(b"\n")):
        row = load(line) if line.strip() else {}
        for name, kind in kinds.items():
            found = unknown_field(row.get(name), kind)
            if found:
                return offset, f"{name}.{found}"
    return None


def unknown_field(value: Any, kind: pa.DataType) -> str:
    """Return the path of the first field that `kind` lacks, or an empty string."""
    if isinstance(value, list) and pa.types.is_list(kind):
        return next(filter(None, (unknown_field(item, kind.value_type) for item in value)), "")
    if isinstance(value, dict) and pa.types.is_struct(kind):
        for name, item in value.items():
            if kind.get_field_index(name) < 0:
                return name
            found = unknown_field(item, kind.field(name).type)
            if found:
                return f"{name}.{found}"
    return ""
