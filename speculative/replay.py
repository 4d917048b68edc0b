"""Recorded traffic played through a source of drafts, as an engine would ask it. No model, no GPU.

A draft is accepted as far as it equals what the trace says next, which is what greedy decoding would accept. Drafts
are made from the newest token on; that a server with overlap first probes one step late is not played. A step's time
is what the cost table says plus what the source of drafts took here.
"""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speculative.base import Drafts, Int32, Proposer
from speculative.cost import CostTable
from speculative.metrics import Counts, Statistics
from speculative.policy import Picked, Policy, Source
from speculative.traces import Trace


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one pass over the traces.

    Attributes:
        tokens: of all responses.
        counts: of the decode steps.
        propose_seconds: what the source of drafts took, measured.
        seconds: of all decode steps by the cost table, and `propose_seconds`.
        plain_seconds: of all decode steps without drafts, by the cost table.
    """

    tokens: int
    counts: Counts
    propose_seconds: float
    seconds: float
    plain_seconds: float

    @property
    def speedup(self) -> float:
        """How many times faster decoding is."""
        return self.plain_seconds / self.seconds

    @property
    def propose_microseconds(self) -> float:
        """Of the source of drafts, for each token."""
        return 1e6 * self.propose_seconds / self.tokens


class Replay:
    """An engine's loop over a fixed number of requests at once; what it learns stays from pass to pass.

    Args:
        proposer: the source of drafts.
        table: what steps cost; `concurrency` must be within it.
        concurrency: requests that run at once.
        longest: the longest draft; at most what the table's widest step checks.
        whole: check every draft whole, whatever it costs.

    Raises:
        ValueError: the table does not reach so far.
    """

    def __init__(
        self, proposer: Proposer, table: CostTable, *, concurrency: int, longest: int, whole: bool = False
    ) -> None:
        if not 1 <= longest < table.widths[-1]:
            msg = (
                f"drafts of {longest} tokens do not fit the cost table, whose widths are {list(table.widths)}: "
                f"at most {table.widths[-1] - 1} can be checked"
            )
            raise ValueError(msg)
        needed = next(width for width in table.widths if width > longest) if whole else 1
        if not np.isfinite(table.cost(concurrency, needed)):
            msg = (
                f"the cost table has no time for {concurrency} requests at width {needed}: measure it, or ask "
                "for a lower concurrency"
            )
            raise ValueError(msg)
        self._proposer, self._table, self._concurrency = proposer, table, concurrency
        self._longest, self._whole = longest, whole
        self._policy = Policy(table)

    def run(self, traces: Sequence[Trace]) -> Outcome:
        """Plays all traces once, in order, the next one starting when one ends."""
        run = _Run(self._proposer, traces)
        statistics = Statistics(self._table.widths)
        seconds = 0.0
        while run.fill(self._concurrency):
            limit = self._longest if self._whole else min(self._longest, self._policy.limit(run.batch))
            drafts = run.draft(limit)
            picked = Picked.all_of(Source.SUFFIX, drafts.lengths, drafts.scores)
            width = self._width(drafts)
            accepted = run.accept(drafts, width)
            self._policy.observe(picked, width, accepted)
            statistics.observe(picked, width, accepted)
            seconds += self._table.cost(len(accepted), width)
        return Outcome(
            tokens=sum(len(trace.response) for trace in traces),
            counts=statistics.total,
            propose_seconds=run.seconds,
            seconds=seconds + run.seconds,
            plain_seconds=plain_seconds(
                [len(one.response) for one in traces], self._table, self._concurrency
            ),
        )

    def _width(self, drafts: Drafts) -> int:
        if not self._whole:
            return self._policy.choose(drafts).width
        longest = int(drafts.lengths.max())
        return next(width for width in self._table.widths if width > longest)


class _Run:
    """The requests of a pass: which run, how far they are, and the clock of the proposer.

    The first token of a response is the prefill's; steps make the others.
    """

    def __init__(self, proposer: Proposer, traces: Sequence[Trace]) -> None:
        self.seconds = 0.0
        self._proposer, self._traces = proposer, traces
        # All responses in one array, so that a step compares all its drafts at once.
        self._tokens = np.concatenate([trace.response for trace in traces])
        self._ends = np.cumsum([len(trace.response) for trace in traces])
        self._next = 0
        self._slots = np.zeros(0, np.int32)
        self._from = np.zeros(0, np.int64)  # the newest tokens, not yet shown to the proposer
        self._upto = np.zeros(0, np.int64)
        self._end = np.zeros(0, np.int64)

    @property
    def batch(self) -> int:
        """Requests that run."""
        return len(self._slots)

    def fill(self, most: int) -> bool:
        """Starts requests until `most` run; whether any does."""
        while self.batch < most and self._next < len(self._traces):
            trace, end = self._traces[self._next], self._ends[self._next]
            self._next += 1
            if len(trace.response) == 1:
                continue
            started = time.perf_counter()
            slot = self._proposer.start(trace.prompt, np.zeros(0, np.int32))
            self.seconds += time.perf_counter() - started
            begin = end - len(trace.response)
            self._slots = np.append(self._slots, np.int32(slot))
            self._from, self._upto = np.append(self._from, begin), np.append(self._upto, begin + 1)
            self._end = np.append(self._end, end)
        return self.batch > 0

    def draft(self, limit: int) -> Drafts:
        """Shows the newest tokens of all requests, asks for drafts, and lets the proposer work."""
        pieces = [self._tokens[start:stop] for start, stop in zip(self._from, self._upto, strict=True)]
        offsets = np.zeros(self.batch + 1, np.int32)
        np.cumsum(self._upto - self._from, out=offsets[1:])
        limits = np.full(self.batch, limit, np.int32)
        tokens = np.concatenate(pieces)
        started = time.perf_counter()
        drafts = self._proposer.step(self._slots, tokens, offsets, limits)
        self._proposer.work()
        self.seconds += time.perf_counter() - started
        return drafts

    def accept(self, drafts: Drafts, width: int) -> Int32:
        """Moves every request on, and ends those that are through: draft tokens accepted, int32 [rows]."""
        cut = min(width - 1, drafts.tokens.shape[1])
        places = self._upto[:, None] + np.arange(cut)
        # The last token of a response is never a draft's: it counts as the model's own, so that all tokens add up.
        known = places < self._end[:, None] - 1
        known &= np.arange(cut) < drafts.lengths[:, None]
        right = self._tokens[np.minimum(places, len(self._tokens) - 1)] == drafts.tokens[:, :cut]
        accepted = np.logical_and.accumulate(right & known, axis=1).sum(axis=1, dtype=np.int32)
        self._from, self._upto = self._upto, self._upto + accepted + 1
        self._stop(self._upto == self._end)
        return accepted

    def _stop(self, over: np.ndarray) -> None:
        if not over.any():
            return
        started = time.perf_counter()
        # The last tokens are shown as a server shows them, so that the next pass may find them.
        last = np.flatnonzero(over)
        pieces = [self._tokens[self._from[row] : self._upto[row]] for row in last]
        offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int32)
        self._proposer.step(self._slots[last], np.concatenate(pieces), offsets, np.zeros(len(last), np.int32))
        for slot in self._slots[over]:
            self._proposer.stop(int(slot))
        self.seconds += time.perf_counter() - started
        kept = ~over
        self._slots, self._from = self._slots[kept], self._from[kept]
        self._upto, self._end = self._upto[kept], self._end[kept]


def plain_seconds(responses: Sequence[int], table: CostTable, concurrency: int) -> float:
    """Time of all decode steps without drafts, in seconds by the cost table.

    Args:
        responses: tokens of each, the first being the prefill's; started in order, `concurrency` at once.
        table: what steps cost.
        concurrency: requests that run at once.
    """
    waiting = [length - 1 for length in reversed(responses) if length > 1]
    ends: list[int] = []  # the steps at which requests end
    now, seconds = 0, 0.0
    while waiting or ends:
        while waiting and len(ends) < concurrency:
            heapq.heappush(ends, now + waiting.pop())
        seconds += (ends[0] - now) * table.cost(len(ends), 1)
        now = ends[0]
        while ends and ends[0] == now:
            heapq.heappop(ends)
    return seconds
