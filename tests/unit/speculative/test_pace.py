"""What steps take above the cost table, as it is learnt."""

import numpy as np
import pytest

from speculative.pace import Circumstances, Kind, Pace

WAIT = 5e-4
DEVICE = 1e-3  # seconds of a plain step by the cost table


def observe(pace, rows, seconds, cost, *, wide=False, prefilled=False):
    pace.observe(Circumstances(rows, prefilled), Kind(wide), seconds, cost)


def watch(pace, seconds, *, rows=8, wide=False, steps=64, prefilled=False):
    for _ in range(steps):
        took = None if seconds is None else DEVICE + seconds
        observe(pace, rows, took, DEVICE, wide=wide, prefilled=prefilled)


def excess(pace, rows):
    """Of plain steps and of those with the index's drafts."""
    return pace.excess(Circumstances(rows))[:2]


def test_before_anything_is_known():
    pace = Pace(WAIT)
    assert excess(pace, 1) == (0.0, WAIT)
    assert excess(pace, 10**6) == (0.0, WAIT)


def test_a_slow_host_is_seen_in_plain_steps_and_assumed_of_others():
    pace = Pace(WAIT)
    watch(pace, 2e-3)
    assert excess(pace, 8) == pytest.approx((2e-3, 2e-3 + WAIT))


def test_steps_with_drafts_are_apart():
    pace = Pace(WAIT)
    watch(pace, 0.7e-3, wide=True)
    assert excess(pace, 8) == pytest.approx((0.0, 0.7e-3))


def test_octaves_are_apart_and_larger_ones_take_over_from_smaller_ones():
    pace = Pace(WAIT)
    watch(pace, 2e-3, rows=8)
    assert excess(pace, 7) == (0.0, WAIT)
    assert excess(pace, 200)[0] == pytest.approx(2e-3)
    watch(pace, 1e-3, rows=200)
    assert excess(pace, 200)[0] == pytest.approx(1e-3)
    assert excess(pace, 15)[0] == pytest.approx(2e-3)


def test_a_change_is_learnt():
    pace = Pace(WAIT)
    watch(pace, 1e-4)
    watch(pace, 2e-3, steps=128)
    assert excess(pace, 8)[0] == pytest.approx(2e-3, rel=0.01)


def test_long_steps_among_others_move_little():
    """A pause of the host has reasons of its own; one step in five has one here, of any length."""
    pace = Pace(WAIT, every=1)
    for step in range(200):
        observe(pace, 8, 10.0 * step if step % 5 == 0 else DEVICE + 2e-3, DEVICE, wide=False)
    assert excess(pace, 8)[0] == pytest.approx(2e-3)


def test_the_first_steps_are_slow_and_forgotten():
    pace = Pace(WAIT)
    watch(pace, 50e-3, steps=16)
    watch(pace, 2e-3, steps=64)
    assert excess(pace, 8)[0] == pytest.approx(2e-3)


def test_a_plain_step_behind_one_with_drafts_does_not_count():
    """It was launched as late as that one; those behind it overlap."""
    pace = Pace(WAIT)
    for step in range(64):
        drafted = step % 2 == 0
        seconds = DEVICE + (3e-3 if drafted else 1e-3)
        pace.observe(Circumstances(8, drafted=drafted), Kind.PLAIN, seconds, DEVICE)
    assert excess(pace, 8)[0] == pytest.approx(1e-3)
    for _ in range(64):
        pace.observe(Circumstances(8, drafted=True), Kind.WIDE, DEVICE + 2e-3, DEVICE)
    assert excess(pace, 8)[1] == pytest.approx(2e-3)


def test_a_plain_step_that_asked_in_vain_does_not_count():
    """At 256 requests asking takes milliseconds, and drafts would seem to pay against such steps for ever."""
    pace, now = Pace(WAIT), Circumstances(8)
    watch(pace, 1e-3)
    watch(pace, 5e-3, wide=Kind.ASKED)
    assert excess(pace, 8)[0] == pytest.approx(1e-3)
    for _ in range(2000):
        assert not pace.due(now)
        pace.planned(now, Kind.ASKED)


def test_less_than_nothing_is_nothing():
    pace = Pace(WAIT)
    watch(pace, -1e-3)
    assert excess(pace, 8) == (0.0, WAIT)


@pytest.mark.parametrize("seconds", [None, np.inf, -np.inf, np.nan])
def test_a_step_that_was_not_measured_teaches_nothing(seconds):
    pace = Pace(WAIT, every=1)
    watch(pace, seconds)
    assert excess(pace, 8) == (0.0, WAIT)


