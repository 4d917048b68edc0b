"""Which rows of a prefill go up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftkv.rows import kept_rows


def test_nobody_asks_for_prompt_logprobs():
    assert kept_rows([3, 1, 9], None, all_rows=False) is None
    assert kept_rows([3, 1, 9], [3, 1, 9], all_rows=False) is None


def test_the_rows_that_are_asked_for_stay():
    kept = kept_rows([4, 5, 6, 1], [0, 5, 3, 1], all_rows=False)
    assert kept.skipped == (0, 4, 3, 0)
    assert kept.lengths == (4, 1, 3, 1)
    assert kept.logprob_starts == (0, 1, 0, 1)


def test_all_rows_stay_where_hidden_states_are_wanted():
    kept = kept_rows([4, 2], None, all_rows=True)
    assert (kept.skipped, kept.lengths, kept.logprob_starts) == ((0, 0), (4, 2), (4, 2))
    assert kept_rows([4, 2], [1, 2], all_rows=True).logprob_starts == (1, 2)


def test_lists_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        kept_rows([4, 2], [1], all_rows=False)


chunks = st.lists(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1)


@given(chunks, st.booleans())
def test_every_wanted_row_and_the_last_stay(requests, all_rows):
    lengths, starts = [n for n, _ in requests], [s for _, s in requests]
    kept = kept_rows(lengths, starts, all_rows=all_rows)
    if kept is None:
        assert not all_rows
        assert lengths == starts
        return
    for length, start, skip, stay, begin in zip(
        lengths, starts, kept.skipped, kept.lengths, kept.logprob_starts, strict=True
    ):
        assert skip + stay == length
        assert stay >= 1
        assert skip <= start  # no row whose logprobs are wanted is left below
        assert skip + begin == start  # and SGLang finds the first of them where it was
        if not all_rows:
            assert stay == max(1, length - start)
