"""When to draft, how wide to check, and whose draft to take. Pure: numpy, and numba for what every step asks.

A step that checks `width` tokens of each of `batch` requests costs more than a plain one and yields more. The
policy takes the width that yields the most tokens a second, and 1 (plain decode) unless a wider one is better.

What a draft will yield is guessed from its length L and score S, the tokens that its source expects to be accepted.
They give one number, the chance q that the next token of the draft is accepted if all before it were, from
q + q^2 + ... + q^L = S; the first k tokens then yield q + ... + q^k. Spreading the score evenly, S * k / L, would be
simpler and credits the tail with what the front yields: a draft of 31 with a score of 4 would seem to need width 32,
where width 8 has 3.2 of the 4. Sources err, so q is scaled by what was observed: tokens accepted over tokens that q
promised, for each source and each octave of the length (a suffix draft is as long as its match deserves, and short
matches promise too much). Counted are single tokens up to the first refusal, so a draft that was cut teaches as much
about its front as a whole one.

Nothing here looks at a clock, and what is computed is whole numbers or single operations of IEEE arithmetic in a
fixed order: ranks that see the same drafts and the same acceptance decide the same, whatever their processors.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speculative.base import Drafts, Float32, Int32
from speculative.cost import CostTable
from speculative.weighing import (
    LEAST,
    ONE,
    SCORES,
    TOKEN,
    Asked,
    Int8,
    Tables,
    best,
    learn,
    warm,
    weigh,
)


class Source(IntEnum):
    """Whose draft a row has."""

    NONE = 0
    SUFFIX = 1
    HEAD = 2


class Yield:
    """Tables from (L, S) to the chance q, and from q to the tokens accepted within a width.

    Args:
        widths: ascending, the first is 1.
        longest: the longest draft that will be asked about.
    """

    def __init__(self, widths: tuple[int, ...], longest: int) -> None:
        # Rows are chances, columns lengths: the tokens that a whole draft yields. Products one after the other, as
        # a power would be rounded differently on another processor.
        chances = np.arange(ONE + 1) / ONE
        powers = np.ones((ONE + 1, longest + 1))
        powers[:, 0] = 0
        for length in range(1, longest + 1):
            powers[:, length] = chances if length == 1 else powers[:, length - 1] * chances
        whole = np.cumsum(powers, axis=1)
        self.table_of_chances = np.zeros((longest + 1, SCORES + 1), np.int32)
        for length in range(1, longest + 1):
            middles = (whole[1:, length] + whole[:-1, length]) / 2
            scores = np.arange(SCORES + 1) * length / SCORES
            self.table_of_chances[length] = np.maximum(np.searchsorted(middles, scores), 1)
        cuts = np.minimum(np.arange(longest + 1)[:, None], np.array(widths) - 1)
        self.table_of_tokens = np.rint(whole[:, cuts] * TOKEN).astype(np.int32)

    def chances(self, lengths: Int32, scores: Float32) -> Int32:
        """q of each draft in units of 1/512, int32 [rows]; 0 where there is no draft, else 1 or more."""
        shares = scores * SCORES / np.maximum(lengths, 1) + 0.5
        return self.table_of_chances[lengths, np.clip(shares, 0, SCORES).astype(np.int32)]

    def tokens(self, chances: Int32 | int, lengths: Int32 | int) -> NDArray[np.int32]:
        """Tokens accepted on average within each width, in units of 1/4096, int32 [rows, widths] or [widths]."""
        return self.table_of_tokens[chances, lengths]


class Calibration:
    """What each source's promises were worth lately.

    The factor is (tokens accepted) / (tokens promised) over about the last `window` tokens that were checked; it
    starts at 1, as if `prior` tokens had come as promised.

    Attributes:
        sums: float64 [2, keys], tokens accepted and tokens promised.
        factors: float64 [keys], 0 or more.
        keys: int64 [sources, longest + 1], where the factor of a source's drafts of a length is kept.
    """

    def __init__(self, longest: int, *, window: int = 128, prior: int = 4) -> None:
        octaves = np.array([length.bit_length() for length in range(longest + 1)], np.int64)
        sources = np.arange(len(Source), dtype=np.int64)
        self.keys = sources[:, None] * (octaves[-1] + 1) + octaves
        self.window = float(window)
        self.sums = np.full((2, int(self.keys[-1, -1]) + 1), float(prior))
        self.factors = self.sums[0] / self.sums[1]

    def observe(self, drafts: "Picked", shown: int, accepted: Int32, tables: Tables) -> None:
        """Takes in what was accepted of drafts of which `shown` tokens were checked at most."""
        learn(drafts.sources, drafts.lengths, drafts.scores, accepted, shown, tables, self.window, self.sums)
        np.divide(self.sums[0], self.sums[1], out=self.factors)


class Probes:
    """When to try again what does not seem to pay: after `first` refusals, then twice as many, up to `last`."""

    def __init__(self, first: int = 16, last: int = 1024) -> None:
        self._first, self._last = first, last
        self.paid()

    def paid(self) -> None:
        """It was not refused: the next refusals are counted from the beginning."""
        self._pause, self._refused = self._first, 0

    def hit(self) -> None:
        """A try came out well: the next one soon, until what is observed says the same."""
        self._pause = 1

    def due(self, steps: int = 1, *, unsure: bool = False) -> bool:
        """Counts a refusal; True when this one should be tried all the same.

        Args:
            steps: for which it stands.
            unsure: too little is known to wait for longer than at first.
        """
        self._refused += steps
        if unsure:
            self._pause = min(self._pause, self._first)
        if self._refused < self._pause:
            return False
        self._pause, self._refused = min(2 * self._pause, self._last), 0
        return True


class Patience:
    """How often to ask for drafts where there are none worth checking.

    Asking takes the host's time, and where the device is the faster one of the two that is a step's time. So after
    `share` steps in a row without a draft that was worth checking and came true every other step asks, after twice as
    many every third, and so on up to one in `most` + 1. Of the time without drafts 1 / `share` more is lost at most
    when there are some again.
    """

    def __init__(self, share: int = 32, most: int = 32) -> None:
        self._share, self._most = share, most
        self._vain = self._left = 0

    def asks(self, *, joined: bool = False) -> bool:
        """Whether the next step asks; counts it.

        Args:
            joined: there may be requests that nobody asked about yet.
        """
        self._vain += 1
        if self._left and not joined:
            self._left -= 1
            return False
        self._left = min(self._most, self._vain // self._share)
        return True

    def found(self) -> None:
        """There was a draft worth checking: the next step asks too."""
        self._left = 0

    def came_true(self) -> None:
        """Tokens of drafts that seemed to pay were accepted."""
        self._vain = self._left = 0


@dataclass(frozen=True, slots=True)
class Picked:
    """The draft of each request after two sources were asked.

    Attributes:
        sources: int8 [rows], values of `Source`.
        lengths: int32 [rows], 0 where there is no draft.
        scores: float32 [rows], as the source gave them.
    """

    sources: Int8
    lengths: Int32
    scores: Float32

    @classmethod
    def none(cls, rows: int) -> "Picked":
        """No draft for any of `rows` requests."""
        return cls(np.zeros(rows, np.int8), np.zeros(rows, np.int32), np.zeros(rows, np.float32))

    @classmethod
    def all_of(cls, source: Source, lengths: Int32, scores: Float32) -> "Picked":
        """Every draft is from one source."""
        return cls(np.where(lengths > 0, np.int8(source), np.int8(Source.NONE)), lengths, scores)


class Excess(NamedTuple):
    """Seconds that steps take above the cost table.

    Attributes:
        plain: of a step without drafts.
        wide: of one with the suffix index's drafts.
        head: of one with the head's, its own time included.
        unsure: few steps with the head's drafts were seen, or none.
    """

    plain: float = 0.0
    wide: float = 0.0
    head: float = 0.0
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What a step checks.

    Attributes:
        width: tokens a request.
        head: whether the head drafts.
        probing: it was chosen to see if drafting pays again although it does not seem to.
    """

    width: int
    head: bool = False
    probing: bool = False


