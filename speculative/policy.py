"""When to draft, how wide to check, and whose draft to take. Pure: numpy only.

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

import numpy as np
from numpy.typing import NDArray

from speculative.base import Drafts, Float32, Int32
from speculative.cost import CostTable

Int8 = NDArray[np.int8]

_ONE = 512  # the chance 1, as the whole number that tables are indexed by
_TOKEN = 4096  # one token, as the whole number that yields are summed in
_SCORES = 128  # steps of S / L
_LEAST = 1.02  # a step with drafts takes at least so much of a plain one's time


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
        chances = np.arange(_ONE + 1) / _ONE
        powers = np.ones((_ONE + 1, longest + 1))
        powers[:, 0] = 0
        for length in range(1, longest + 1):
            powers[:, length] = chances if length == 1 else powers[:, length - 1] * chances
        whole = np.cumsum(powers, axis=1)
        self._chances = np.zeros((longest + 1, _SCORES + 1), np.int32)
        for length in range(1, longest + 1):
            middles = (whole[1:, length] + whole[:-1, length]) / 2
            scores = np.arange(_SCORES + 1) * length / _SCORES
            self._chances[length] = np.maximum(np.searchsorted(middles, scores), 1)
        cuts = np.minimum(np.arange(longest + 1)[:, None], np.array(widths) - 1)
        self._tokens = np.rint(whole[:, cuts] * _TOKEN).astype(np.int32)

    def chances(self, lengths: Int32, scores: Float32) -> Int32:
        """q of each draft in units of 1/512, int32 [rows]; 0 where there is no draft, else 1 or more."""
        shares = scores * _SCORES / np.maximum(lengths, 1) + 0.5
        return self._chances[lengths, np.clip(shares, 0, _SCORES).astype(np.int32)]

    def tokens(self, chances: Int32 | int, lengths: Int32 | int) -> NDArray[np.int32]:
        """Tokens accepted on average within each width, in units of 1/4096, int32 [rows, widths] or [widths]."""
        return self._tokens[chances, lengths]


class Calibration:
    """What each source's promises were worth lately.

    The factor is (tokens accepted) / (tokens promised) over about the last `window` tokens that were checked; it
    starts at 1, as if `prior` tokens had come as promised.
    """

    def __init__(self, longest: int, *, window: int = 128, prior: int = 8) -> None:
        self._octaves = longest.bit_length() + 1
        self._octave = np.array([length.bit_length() for length in range(longest + 1)], np.int64)
        self._window = window
        self._accepted = np.full(len(Source) * self._octaves, float(prior))
        self._promised = self._accepted.copy()

    def keys(self, sources: Int8 | Source, lengths: Int32 | int) -> NDArray[np.int64]:
        """Where each draft's factor is kept, int64 of the arguments' shape."""
        return sources * np.int64(self._octaves) + self._octave[lengths]

    def factors(self) -> NDArray[np.float64]:
        """By key, 0 or more."""
        return self._accepted / self._promised

    def observe(self, keys: NDArray[np.int64], chances: Int32, accepted: Int32, trials: Int32) -> None:
        """Takes in what was accepted of `trials` tokens checked one after the other, each promised by `chances`."""
        counts = len(self._accepted)
        trials_of = np.bincount(keys, trials, counts)
        kept = self._window / (self._window + trials_of)
        self._accepted = self._accepted * kept + np.bincount(keys, accepted, counts)
        self._promised = self._promised * kept + np.bincount(keys, trials * chances, counts) / _ONE


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

    def due(self) -> bool:
        """Counts a refusal; True when this one should be tried all the same."""
        self._refused += 1
        if self._refused < self._pause:
            return False
        self._pause, self._refused = min(2 * self._pause, self._last), 0
        return True


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


@dataclass(frozen=True, slots=True)
class Choice:
    """A width, and whether it was chosen to see if drafting pays again although it does not seem to."""

    width: int
    probing: bool = False


class Policy:
    """Chooses widths, and learns from what was accepted.

    Args:
        table: what steps cost.
        max_batch: above this batch size nothing is drafted; None: the table decides alone.
        longest: the longest draft that will be shown; by default what the widest step can check.
    """

    def __init__(self, table: CostTable, *, max_batch: int | None = None, longest: int | None = None) -> None:
        self.table = table
        self.longest = table.widths[-1] - 1 if longest is None else longest
        self._max_batch = table.max_batch if max_batch is None else max_batch
        self._yield = Yield(table.widths, self.longest)
        self._calibration = Calibration(self.longest)
        self._probes = {source: Probes() for source in Source}
        self._excess = (0.0, 0.0)  # what steps took above the table when a width was last chosen
        self._head_probes = False  # the head runs this step to see whether it pays again
        self._factors = self._calibration.factors()
        self._limits = [self._limit(batch) for batch in range(self._max_batch + 1)]

    def limit(self, batch: int) -> int:
        """The longest draft that could pay at this batch size if all of it were accepted; 0: do not draft."""
        return self._limits[batch] if batch <= self._max_batch else 0

    def _limit(self, batch: int) -> int:
        seconds = self.table.at(batch)
        paying = np.flatnonzero(np.array(self.table.widths) / seconds > 1 / seconds[0])
        return min(self.longest, self.table.widths[paying[-1]] - 1) if len(paying) else 0

    def pick(self, suffix: Drafts, head: int = 0, bar: float | None = None) -> Picked:
        """For each request the suffix's draft or the head's.

        Args:
            suffix: its drafts.
            head: tokens that the head drafts for every request; 0: there is none.
            bar: the suffix's draft is taken if its score is at least this; None: if it promises at least as many
                tokens as the head's, both scaled by what was observed.
        """
        if head == 0:
            return Picked.all_of(Source.SUFFIX, suffix.lengths, suffix.scores)
        if bar is None:
            promised = self._tokens(Picked.all_of(Source.SUFFIX, suffix.lengths, suffix.scores))[:, -1]
            taken = promised >= self._head_tokens(head)[-1]
        else:
            taken = suffix.scores >= bar
        taken &= suffix.lengths > 0
        return Picked(
            np.where(taken, np.int8(Source.SUFFIX), np.int8(Source.HEAD)),
            np.where(taken, suffix.lengths, np.int32(head)),
            np.where(taken, suffix.scores, np.float32(head)),
        )

    def head_pays(self, batch: int, tokens: int, seconds: float, plain: float = 0.0) -> bool:
        """Whether to run the draft head this step; counts a step in which it does not. Call it before `choose`.

        Where it runs although it does not seem to pay, `choose` has its draft checked.

        Args:
            batch: requests.
            tokens: that the head drafts for each.
            seconds: its own time, and what else a step with drafts takes above the table.
            plain: seconds that a plain step takes above the table.
        """
        if self.limit(batch) == 0:
            return False
        yields = batch * self._head_tokens(tokens).astype(np.int64)
        choice = self._try(batch, yields, (plain, seconds), self._probes[Source.HEAD])
        self._head_probes = choice.probing
        return choice.width > 1

    def choose(self, drafts: Picked, overhead: float = 0.0, plain: float = 0.0) -> Choice:
        """The width for this step; counts a step in which drafts are refused. Call it once a step.

        Args:
            drafts: of the step's requests.
            overhead: seconds that a step with drafts takes above the table (waiting for the step before, the
                host's work); leave out what is spent already.
            plain: the same of a step without.
        """
        self._excess = plain, overhead
        if not drafts.lengths.any() or self.limit(len(drafts.lengths)) == 0:
            return Choice(1)
        if self._head_probes:
            self._head_probes = False
            return Choice(self.width(drafts, overhead, plain, probing=True), probing=True)
        batch, yields = len(drafts.lengths), self._tokens(drafts).sum(axis=0, dtype=np.int64)
        return self._try(batch, yields, self._excess, self._probes[Source.SUFFIX])

    def width(
        self, drafts: Picked, overhead: float = 0.0, plain: float = 0.0, *, probing: bool = False
    ) -> int:
        """The width with the most tokens a second; changes nothing, so that it may be asked again.

        Args:
            drafts: of the step's requests.
            overhead: as for `choose`.
            plain: as for `choose`.
            probing: the best of those above 1, if any can run and there is a draft.
        """
        batch = len(drafts.lengths)
        if self.limit(batch) == 0:
            return 1
        yields = self._tokens(drafts).sum(axis=0, dtype=np.int64)
        return self._best(batch, yields, (plain, overhead), probing)

    def observe(self, drafts: Picked, width: int, accepted: Int32) -> None:
        """Takes in how a step went.

        A step of width 1 teaches too, at no cost: compare the first token of a draft that was refused with what the
        model said, and report it here as a step of width 2.

        Args:
            drafts: as they were before they were cut to the width.
            width: that was checked.
            accepted: int32 [rows], draft tokens accepted, the model's own token not counted.
        """
        shown = np.minimum(drafts.lengths, width - 1)
        trials = accepted + (accepted < shown)
        keys = self._calibration.keys(drafts.sources, drafts.lengths)
        chances = self._yield.chances(drafts.lengths, drafts.scores)
        self._calibration.observe(keys, chances, accepted, trials)
        self._factors = self._calibration.factors()
        if width > 1:
            self._reward(np.bincount(drafts.sources, accepted, len(Source)), len(accepted), width)

    def _reward(self, accepted: NDArray[np.float64], batch: int, width: int) -> None:
        seconds = self._seconds(batch, self._excess)
        more = seconds[self.table.widths.index(width)] / seconds[0]
        for source in (Source.SUFFIX, Source.HEAD):
            if batch + accepted[source] > batch * more:
                self._probes[source].hit()

    def _seconds(self, batch: int, excess: tuple[float, float]) -> NDArray[np.float64]:
        plain, overhead = excess
        seconds = self.table.at(batch) + overhead
        seconds[0] = self.table.at(batch)[0] + plain
        # What is learnt of one width may be wrong for another.
        np.maximum(seconds[1:], _LEAST * seconds[0], out=seconds[1:])
        return seconds

    def _best(
        self, batch: int, yields: NDArray[np.int64], excess: tuple[float, float], probing: bool = False
    ) -> int:
        rates = (batch * _TOKEN + yields) / self._seconds(batch, excess)
        best = int(rates.argmax())
        if probing and best == 0 and yields[-1] > 0 and rates[1:].any():
            best = 1 + int(rates[1:].argmax())
        return self.table.widths[best]

    def _try(
        self, batch: int, yields: NDArray[np.int64], excess: tuple[float, float], probes: Probes
    ) -> Choice:
        width = self._best(batch, yields, excess)
        if width > 1:
            probes.paid()
            return Choice(width)
        if not probes.due():
            return Choice(1)
        width = self._best(batch, yields, excess, probing=True)
        return Choice(width, probing=width > 1)

    def _tokens(self, drafts: Picked) -> NDArray[np.int32]:
        """Tokens expected within each width, in units of 1/4096, int32 [rows, widths]."""
        factors = self._factors[self._calibration.keys(drafts.sources, drafts.lengths)]
        chances = self._yield.chances(drafts.lengths, drafts.scores) * factors + 0.5
        return self._yield.tokens(np.minimum(chances, _ONE).astype(np.int32), drafts.lengths)

    def _head_tokens(self, tokens: int) -> NDArray[np.int32]:
        """The same for one draft of the head, int32 [widths]: a head gives no score and so promises all."""
        factor = self._factors[self._calibration.keys(Source.HEAD, tokens)]
        return self._yield.tokens(min(int(_ONE * factor + 0.5), _ONE), tokens)
