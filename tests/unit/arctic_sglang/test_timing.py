"""Times of work on devices that others may be using."""

import numpy as np
import pytest

from arctic_sglang.timing import least


def told(*rounds):
    """Samples that are given out one round after the other, and how many rounds were."""
    given = []

    def sample():
        given.append(rounds[len(given)])
        return np.array(given[-1], float)

    return sample, given


def milliseconds(*rounds):
    return told(*([sample / 1e3 for sample in samples] for samples in rounds))


def test_steady_samples_are_taken_once():
    sample, given = milliseconds([3.1, 1.04, 1.0, 1.09])
    assert least(sample) == (1e-3, True)
    assert len(given) == 1


def test_more_are_taken_until_the_least_was_seen_more_than_once():
    sample, given = milliseconds([30.0, 1.0, 25.0], [31.0, 1.2, 1.05], [1.02, 7.0])
    assert least(sample) == (1e-3, True)
    assert len(given) == 3


@pytest.mark.parametrize("rounds", [1, 4])
def test_what_never_settles_is_said_to_be_unsteady(rounds):
    sample, given = told(*[[1e-3 * 4.0**-n] for n in range(9)])
    assert least(sample, rounds) == (1e-3 * 4.0 ** (1 - rounds), False)
    assert len(given) == rounds


def test_long_work_is_not_run_for_ever():
    sample, given = told(*[[0.4 / 2**n, 0.7] for n in range(9)])
    assert least(sample) == (0.4, False)
    assert len(given) == 1


def test_long_samples_that_agree_do_not_settle_it():
    """Turns of another process are as long as each other."""
    sample, given = milliseconds([30.0, 30.1, 1.0], [30.2, 30.0, 1.0], [30.0, 1.01, 30.0])
    assert least(sample) == (1e-3, True)
    assert len(given) == 3


def test_work_that_was_never_run():
    with pytest.raises(ValueError, match="never run"):
        least(lambda: np.empty(0))