class Policy:
    """Chooses widths, and learns from what was accepted.

    Args:
        table: what steps cost.
        max_batch: above this batch size nothing is drafted; None: the table decides alone.
        longest: the longest draft that will be shown; by default what the widest step can check.
        head: tokens that the draft head drafts; 0: there is none.
        bar: the suffix's draft is taken if its score is at least this; None: if it promises at least as many tokens
            as the head's, both scaled by what was observed.
    """

    def __init__(
        self, table: CostTable, *, max_batch: int | None = None, longest: int | None = None, head: int = 0,
        bar: float | None = None,
    ) -> None:  # fmt: skip
        self.table = table
        self.longest = table.widths[-1] - 1 if longest is None else longest
        self.head = head
        self._bar = np.nan if bar is None else bar
        self._max_batch = table.max_batch if max_batch is None else max_batch
        yields = Yield(table.widths, self.longest)
        self._calibration = Calibration(self.longest)
        self._tables = Tables(yields.table_of_chances, yields.table_of_tokens, self._calibration.keys)
        self._yields = np.zeros((2, len(table.widths)), np.int64)
        self._probes = {source: Probes() for source in Source}
        self._excess = Excess()  # when a width was last chosen
        self._limits = [self._limit(batch) for batch in range(self._max_batch + 1)]
        warm(self._tables)

    def limit(self, batch: int) -> int:
        """The longest draft that could pay at this batch size if all of it were accepted; 0: do not draft."""
        return self._limits[batch] if batch <= self._max_batch else 0

    def _limit(self, batch: int) -> int:
        seconds = self.table.at(batch)
        paying = np.flatnonzero(np.array(self.table.widths) / seconds > 1 / seconds[0])
        return min(self.longest, self.table.widths[paying[-1]] - 1) if len(paying) else 0

    def pick(self, drafts: Drafts, room: Int32) -> Picked:
        """For each request the suffix's draft or the head's, whichever promises more (or by the bar).

        Args:
            drafts: the suffix index's.
            room: int32 [rows], tokens that the head may draft for each request.
        """
        sources = self._weighed(drafts, room)
        own = sources == Source.SUFFIX
        rooms = np.minimum(room, np.int32(self.head))
        lengths = np.where(own, drafts.lengths, np.where(sources == Source.HEAD, rooms, np.int32(0)))
        # A head gives no score and so promises all.
        return Picked(sources, lengths, np.where(own, drafts.scores, lengths).astype(np.float32))

    def choose(
        self, drafts: Drafts, room: Int32 | None = None, excess: Excess | None = None, *, steps: int = 1
    ) -> Choice:
        """The width for this step, and whether the head drafts; counts drafts that are refused. Once a step.

        Args:
            drafts: the suffix index's.
            room: as for `pick`; None: no head.
            excess: what steps take above the table.
            steps: this one and those before it for which nobody asked.
        """
        self._excess = excess = excess or Excess()
        batch = len(drafts)
        if self.limit(batch) == 0:
            return Choice(1)
        sources = self._weighed(drafts, room)
        index, rate = self._best(0, batch, excess.plain, excess.wide)
        headed = room is not None and bool((sources == Source.HEAD).any())
        if headed:
            joined, more = self._best(1, batch, excess.plain, excess.head)
            if joined and more > rate:
                self._paid(Source.HEAD, *(Source.SUFFIX,) * bool((sources == Source.SUFFIX).any()))
                return Choice(self.table.widths[joined], head=True)
            # Nobody need know what its steps take where they would not pay if they took no longer than the index's.
            pays, most = self._best(1, batch, excess.plain, excess.wide)
            unsure = excess.unsure and pays > 0 and most > LEAST * rate
            if self._probes[Source.HEAD].due(steps, unsure=unsure):
                joined, _ = self._best(1, batch, excess.plain, excess.head, forced=True)
                return Choice(self.table.widths[joined], head=joined > 0, probing=joined > 0)
        if index:
            self._paid(Source.SUFFIX)
        elif self._yields[0, -1] and self._probes[Source.SUFFIX].due(steps):
            index, _ = self._best(0, batch, excess.plain, excess.wide, forced=True)
            return Choice(self.table.widths[index], probing=index > 0)
        return Choice(self.table.widths[index])

    def width(
        self,
        drafts: Drafts,
        room: Int32 | None = None,
        excess: Excess | None = None,
        *,
        probing: bool = False,
    ) -> int:
        """The width with the most tokens a second; changes nothing, so that it may be asked again.

        Args:
            drafts: as for `choose`.
            room: as for `choose`: the head drafts where it is given.
            excess: as for `choose`.
            probing: the best of those above 1, if any can run and there is a draft.
        """
        batch, excess = len(drafts), excess or Excess()
        if self.limit(batch) == 0:
            return 1
        self._weighed(drafts, room)
        kind, above = (0, excess.wide) if room is None else (1, excess.head)
        return self.table.widths[self._best(kind, batch, excess.plain, above, forced=probing)[0]]

    def observe(self, drafts: Picked, width: int, accepted: Int32) -> None:
        """Takes in how a step went.

        A step of width 1 teaches too, at no cost: compare the first token of a draft that was refused with what the
        model said, and report it here as a step of width 2.

        Args:
            drafts: as they were before they were cut to the width.
            width: that was checked.
            accepted: int32 [rows], draft tokens accepted, the model's own token not counted.
        """
        self._calibration.observe(drafts, width - 1, accepted, self._tables)
        if width > 1:
            self._reward(drafts.sources, accepted, width)

    def _reward(self, sources: Int8, accepted: Int32, width: int) -> None:
        batch, excess = len(accepted), self._excess
        seconds, index = self.table.at(batch), self.table.widths.index(width)
        plain = seconds[0] + excess.plain
        for source, above in ((Source.SUFFIX, excess.wide), (Source.HEAD, excess.head)):
            gained = int(accepted[sources == source].sum())
            if gained and batch + gained > batch * max((seconds[index] + above) / plain, LEAST):
                self._probes[source].hit()

    def _paid(self, *sources: Source) -> None:
        for source in sources:
            self._probes[source].paid()

    def _weighed(self, drafts: Drafts, room: Int32 | None) -> Int8:
        """Fills `_yields`; whose draft each request gets."""
        sources = np.empty(len(drafts), np.int8)
        room, head = (drafts.lengths, 0) if room is None else (room, self.head)
        asked = Asked(drafts.lengths, drafts.scores, room, head, self._bar)
        weigh(asked, self._tables, self._calibration.factors, self._yields, sources)
        return sources

    def _best(
        self, kind: int, batch: int, plain: float, above: float, *, forced: bool = False
    ) -> tuple[int, float]:
        return best(batch, self._yields[kind], self.table.at(batch), plain, above, forced)
