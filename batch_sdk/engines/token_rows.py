"""What an engine can say of token rows before it runs them. NumPy alone: no step looks at rows one by one."""

from __future__ import annotations

import numpy as np

from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.errors import RowError, RowErrorKind


def cut(rows: TokenRows, limit: int) -> TokenRows:
    """Return the rows with at most their first `limit` tokens."""
    over = rows.lengths > limit
    if not over.any():
        return rows
    starts = np.cumsum(rows.lengths, dtype=np.int64) - rows.lengths
    within = np.arange(rows.tokens) - np.repeat(starts, rows.lengths)
    return TokenRows(rows.ids[within < limit], np.minimum(rows.lengths, np.int32(limit)))


def refusals(rows: TokenRows, limit: int | None, vocabulary: int | None) -> list[RowError | None]:
    """Return for every row why the model cannot take it, or None.

    Args:
        rows: any number.
        limit: tokens of the longest row that it takes; None is any.
        vocabulary: its ids are 0 to below this; None is any from 0.
    """
    errors: list[RowError | None] = [None] * rows.rows
    outside = rows.ids < 0
    if vocabulary is not None:
        outside |= rows.ids >= vocabulary
    if outside.any():
        ends = np.cumsum(rows.lengths, dtype=np.int64)
        places = np.flatnonzero(outside)
        wrong, firsts = np.unique(np.searchsorted(ends, places, side="right"), return_index=True)
        for row, place in zip(wrong.tolist(), places[firsts].tolist(), strict=True):
            token = place - int(ends[row] - rows.lengths[row])
            errors[row] = _outside(token, int(rows.ids[place]), vocabulary)
    for row in np.flatnonzero(rows.lengths < 1).tolist():
        errors[row] = RowError(RowErrorKind.REJECTED, "the input has no tokens")
    if limit is not None:
        for row in np.flatnonzero(rows.lengths > limit).tolist():
            tokens = int(rows.lengths[row])
            errors[row] = RowError(
                RowErrorKind.TOO_LONG, f"the input has {tokens} tokens, the model takes {limit}"
            )
    return errors


def _outside(token: int, value: int, vocabulary: int | None) -> RowError:
    known = "from 0" if vocabulary is None else f"0 to {vocabulary - 1}"
    return RowError(
        RowErrorKind.REJECTED, f"token {token} of the input is {value}; the model's ids are {known}"
    )
