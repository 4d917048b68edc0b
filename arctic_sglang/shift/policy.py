"""Which kind of parallelism a step gets. Pure: numbers in and out, no clock.

Sequence parallelism reads all weights on every rank, and sends little; tensor parallelism reads a share of them, and
sends every token's row twice a layer. So steps of few tokens want the one, steps of many the other. What counts is
the number of tokens that the kernels see, padding of CUDA graphs included: a graph is captured once, in its own
mode, and all ranks of a step decide alike without asking each other.

There is no hysteresis: both modes leave the same cache behind, so that a change costs nothing, and where the two are
as fast as each other it does not matter which one runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

AUTO = "auto"
# A measured size says at most so much for either mode, as a share of its faster time: the rest is noise.
_MOST = 0.2


class Mode(StrEnum):
    """How a step's work is shared out."""

    TENSOR = "tp"  # over all ranks, by weights
    SEQUENCE = "sp"  # over each sequence group, by tokens


@dataclass(frozen=True, slots=True)
class Policy:
    """The mode of a step.

    Attributes:
        threshold: tokens up to which a step is tensor parallel; 0: never (plain Ulysses), None: always.
    """

    threshold: int | None

    def mode(self, tokens: int) -> Mode:
        """The mode of a step.

        Args:
            tokens: of the step as the kernels see it: of all requests, drafts and padding included.
        """
        return Mode.TENSOR if self.threshold is None or tokens <= self.threshold else Mode.SEQUENCE


@dataclass(frozen=True, slots=True)
class Timing:
    """What a step of so many tokens takes in each mode.

    Attributes:
        tokens: of the step.
        tensor: seconds.
        sequence: seconds.
    """

    tokens: int
    tensor: float
    sequence: float


def parse_threshold(value: str | int) -> int | str:
    """The value of --shift-parallel-threshold: tokens, or "auto".

    Raises:
        ValueError: it is something else.
    """
    if value == AUTO:
        return AUTO
    try:
        tokens = int(value)
    except ValueError:
        tokens = -1
    if tokens < 0:
        msg = (
            f"--shift-parallel-threshold is {value!r}; it must be a number of tokens, 0 or more, up to which a step is "
            f"tensor parallel, or {AUTO!r}: measured at the start"
        )
        raise ValueError(msg)
    return tokens


def crossover(timings: Sequence[Timing]) -> int | None:
    """The threshold that loses least over the measured sizes, each of which counts as much as any other.

    One noisy measurement moves it little: it is not where the curves first cross, but where crossing over once is
    best for all sizes together. Between the two measured sizes around it, the point where straight lines through
    them cross.

    Args:
        timings: of at least one size, in any order; sizes differ, times are above 0.

    Returns:
        Tokens up to which tensor parallelism is the faster; 0: at none of the sizes; None: at all of them.

    Raises:
        ValueError: nothing was measured, a size twice, or a time that is no time.
    """
    ordered = sorted(timings, key=lambda timing: timing.tokens)
    if not ordered:
        raise ValueError("a threshold was asked for, and no step was measured")
    for first, second in pairwise(ordered):
        if first.tokens == second.tokens:
            msg = f"steps of {first.tokens} tokens were measured twice; take the median first"
            raise ValueError(msg)
    for timing in ordered:
        if not (0 < timing.tensor < float("inf") and 0 < timing.sequence < float("inf")):
            msg = f"a step of {timing.tokens} tokens is said to take {timing.tensor} or {timing.sequence} seconds"
            raise ValueError(msg)
    lost = [
        (_lost(timing.tensor, timing.sequence), _lost(timing.sequence, timing.tensor)) for timing in ordered
    ]
    totals = [
        sum(tensor for tensor, _ in lost[:count]) + sum(sequence for _, sequence in lost[count:])
        for count in range(len(ordered) + 1)
    ]
    count = totals.index(min(totals))
    if count == 0:
        return 0
    if count == len(ordered):
        return None
    return _crossing(ordered[count - 1], ordered[count])


def _lost(taken: float, other: float) -> float:
    """What a size loses in a mode, as a share of the faster time."""
    return min(max(taken / other - 1, 0.0), _MOST)


def _crossing(last: Timing, first: Timing) -> int:
    """Between the last size of tensor parallelism and the first of sequence parallelism."""
    gain, loss = last.sequence - last.tensor, first.tensor - first.sequence
    if gain <= 0 or loss <= 0:  # a noisy size beside the best place to cross over
        return last.tokens
    return last.tokens + int((first.tokens - last.tokens) * gain / (gain + loss))
