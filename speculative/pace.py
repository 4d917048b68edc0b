"""What steps take above the cost table: learnt from what they took. Pure: times are passed in.

The cost table says how long the device computes. It says nothing of the host, which keeps the device waiting: before
each step with drafts, which has to know the tokens of the one before, and before every step where the model is small
or requests are many. Nor does it know long contexts. What a step took in the end is the time from the end of the one
before, whatever that was, to its own end.

Plain steps, those with the index's drafts and those with the head's are compared with each other, so all three have
to be seen at times, and under the same circumstances: a step behind a prefill is another matter than one behind a
decode step, as the host has had the prefill's time to prepare it. A plain step behind one with drafts is late as that
one was, and says nothing of what plain steps in a row take, which overlap: so plain ones come in short runs, and the
first of a run does not count. Nor does one that came after asking for drafts in vain: where plain steps are the faster
ones, nobody will ask for long.

An estimate is the mean of the latest samples without their highest and lowest quarter. The differences that decide
are of a tenth of a millisecond, and hosts have pauses of several, which have other reasons.

Where steps cannot be measured beforehand the table is a guess in a unit of its own. Then plain steps tell how long the
unit is, and those with drafts how far the guess is off.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speculative.policy import Excess

Float64 = NDArray[np.float64]

_OCTAVES = 16
_TIMED = 3  # kinds, the first ones
_ENOUGH = 8  # samples before an estimate is used
_SURE = 32  # samples of steps with the head's drafts after which they are tried less and less often
_WINDOW = 64  # samples that an estimate remembers
_RUN = 4  # plain steps at a time when one is due
_SOON, _LATE = 8, 512  # steps with drafts in a row before a plain one is due: never seen enough of, and seen


class Kind(IntEnum):
    """Of a step."""

    PLAIN = 0  # nobody was asked for drafts
    WIDE = 1  # with drafts of the index
    HEAD = 2  # with the head's drafts too
    ASKED = 3  # plain, as there was no draft worth checking


class Circumstances(NamedTuple):
    """Under which a decode step runs.

    Attributes:
        rows: requests.
        prefilled: the step before is a prefill.
        drafted: the step before has drafts.
    """

    rows: int
    prefilled: bool = False
    drafted: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Where what was learnt of them is kept."""
        return int(self.prefilled), min(self.rows.bit_length(), _OCTAVES - 1)


class Pace:
    """What steps of each kind take above the cost table, by batch size and by the kind of the step before.

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
        self._latest = np.zeros((2, _OCTAVES, _TIMED, _WINDOW))
        self._means = np.zeros((2, _OCTAVES, _TIMED))
        self._samples = np.zeros((2, _OCTAVES, _TIMED))
        self._changed: set[tuple[int, int, int]] = set()
        self._plain = np.zeros((2, _OCTAVES), np.int64)  # plain steps that were planned
        self._since = np.zeros(
            (2, _OCTAVES), np.int64
        )  # steps with drafts that were planned since the last of them
        self._used = self._filled(self._means, self._samples)
        self._left = 0  # plain steps that are due
        self._steps = 0

    def excess(self, now: Circumstances) -> Excess:
        """Of each kind of step, in the table's unit; without the head's own time, which is part of the cost."""
        return self._used[now.place]

    def due(self, now: Circumstances) -> bool:
        """Whether the next step should be plain so that it is known what that takes."""
        place = now.place
        if self._since[place] >= (_LATE if self._plain[place] >= _ENOUGH else _SOON):
            self._left = _RUN
        return self._left > 0

    def planned(self, now: Circumstances, kind: Kind) -> None:
        """A step will run.

        Args:
            now: its circumstances.
            kind: of the step.
        """
        if kind is Kind.PLAIN:
            self._left = max(self._left - 1, 0)
            self._plain[now.place] += not now.drafted
            self._since[now.place] = 0
        elif kind is not Kind.ASKED:
            self._since[now.place] += 1

    def observe(self, then: Circumstances, kind: Kind, seconds: float | None, cost: float) -> None:
        """A decode step is over.

        Args:
            then: its circumstances.
            kind: of the step.
            seconds: from the end of the step before it to its own; None: not known.
            cost: by the table.
        """
        alike = kind is not Kind.ASKED and (kind is not Kind.PLAIN or not then.drafted)
        if alike and seconds is not None and np.isfinite(seconds) and np.isfinite(cost):
            at = (*then.place, int(kind))
            sample = self._guess(at, seconds, cost) if self._guessed else self._above(at, seconds, cost)
            if sample is not None:
                self._latest[at][int(self._samples[at]) % _WINDOW] = sample
                self._samples[at] += 1
                self._changed.add(at)
        self._steps += 1
        if self._steps % self._every == 0:
            self._publish()

    def _above(self, at: tuple[int, int, int], seconds: float, cost: float) -> float:
        return max(seconds - cost, 0.0)

    def _guess(self, at: tuple[int, int, int], seconds: float, cost: float) -> float | None:
        plain = (*at[:2], int(Kind.PLAIN))
        unit = self._means[plain]
        if at == plain:
            return seconds / cost
        if unit == 0 or self._samples[plain] < _ENOUGH:
            return None
        return min(max(seconds / unit, cost / 4), 4 * cost) - cost

    def _publish(self) -> None:
        for at in self._changed:
            self._means[at] = _middle(self._latest[at][: int(self._samples[at])])
        self._changed.clear()
        means, samples = self._means, self._samples
        if self._agree is not None:
            means, samples = self._agree(np.stack([means, samples]))
        self._used = self._filled(means, samples)

    def _filled(self, means: Float64, samples: Float64) -> dict[tuple[int, int], Excess]:
        """Octaves that nothing is known of are like the next smaller one, steps behind prefills like others."""
        filled: dict[tuple[int, int], Excess] = {}
        assumed = 0.0 if self._guessed else self._wait
        for behind in (0, 1):
            before = Excess(0.0, assumed, assumed)
            for octave in range(_OCTAVES):
                if behind:
                    before = filled[0, octave]
                known = samples[behind, octave] >= _ENOUGH
                found = means[behind, octave].tolist()
                plain = before.plain if self._guessed or not known[Kind.PLAIN] else found[Kind.PLAIN]
                wide = found[Kind.WIDE] if known[Kind.WIDE] else before.wide
                if not known[Kind.WIDE] and not self._guessed:
                    wide = max(wide, plain + self._wait)
                head = found[Kind.HEAD] if known[Kind.HEAD] else max(before.head, wide)
                unsure = bool(samples[behind, octave, Kind.HEAD] < _SURE)
                before = filled[behind, octave] = Excess(plain, wide, head, unsure)
        return filled


def _middle(samples: Float64) -> float:
    """Their mean without the highest and the lowest quarter."""
    out = len(samples) // 4
    return float(np.sort(samples)[out : len(samples) - out].mean())
