"""No pair of features is undefined: an engine of the tests serves it, or the start is refused with a reason."""

import itertools

import pytest

from arctic_sglang.shift import limits as shift_limits
from speculative import settings as speculative_settings
from swiftkv import limits as swiftkv_limits
from tests.combinations import ELSEWHERE, EMPTY, OFTEN, OTHERS, REFUSED, every_pair


def served(combinations):
    return set(itertools.chain.from_iterable(one.pairs() for one in combinations))


def test_every_pair_is_served_or_refused():
    missing = every_pair() - served([*OFTEN, *OTHERS]) - set(REFUSED) - EMPTY
    assert not missing
    assert not served([*OFTEN, *OTHERS]) & set(REFUSED)


def test_what_ci_leaves_out_is_a_part_of_something_that_it_has():
    rare = {
        ("parallel", "ulysses"),
        ("parallel", "shift on tp"),
        ("speculation", "suffix"),
        ("speculation", "head"),
    }
    often = [*OFTEN, *itertools.chain.from_iterable(ELSEWHERE.values())]
    missing = every_pair() - served(often) - set(REFUSED) - EMPTY
    assert all(pair & rare for pair in missing)


@pytest.mark.parametrize(
    "pair", REFUSED, ids=lambda pair: "-".join(f"{k}={v}" for k, v in sorted(pair, key=str))
)
def test_a_pair_is_refused_with_its_reason(pair):
    limits, settings, reason = REFUSED[pair]
    judge = {
        "shift": shift_limits.refusals,
        "swiftkv": swiftkv_limits.refusals,
        "speculation": speculative_settings.refusals,
    }[limits]
    (told,) = judge(settings)
    assert reason in told
