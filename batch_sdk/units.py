"""Which rows an output lacks, as parts with a name and a place each: what several workers can share out.

Parts that are computed side by side are recorded as they come, so that one may be there before those ahead of
it. The numbers in their names tell what is between: two parts whose numbers leave room for n others have n
equal parts between them. So the rows of a part never depend on who computes it, or in which run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from batch_sdk.errors import OutputError
from batch_sdk.manifest import Part


@dataclass(frozen=True, slots=True)
class Unit:
    """A part that is to be made: rows `start` to `start + rows - 1` of the output, in the file `name`."""

    name: str
    start: int
    rows: int


def part_name(number: int) -> str:
    """Return the file name of the part with this number, from 0; names sort as the rows do."""
    return f"part-{number:05d}.parquet"


def _number(name: str) -> int:
    return int(name.removeprefix("part-").removesuffix(".parquet"))


def after(parts: Sequence[Part]) -> tuple[int, int]:
    """Return the number and the first row of whatever comes after the last of these parts."""
    if not parts:
        return 0, 0
    return _number(parts[-1].name) + 1, parts[-1].start + parts[-1].rows


def holes(parts: Sequence[Part]) -> list[Unit]:
    """Return what is missing before the last of these parts.

    Raises:
        OutputError: names and rows do not fit each other.
    """
    found: list[Unit] = []
    for index, part in enumerate(parts):
        number, start = after(parts[:index][-1:])
        count, rows = _number(part.name) - number, part.start - start
        if count < 0 or rows < 0 or bool(count) != bool(rows) or (count and rows % count):
            raise OutputError(
                f"the record of {part.name!r} does not fit the part before it",
                f"room for {count} parts in {rows} rows",
                "run the job anew with overwrite=True (--overwrite)",
            )
        size = rows // count if count else 0
        found += [Unit(part_name(number + i), start + i * size, size) for i in range(count)]
    return found


def missing_units(parts: Sequence[Part], total: int, size: int) -> list[Unit]:
    """Return all that is missing of `total` rows; what comes after the last part is cut anew, at every `size`.

    An output without rows is one empty part: without it there would be no schema.
    """
    number, start = after(parts)
    found = holes(parts)
    if not parts and not total:
        return [Unit(part_name(0), 0, 0)]
    cuts = range(start, total, size)
    return found + [Unit(part_name(number + i), at, min(size, total - at)) for i, at in enumerate(cuts)]


def without(batches: Iterable[pa.RecordBatch], start: int, parts: Sequence[Part]) -> Iterator[pa.RecordBatch]:
    """Yield the rows that no part has; `start` is the position of the first row of `batches`."""
    position = start
    ahead = [part for part in parts if part.start >= start and part.rows]
    for batch in batches:
        end = position + batch.num_rows
        while position < end:
            while ahead and ahead[0].start + ahead[0].rows <= position:
                ahead.pop(0)
            stop = min(end, ahead[0].start if ahead else end)
            if position < stop:
                yield batch.slice(position - (end - batch.num_rows), stop - position)
                position = stop
            else:
                position = min(end, ahead[0].start + ahead[0].rows)