def test_a_step_without_a_price_teaches_nothing():
    pace = Pace(WAIT, every=1)
    for _ in range(8):
        observe(pace, 8, 1.0, np.inf, wide=False)
    assert excess(pace, 8) == (0.0, WAIT)


def test_a_guess_gets_its_unit_from_plain_steps():
    """Plain steps of 24 units take 30 ms; those of 48 take 45 instead of 60: 12 units less than guessed."""
    pace = Pace(WAIT, guessed=True, every=1)
    assert excess(pace, 8) == (0.0, 0.0)
    observe(pace, 8, 45e-3, 48, wide=True)  # nobody knows yet what that is
    for _ in range(32):
        observe(pace, 8, 30e-3, 24, wide=False)
    assert excess(pace, 8) == (0.0, 0.0)
    for _ in range(32):
        observe(pace, 8, 45e-3, 48, wide=True)
    assert excess(pace, 8) == pytest.approx((0.0, -12.0))
    assert excess(pace, 500) == pytest.approx((0.0, -12.0))
    assert excess(pace, 2) == (0.0, 0.0)


def test_a_guess_is_never_corrected_to_nothing():
    pace = Pace(WAIT, guessed=True, every=1)
    for seconds, wide in ((30e-3, False), (1e-9, True)):
        for _ in range(32):
            observe(pace, 8, seconds, 24, wide=wide)
    assert excess(pace, 8)[1] == pytest.approx(-18.0)


def test_a_few_samples_are_not_believed():
    pace = Pace(WAIT, every=1)
    watch(pace, 2e-3, steps=7)
    assert excess(pace, 8) == (0.0, WAIT)
    watch(pace, 2e-3, steps=1)
    assert excess(pace, 8)[0] == pytest.approx(2e-3)


def test_ranks_agree_at_the_same_steps():
    told = []

    def of_rank_0(estimates):
        told.append(estimates.copy())
        return estimates

    def of_another(estimates):
        return told.pop(0)

    first, other = Pace(WAIT, every=8, agree=of_rank_0), Pace(WAIT, every=8, agree=of_another)
    for step in range(64):
        wide, measured = step % 3 == 0, step % 5 != 0
        observe(first, 8, 3e-3, DEVICE, wide=wide)
        observe(
            other, 8, 9e-3 if measured else None, DEVICE, wide=wide
        )  # a slower processor, a lost measurement
    assert told == []
    assert excess(first, 8) == excess(other, 8) != (0.0, WAIT)


def test_a_step_behind_a_prefill_is_another_matter():
    pace = Pace(WAIT)
    watch(pace, 2e-3)
    behind = Circumstances(8, prefilled=True)
    assert pace.excess(behind) == pace.excess(Circumstances(8))  # as long as nothing else is known
    watch(pace, 1e-4, prefilled=True)
    assert pace.excess(behind).plain == pytest.approx(1e-4)
    assert pace.excess(Circumstances(8)).plain == pytest.approx(2e-3)


def test_the_heads_steps_are_apart():
    pace = Pace(WAIT)
    watch(pace, 2e-3, wide=True)
    assert pace.excess(Circumstances(8)).head == pytest.approx(2e-3)  # at least what any draft takes
    watch(pace, 3e-3, wide=Kind.HEAD)
    assert pace.excess(Circumstances(8))[:3] == pytest.approx((0.0, 2e-3, 3e-3))


def test_the_head_is_unsure_until_it_was_seen_often_under_the_same_circumstances():
    pace, now = Pace(WAIT), Circumstances(8)
    assert pace.excess(now).unsure
    watch(pace, 3e-3, wide=Kind.HEAD, steps=16)
    assert pace.excess(now).unsure
    watch(pace, 3e-3, wide=Kind.HEAD, steps=16)
    assert not pace.excess(now).unsure
    assert pace.excess(Circumstances(8, prefilled=True)).unsure
    assert pace.excess(Circumstances(16)).unsure


@pytest.mark.parametrize("kind", [Kind.WIDE, Kind.HEAD])
def test_plain_steps_are_due_now_and_then(kind):
    """Soon while nobody knows what they take, seldom after that; four in a row, as the first does not count."""
    pace, now, plain = Pace(WAIT), Circumstances(8), []
    for step in range(1100):
        due = pace.due(now)
        plain += [step] if due else []
        pace.planned(now, Kind.PLAIN if due else kind)
        now = Circumstances(8, drafted=not due)
    runs = [8, 20, 32, 548, 1064]
    assert plain == [first + step for first in runs for step in range(4)]
    assert not pace.due(Circumstances(1))
    assert not pace.due(Circumstances(8, prefilled=True))
