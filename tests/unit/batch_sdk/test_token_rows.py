"""What an engine says of token rows before it runs them, against the same row by row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.engines.token_rows import cut, refusals

ROWS = st.lists(st.lists(st.integers(-2, 12), max_size=6), max_size=8)


def refusal_slow(row, limit, vocabulary):
    if limit is not None and len(row) > limit:
        return "too_long"
    good = all(0 <= token and (vocabulary is None or token < vocabulary) for token in row)
    return None if row and good else "rejected"


@given(rows=ROWS, limit=st.integers(1, 6))
def test_cut(rows, limit):
    assert cut(TokenRows.from_lists(rows), limit).to_lists() == [row[:limit] for row in rows]


@given(rows=ROWS, limit=st.none() | st.integers(1, 6), vocabulary=st.none() | st.integers(1, 12))
def test_refusals(rows, limit, vocabulary):
    errors = refusals(TokenRows.from_lists(rows), limit, vocabulary)
    assert [error and error.kind for error in errors] == [
        refusal_slow(row, limit, vocabulary) for row in rows
    ]


def test_messages_say_what_and_what_is_wanted():
    outside, empty, long = refusals(TokenRows.from_lists([[1, 9, -3], [], [1] * 4]), 3, 9)
    assert outside.message == "token 1 of the input is 9; the model's ids are 0 to 8"
    assert empty.message == "the input has no tokens"
    assert long.message == "the input has 4 tokens, the model takes 3"
