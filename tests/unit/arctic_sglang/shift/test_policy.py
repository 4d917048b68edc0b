import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_sglang.shift.policy import AUTO, Mode, Policy, Timing, crossover, parse_threshold

times = st.floats(1e-6, 1.0)


def test_small_steps_are_tensor_parallel():
    policy = Policy(512)
    assert [policy.mode(tokens) for tokens in (1, 512, 513)] == [Mode.TENSOR, Mode.TENSOR, Mode.SEQUENCE]
    assert Policy(0).mode(1) is Mode.SEQUENCE
    assert Policy(None).mode(10**9) is Mode.TENSOR


@pytest.mark.parametrize(("given", "found"), [("auto", AUTO), ("512", 512), (0, 0), (7, 7)])
def test_thresholds_that_can_be_given(given, found):
    assert parse_threshold(given) == found


@pytest.mark.parametrize("given", ["", "-1", -1, "many", "1.5"])
def test_thresholds_that_cannot(given):
    with pytest.raises(ValueError, match="must be a number of tokens"):
        parse_threshold(given)


def curve(tokens, crossing=1000):
    """Tensor parallelism starts lower and rises faster."""
    return Timing(tokens, 1e-3 + tokens * 2e-6, 1e-3 + crossing * 1e-6 + tokens * 1e-6)


def test_the_threshold_is_where_the_lines_cross():
    assert crossover([curve(tokens) for tokens in (4096, 256, 1024, 512, 2048)]) == pytest.approx(1000, abs=2)


def test_one_noisy_size_does_not_move_it_far():
    timings = [curve(tokens) for tokens in (128, 256, 512, 768, 1024, 2048, 4096)]
    timings[1] = Timing(256, timings[1].tensor * 3, timings[1].sequence)  # a pause of the host
    assert crossover(timings) == pytest.approx(1000, abs=2)
    timings[5] = Timing(2048, timings[5].tensor, timings[5].sequence * 1.05)
    assert 512 <= crossover(timings) <= 2048


def test_never_and_always():
    assert crossover([Timing(64, 2.0, 1.0), Timing(128, 3.0, 1.0)]) == 0
    assert crossover([Timing(64, 1.0, 2.0), Timing(128, 1.0, 3.0)]) is None


@given(st.dictionaries(st.integers(1, 10_000), st.tuples(times, times), min_size=1, max_size=8))
def test_no_other_crossing_loses_less(measured):
    timings = [Timing(tokens, *pair) for tokens, pair in measured.items()]

    def lost(threshold):
        policy, total = Policy(threshold), 0.0
        for timing in timings:
            times = timing.tensor, timing.sequence
            total += min(times[policy.mode(timing.tokens) is Mode.SEQUENCE] / min(times) - 1, 0.2)
        return total

    found = lost(crossover(timings))
    assert all(found <= lost(threshold) + 1e-9 for threshold in (0, None, *measured))


@pytest.mark.parametrize(
    ("timings", "told"),
    [
        ([], "no step was measured"),
        ([Timing(8, 1.0, 1.0), Timing(8, 1.0, 1.0)], "steps of 8 tokens were measured twice"),
        ([Timing(8, 0.0, 1.0)], "a step of 8 tokens is said to take 0.0"),
        ([Timing(8, 1.0, float("nan"))], "said to take 1.0 or nan"),
    ],
)
def test_what_was_not_measured_is_refused(timings, told):
    with pytest.raises(ValueError, match=told):
        crossover(timings)
