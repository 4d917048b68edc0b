"""Which rows are missing, when parts are made in any order: every row in one part, names in the order of rows."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sdk.errors import OutputError
from batch_sdk.manifest import Part
from batch_sdk.units import Unit, holes, missing_units, part_name, without


def part(unit: Unit) -> Part:
    return Part(unit.name, unit.start, unit.rows)


def test_an_empty_output_is_one_empty_part():
    assert missing_units([], 0, 5) == [Unit("part-00000.parquet", 0, 0)]
    assert missing_units([part(Unit("part-00000.parquet", 0, 0))], 0, 5) == []


def test_the_rows_after_the_last_part_are_cut_anew():
    there = [Part("part-00000.parquet", 0, 3)]
    assert missing_units(there, 8, 4) == [Unit("part-00001.parquet", 3, 4), Unit("part-00002.parquet", 7, 1)]


@given(st.integers(1, 60), st.data())
def test_runs_that_stop_anywhere_leave_no_row_out(total, data):
    """Each run cuts its own way and finishes some of its parts, in any order."""
    parts: list[Part] = []
    for _ in range(4):
        units = missing_units(parts, total, data.draw(st.integers(1, 13)))
        done = data.draw(st.lists(st.sampled_from(units), unique=True)) if units else []
        parts = sorted([*parts, *map(part, done)], key=lambda known: known.start)
    parts = sorted([*parts, *map(part, missing_units(parts, total, 7))], key=lambda known: known.start)
    assert holes(parts) == []
    assert [row for p in parts for row in range(p.start, p.start + p.rows)] == list(range(total))
    names = [p.name for p in parts]
    assert names == sorted(set(names))


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_without_yields_what_no_part_has(total, size, data):
    units = missing_units([], total, size)
    there = data.draw(st.lists(st.sampled_from(units), unique=True))
    parts = sorted(map(part, there), key=lambda known: known.start)
    start = data.draw(st.sampled_from([0, *(gap.start for gap in holes(parts)[:1])]))
    table = pa.table({"row": range(start, total)})
    batches = table.to_batches(max_chunksize=data.draw(st.integers(1, 11)))
    taken = {row for p in parts for row in range(p.start, p.start + p.rows)}
    found = [row for batch in without(batches, start, parts) for row in batch.column("row").to_pylist()]
    assert found == [row for row in range(start, total) if row not in taken]


@pytest.mark.parametrize(
    "second",
    [Part("part-00001.parquet", 5, 1), Part("part-00003.parquet", 8, 1), Part("part-00000.parquet", 9, 1)],
)
def test_a_record_that_does_not_fit_is_refused(second):
    with pytest.raises(OutputError, match="does not fit"):
        holes([Part(part_name(0), 0, 3), second])
