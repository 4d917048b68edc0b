"""Whole numbers that a column of doubles would round: they are found, so that no digit is lost in silence.

Arrow's readers of text take a column for doubles if one of its numbers has a point, or is no int64. From 2**53 on
that costs digits, which for an id are all that matters. Writers of JSON put down a double without a point too, by the
fewest digits that tell it from others, and then zeros: `1152921504606847000` is 2**60. Such a number comes back.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EXACT = float(2**53)
DIGITS = len(str(2**53))
"""A whole number with fewer digits is exact as a double."""
_LONG = rf"^\s*[-+]?\d{{{DIGITS},}}\s*$"


def large(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether a column has doubles, also inside lists and structs, that may stand for other whole numbers."""
    if isinstance(column, pa.ChunkedArray):
        return any(map(large, column.chunks))
    kind = column.type
    if pa.types.is_float64(kind):
        return bool(pc.any(pc.greater_equal(pc.abs(column), _EXACT)).as_py())
    if pa.types.is_list(kind):
        return large(column.flatten())
    return any(large(column.field(index)) for index in range(kind.num_fields))


def first_rounded(texts: pa.Array) -> int | None:
    """Return the first of these strings that is a whole number which a double would round."""
    for row in np.flatnonzero(pc.match_substring_regex(texts, _LONG).to_numpy(zero_copy_only=False)).tolist():
        if rounded(Decimal(texts[row].as_py().strip())):
            return row
    return None


def rounded(number: Decimal) -> bool:
    """Whether a double neither holds this whole number nor is written so."""
    near = float(number)
    return number not in (Decimal(near), Decimal(repr(near)))
