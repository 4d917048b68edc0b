"""What steps take beside the device's own time: learnt from when they were launched. Pure: times are passed in.

The cost table says how long the device computes. A step also keeps the host busy, and a step with drafts waits for
the one before, whose tokens it needs; with a small model or many requests that is most of the time. What counts is
how long the device stands idle: from the end of one step to the launch of the next. Plain steps are launched ahead,
so theirs is nothing unless the host is slower than the device; a step with drafts has a gap before it always. When a
step ended is known if the host waited for it, else it follows from its launch and its cost. A step that takes longer
than the table says (long contexts do) counts as a gap too.
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
    """Seconds that steps take above the cost table, for plain steps and for those with drafts, by batch size.

    Args:
        wait: assumed for a step with drafts until it has been seen, above what a plain step takes.
        every: steps between two updates of what `excess` says.
        agree: makes the estimates of all ranks rank 0's, float64 in and out; it is called by every rank after the
            same step. None: there is one rank.
    """

    def __init__(
        self, wait: float, *, every: int = 16, agree: Callable[[Float64], Float64] | None = None
    ) -> None:
        self._wait, self._every, self._agree = wait, every, agree
        self._means = np.zeros((_OCTAVES, 2))
        self._samples = np.zeros((_OCTAVES, 2))
        self._used = self._filled(self._means, self._samples)
        self._steps = 0
        self.interrupt()

    def excess(self, rows: int) -> tuple[float, float]:
        """Of a plain step and of one with drafts, in seconds.

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

    def launched(
        self,
        now: float,
        rows: int,
        seconds: float,
        *,
        wide: bool,
        waited: bool = False,
        ended: float | None = None,
    ) -> None:
        """A decode step was launched.

        Args:
            now: when, in seconds of any clock.
            rows: its requests.
            seconds: its cost by the table.
            wide: whether it checks drafts.
            waited: whether the host made sure that the step before had ended.
            ended: when that one ended, if it is known.
        """
        before = self._end if ended is None else ended
        if before is not None and np.isfinite(seconds):
            # After a step with drafts the host catches up with it for two launches.
            if wide or (self._plains >= 2 and not waited):
                self._learn(rows, _WIDE if wide else _PLAIN, now - before)
        self._plains = 0 if wide or waited else self._plains + 1
        self._end = max(now, now if before is None else before) + seconds
        self._steps += 1
        if self._steps % self._every == 0:
            self._publish()

    def interrupt(self) -> None:
        """Something else than a decode step was launched."""
        self._end: float | None = None  # of the last step, by its launch and its cost
        self._plains = 0

    def _learn(self, rows: int, kind: int, seconds: float) -> None:
        at = min(rows.bit_length(), _OCTAVES - 1), kind
        count = min(self._samples[at], _WINDOW - 1)
        sample = min(max(seconds, 0.0), 4 * self._means[at] + _LARGEST)
        self._means[at] = (self._means[at] * count + sample) / (count + 1)
        self._samples[at] += 1

    def _publish(self) -> None:
        means, samples = self._means, self._samples
        if self._agree is not None:
            means, samples = self._agree(np.stack([means, samples]))
        self._used = self._filled(means, samples)

    def _filled(self, means: Float64, samples: Float64) -> Float64:
        """Octaves that nothing is known of are like the next smaller one."""
        filled = np.zeros_like(means)
        before = np.array([0.0, self._wait])
        for octave in range(_OCTAVES):
            plain = means[octave, _PLAIN] if samples[octave, _PLAIN] >= _ENOUGH else before[_PLAIN]
            assumed = max(before[_WIDE], plain + self._wait)
            wide = means[octave, _WIDE] if samples[octave, _WIDE] >= _ENOUGH else assumed
            filled[octave] = before = np.array([plain, wide])
        return filled
