"""What steps take beside the device's time, played as a host and a device that keep each other waiting."""

import numpy as np
import pytest

from speculative.pace import Pace

WAIT = 5e-4
DEVICE, WIDE_DEVICE = 1e-3, 1.5e-3  # seconds by the cost table


def play(pace, kinds, *, host, gap, rows=8, start=0.0):
    """Plain steps ("p") overlap with the one before, those with drafts ("w") wait for it. Returns the end."""
    launched, ends, before = start, start, None
    for kind in kinds:
        wide = kind == "w"
        seconds = WIDE_DEVICE if wide else DEVICE
        if wide:  # `host` passes while the step before runs
            ended = ends if ends > launched + host else None
            launched = max(launched + host, ends) + gap
        else:
            # The host handles the result of the step before the last one, then launches.
            ended, launched = None, max(launched + host, before if before is not None else start)
        pace.launched(launched, rows, seconds, wide=wide, waited=wide, ended=ended)
        before, ends = ends, max(launched, ends) + seconds
    return ends


def test_before_anything_is_known():
    pace = Pace(WAIT)
    assert pace.excess(1) == (0.0, WAIT)
    assert pace.excess(10**6) == (0.0, WAIT)
    assert pace.pause(64, DEVICE) == 0


def test_a_busy_device_hides_the_host():
    pace = Pace(WAIT)
    play(pace, "p" * 64, host=0.2e-3, gap=0)
    assert pace.excess(8) == pytest.approx((0.0, WAIT), abs=1e-6)
    assert pace.pause(8, DEVICE) == 0


def test_a_slow_host_is_seen_in_plain_steps():
    pace = Pace(WAIT)
    play(pace, "p" * 64, host=3e-3, gap=0)
    plain, wide = pace.excess(8)
    assert plain == pytest.approx(2e-3, rel=0.01)
    assert wide == pytest.approx(2e-3 + WAIT, rel=0.01)
    # A step of 3 ms may lose 60 us to asking; eight requests are 80 us.
    assert pace.pause(8, DEVICE) == 1
    assert pace.pause(1, DEVICE) == 0
    assert pace.pause(64, DEVICE) == 10  # nothing is known of so many, so they are taken to be like eight
    assert pace.pause(15, DEVICE) == 2


def test_the_gap_is_seen_in_steps_that_wait():
    pace = Pace(WAIT)
    play(pace, "w" * 64, host=0, gap=0.7e-3)
    assert pace.excess(8)[1] == pytest.approx(0.7e-3, rel=0.01)


def test_a_gap_that_the_host_did_not_see_the_beginning_of():
    pace = Pace(WAIT)
    play(pace, "w" * 64, host=4e-3, gap=0.7e-3)
    assert pace.excess(8)[1] == pytest.approx(4e-3 - WIDE_DEVICE + 0.7e-3, rel=0.01)


def test_a_probe_among_plain_steps_teaches_and_does_not_mislead():
    pace = Pace(WAIT)
    play(pace, "ppppppp" + "wppppppp" * 20, host=0.2e-3, gap=0.7e-3)
    plain, wide = pace.excess(8)
    assert plain == pytest.approx(0.0, abs=1e-6)
    assert wide == pytest.approx(0.7e-3, rel=0.05)


def test_octaves_are_apart_and_larger_ones_take_over_from_smaller_ones():
    pace = Pace(WAIT)
    end = play(pace, "p" * 64, host=3e-3, gap=0, rows=8)
    assert pace.excess(7) == (0.0, WAIT)
    assert pace.excess(200)[0] == pytest.approx(2e-3, rel=0.01)
    pace.interrupt()
    play(pace, "p" * 64, host=2e-3, gap=0, rows=200, start=end)
    assert pace.excess(200)[0] == pytest.approx(1e-3, rel=0.01)
    assert pace.excess(15)[0] == pytest.approx(2e-3, rel=0.01)


def test_pauses_between_steps_are_not_learnt():
    pace = Pace(WAIT)
    end = play(pace, "p" * 32, host=3e-3, gap=0)
    pace.interrupt()  # a prefill, or nothing to do for an hour
    play(pace, "p" * 32, host=3e-3, gap=0, start=end + 3600)
    assert pace.excess(8)[0] == pytest.approx(2e-3, rel=0.01)


def test_one_long_step_moves_little():
    pace = Pace(WAIT)
    end = play(pace, "p" * 64, host=3e-3, gap=0)
    play(pace, "p" * 16, host=3e-3, gap=0, start=end + 10)
    assert pace.excess(8)[0] < 4e-3


def test_a_step_that_cannot_be_priced_is_not_learnt_from():
    pace = Pace(WAIT, every=1)
    for now in range(20):
        pace.launched(float(now), 8, np.inf, wide=False, waited=False)
    assert pace.excess(8) == (0.0, WAIT)


def test_ranks_agree_at_the_same_steps():
    told = {}

    def from_rank_0(rank):
        def agree(estimates):
            if rank == 0:
                told[len(told)] = estimates.copy()
            asked[rank] += 1
            return told[asked[rank] - 1]

        return agree

    asked = [0, 0]
    ranks = [Pace(WAIT, every=8, agree=from_rank_0(rank)) for rank in range(2)]
    play(ranks[0], "pppw" * 16, host=3e-3, gap=0.5e-3)
    play(ranks[1], "pppw" * 16, host=9e-3, gap=0.1e-3)  # a slower processor
    assert asked == [8, 8]
    assert ranks[0].excess(8) == ranks[1].excess(8) != (0.0, WAIT)
