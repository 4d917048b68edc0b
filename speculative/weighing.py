"""What drafts are worth, in compiled code: it is asked before every step, and numpy takes longer than the host has.

Whole numbers, and single operations of IEEE arithmetic in a fixed order: every rank gets the same. The slow twins are
`Yield` and `Calibration`'s methods in numpy, with which the tests compare.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speculative.base import Float32, Int32
from speculative.compiled import entry

Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

ONE = 512  # the chance 1, as the whole number that tables are indexed by
TOKEN = 4096  # one token, as the whole number that yields are summed in
SCORES = 128  # steps of S / L
LEAST = 1.02  # a step with drafts takes at least so much of a plain one's time
SUFFIX, HEAD = 1, 2  # `policy.Source`


class Tables(NamedTuple):
    """What does not change.

    Attributes:
        chances: int32 [longest + 1, SCORES + 1], from a draft's length and its score's share of it to q.
        tokens: int32 [ONE + 1, longest + 1, widths], from q and the length to the tokens accepted within each width.
        keys: int64 [sources, longest + 1], where the factor of a source's drafts of a length is kept.
    """

    chances: Int32
    tokens: Int32
    keys: Int64


class Asked(NamedTuple):
    """A step's drafts.

    Attributes:
        lengths: int32 [rows], of the suffix index's drafts.
        scores: float32 [rows], of the same.
        room: int32 [rows], tokens that the head may draft.
        head: tokens that the head drafts; 0: there is none.
        bar: score from which the suffix's draft is taken; NaN: the better one by what was observed.
    """

    lengths: Int32
    scores: Float32
    room: Int32
    head: int
    bar: float


@entry
def weigh(asked: Asked, tables: Tables, factors: Float64, yields: Int64, sources: Int8) -> None:
    """Whose draft each request gets, and the tokens promised.

    Args:
        asked: the drafts.
        tables: see there.
        factors: float64 [keys], what promises were worth lately.
        yields: int64 [2, widths], filled: tokens within each width in units of 1 / TOKEN, of the suffix's drafts
            alone and of both sources'.
        sources: int8 [rows], filled: of both.
    """
    widths = tables.tokens.shape[2]
    yields[:] = 0
    for row in range(len(asked.lengths)):
        length = asked.lengths[row]
        own = 0
        if length > 0:
            share = int(np.float64(asked.scores[row]) * SCORES / length + 0.5)
            chance = tables.chances[length, min(max(share, 0), SCORES)]
            # Never nothing, or what was wrong once would never be tried again.
            own = min(max(int(chance * factors[tables.keys[SUFFIX, length]] + 0.5), 1), ONE)
            yields[0] += tables.tokens[own, length]
        drafted = min(asked.head, asked.room[row])
        sources[row] = SUFFIX if length > 0 else 0
        if drafted <= 0:
            yields[1] += tables.tokens[own, length]
            continue
        other = min(max(int(ONE * factors[tables.keys[HEAD, drafted]] + 0.5), 1), ONE)
        if np.isnan(asked.bar):
            taken = tables.tokens[own, length, widths - 1] >= tables.tokens[other, drafted, widths - 1]
        else:
            taken = asked.scores[row] >= asked.bar
        if length > 0 and taken:
            yields[1] += tables.tokens[own, length]
        else:
            sources[row] = HEAD
            yields[1] += tables.tokens[other, drafted]


@entry
def best(
    batch: int, yields: Int64, seconds: Float64, plain: float, wide: float, forced: bool
) -> tuple[int, float]:
    """The width that yields most in a second, as an index, and what it yields; 0: none above plain decode's.

    Args:
        batch: requests.
        yields: int64 [widths], as of `weigh`.
        seconds: float64 [widths], by the cost table; infinite where a width cannot run.
        plain: seconds that a plain step takes above the table.
        wide: the same of one with drafts.
        forced: leave out plain decode, if anything is promised.
    """
    least = seconds[0] + plain
    if len(seconds) > 1:
        # It computes less than any other, so if it was seen to take longer, that was under other circumstances.
        least = min(least, (seconds[1] + wide) / LEAST)
    index, rate = 0, batch * TOKEN / least
    if forced and yields[-1] > 0:
        rate = 0.0
    for width in range(1, len(seconds)):
        found = (batch * TOKEN + yields[width]) / (seconds[width] + wide)
        if found > rate:
            index, rate = width, found
    return index, rate


@entry
def learn(
    sources: Int8, lengths: Int32, scores: Float32, accepted: Int32, shown: int, tables: Tables, window: float,
    sums: Float64,
) -> None:  # fmt: skip
    """Takes in what was accepted.

    Args:
        sources: int8 [rows], whose drafts they were.
        lengths: int32 [rows], 0 for none.
        scores: float32 [rows].
        accepted: int32 [rows], draft tokens accepted.
        shown: tokens of a draft that were checked at most.
        tables: see there.
        window: tokens that are remembered, about.
        sums: float64 [2, keys], changed: tokens accepted, and tokens promised.
    """
    keys = sums.shape[1]
    new = np.zeros((3, keys))  # accepted, promised, checked
    for row in range(len(lengths)):
        length = lengths[row]
        if length == 0:
            continue
        share = int(np.float64(scores[row]) * SCORES / length + 0.5)
        chance = tables.chances[length, min(max(share, 0), SCORES)]
        # Single tokens up to the first refusal: a draft that was cut teaches as much about its front.
        trials = accepted[row] + (1 if accepted[row] < min(length, shown) else 0)
        key = tables.keys[sources[row], length]
        new[0, key] += accepted[row]
        new[1, key] += trials * chance
        new[2, key] += trials
    for key in range(keys):
        kept = window / (window + new[2, key])
        sums[0, key] = sums[0, key] * kept + new[0, key]
        sums[1, key] = sums[1, key] * kept + new[1, key] / ONE


@entry
def tally(sources: Int8, lengths: Int32, accepted: Int32, shown: int, counts: Int64) -> None:
    """Counts a step.

    Args:
        sources: int8 [rows].
        lengths: int32 [rows].
        accepted: int32 [rows].
        shown: as for `learn`.
        counts: int64 [3, sources], changed: requests, draft tokens checked, draft tokens accepted.
    """
    for row in range(len(lengths)):
        checked = min(lengths[row], shown)
        source = sources[row] if checked > 0 else 0
        counts[0, source] += 1
        counts[1, source] += checked
        counts[2, source] += accepted[row]


def warm(tables: Tables) -> None:
    """Compiles (or loads from numba's cache) everything, so that the first step need not wait."""
    one, score, source = np.ones(1, np.int32), np.ones(1, np.float32), np.ones(1, np.int8)
    factors = np.ones(int(tables.keys.max()) + 1)
    yields = np.zeros((2, tables.tokens.shape[2]), np.int64)
    weigh(Asked(one, score, one, 0, float("nan")), tables, factors, yields, source)
    seconds = np.ones(yields.shape[1])
    seconds.setflags(write=False)  # as a cost table's: another type to numba
    best(1, yields[0], seconds, 0.0, 0.0, False)
    learn(source, one, score, one, 1, tables, 1.0, np.ones((2, len(factors))))
    tally(source, one, one, 1, np.zeros((3, 3), np.int64))
