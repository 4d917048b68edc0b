"""What steps take above the cost table: learnt from what they took. Pure: times are passed in.

The cost table says how long the device computes. It says nothing of the host, which keeps the device waiting: before
each step with drafts, which has to know the tokens of the one before, and before every step where the model is small
or requests are many. Nor does it know long contexts. What a step took in the end is the time from the end of the one
before, whatever that was, to its own end.

Where steps cannot be measured beforehand the table is a guess in a unit of its own. Then plain steps tell how long the
unit is, and those with drafts how far the guess is off.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_OCTAVES = 16
_PLAIN, _WIDE = 0, 1
_ENOUGH = 4  # samples before an estimate is used
_WINDOW = 16  # samples that an estimate remembers
_LARGEST = (
    5e-3  # seconds that a sample may exceed four times the estimate by; a longer pause has other reasons
)
_ASK = 1e-5  # seconds of asking the suffix index about one request
_SHARE = 0.02  # of a plain step's time, for asking in vain


class Pace:
    """What steps take above the cost table, for plain steps and for those with drafts, by batch size.

    Args:
        wait: seconds assumed for a step with drafts until it has been seen, above what a plain step takes.
        guessed: the table is not in seconds.
        every: steps between two updates of what `excess` says.
        agree: makes the estimates of all ranks rank 0's, float64 in and out; it is called by every rank after the
            same step. None: there is one rank.
    """

    def __init__(
        self, wait: float, *, guessed: bool = False, every: int = 16,
        agree: Callable[[Float64], Float64] | None = None,
    ) -> None:  # fmt: skip
        self._wait, self._guessed, self._every, self._agree = wait, guessed, every, agree
        # Seconds above the table. Of a guess: seconds of its unit, and units above (or below) it.
        self._means = np.zeros((_OCTAVES, 2))
        self._samples = np.zeros((_OCTAVES, 2))
        self._used = self._filled(self._means, self._samples)
        self._steps = 0

    def excess(self, rows: int) -> tuple[float, float]:
        """Of a plain step and of one with drafts, in the table's unit.

        Args:
            rows: requests.
        """
        plain, wide = self._used[min(rows.bit_length(), _OCTAVES - 1)]
        return float(plain), float(wide)

    def pause(self, rows: int, seconds: float) -> int:
        """Steps to leave out before asking for drafts again when there were none worth checking.

        Nothing is left out while the host has time. Where it has none, asking in vain may take 2 % of it.

        Args:
            rows: requests.
            seconds: of a plain step by the cost table.
        """
        plain, _ = self.excess(rows)
        if plain < seconds:
            return 0
        return int(rows * _ASK / (_SHARE * (seconds + plain)))

    def observe(self, rows: int, seconds: float | None, cost: float, *, wide: bool) -> None:
        """A decode step is over.

        Args:
            rows: its requests.
            seconds: from the end of the step before it to its own; None: not known.
            cost: by the table.
            wide: whether it checked drafts.
        """
        if seconds is not None and np.isfinite(seconds) and np.isfinite(cost):
            at = min(rows.bit_length(), _OCTAVES - 1), _WIDE if wide else _PLAIN
            sample = self._guess(at, seconds, cost) if self._guessed else self._above(at, seconds, cost)
            if sample is not None:
                count = min(self._samples[at], _WINDOW - 1)
                self._means[at] = (self._means[at] * count + sample) / (count + 1)
                self._samples[at] += 1
        self._steps += 1
        if self._steps % self._every == 0:
            self._publish()

    def _above(self, at: tuple[int, int], seconds: float, cost: float) -> float:
        return min(max(seconds - cost, 0.0), 4 * self._means[at] + _LARGEST)

    def _guess(self, at: tuple[int, int], seconds: float, cost: float) -> float | None:
        octave, kind = at
        unit = self._means[octave, _PLAIN]
        known = self._samples[octave, _PLAIN] >= _ENOUGH
        if kind == _PLAIN:
            return min(seconds / cost, 4 * unit) if known else seconds / cost
        if not known:
            return None
        return min(max(seconds / unit, cost / 4), 4 * cost) - cost

    def _publish(self) -> None:
        means, samples = self._means, self._samples
        if self._agree is not None:
            means, samples = self._agree(np.stack([means, samples]))
        self._used = self._filled(means, samples)

    def _filled(self, means: Float64, samples: Float64) -> Float64:
        """Octaves that nothing is known of are like the next smaller one."""
        filled = np.zeros_like(means)
        before = np.array([0.0, 0.0 if self._guessed else self._wait])
        for octave in range(_OCTAVES):
            known = samples[octave] >= _ENOUGH
            plain = means[octave, _PLAIN] if known[_PLAIN] and not self._guessed else before[_PLAIN]
            assumed = before[_WIDE] if self._guessed else max(before[_WIDE], plain + self._wait)
            filled[octave] = before = np.array([plain, means[octave, _WIDE] if known[_WIDE] else assumed])
        return filled
