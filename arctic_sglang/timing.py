"""How long work takes on devices that others may be using too. Pure: samples are passed in.

Kernels of another process take turns with ours, and a collective waits for the rank whose turn it is not. Either makes
a sample longer, by milliseconds, and none makes it shorter. So the least of all samples is the nearest to the truth,
and it is trusted once it was seen more than once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDS, _SECONDS = 12, 1.0  # after either that is it
_SEEN, _SPREAD = 3, 0.1  # so many samples within so much of the least


class Least(NamedTuple):
    """The time that work takes by itself.

    Attributes:
        seconds: the least sample.
        steady: whether others were about as short.
    """

    seconds: float
    steady: bool


def least(sample: Callable[[], NDArray[np.float64]], rounds: int = _ROUNDS) -> Least:
    """Samples until the least was seen more than once, or for a second.

    Args:
        sample: seconds of some runs of the work, float64 [runs]; of several ranks, the slowest one's of each run, so
            that all of them sample equally often. Of the first runs, those that are slow for being the first do no
            harm.
        rounds: times to call it at most.

    Raises:
        ValueError: there are no samples.
    """
    found = np.empty(0)
    for _ in range(rounds):
        found = np.sort(np.concatenate([found, sample()]))
        if len(found) >= _SEEN and found[_SEEN - 1] <= (1 + _SPREAD) * found[0]:
            return Least(float(found[0]), True)
        if found.sum() > _SECONDS:
            break
    if not len(found):
        raise ValueError("the time of some work was asked for, and it was never run")
    return Least(float(found[0]), False)
