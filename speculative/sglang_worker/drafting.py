"""The host's side of a step: which requests get which draft, and how wide the step is.

With overlap the host launches a step while the one before still runs, so the newest tokens are not known yet.
Most steps need not know them: the index is asked with the tokens at hand, and only where it has something worth
a wider step does the host wait for the step in flight, take its tokens in, and ask again. Where the device is done
before the host is, as with a small model, there is nothing to wait for, and the index is asked once.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from speculative.base import Drafts, Int32
from speculative.metrics import Statistics
from speculative.pace import Circumstances, Kind, Pace
from speculative.policy import Excess, Patience, Picked, Policy, Source
from speculative.requests import Requests

# While nobody asks, each so many steps some requests' tokens are taken in, every request's within so many turns.
# Several tokens at a time take less time each, and all of them at once would hold a step up.
_STEPS, _TURNS = 4, 2


@dataclass(slots=True)
class _Launched:
    """A step that SGLang's scheduler has launched."""

    rids: list[str]
    result: Any  # GenerationBatchResult
    before: list[int] | None  # of a prefill: tokens that each request had
    requests: list[Any]

    def processed(self) -> bool:
        """Whether its tokens are in the requests' `output_ids`."""
        if self.before is None:
            return self.result.num_correct_drafts_per_req_cpu is not None
        return any(len(r.output_ids) > n for r, n in zip(self.requests, self.before, strict=True))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step verifies.

    Attributes:
        width: tokens a request; 1 for plain decode.
        drafts: of the suffix index.
        picked: whose draft each request gets.
        kind: what is known of it before it runs.
        probing: it runs to see if drafts pay although they do not seem to.
        seconds: spent on finding drafts, and on waiting for the step before.
    """

    width: int
    drafts: Drafts
    picked: Picked
    kind: Kind
    probing: bool = False
    seconds: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def plain(cls, rows: int, *, asked: bool = False) -> "Plan":
        """Without drafts; `asked`: there were none worth checking."""
        return cls(1, Drafts.nothing(rows), Picked.none(rows), Kind.ASKED if asked else Kind.PLAIN)


class Mark(Protocol):
    """A point in a device's work: `torch.cuda.Event`, or `Moment`."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this point to another that was passed too."""
        ...


class Moment:
    """Now, where the host does the work itself."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def elapsed_time(self, end: "Moment") -> float:
        """Milliseconds from this moment to another."""
        return 1e3 * (end._seconds - self._seconds)


@dataclass(slots=True)
class _Pending:
    """A decode step whose outcome is not known yet."""

    plan: Plan
    now: Circumstances
    begin: Mark | None = None  # the end of the step before
    end: Mark | None = None


class Drafting:
    """Plans steps and learns from what came of them.

    Args:
        requests: running requests, as the suffix index knows them.
        policy: whose drafts, and how wide a step is worth being.
        suffix: whether the index is asked.
        head_seconds: time of the head's draft.
        pace: what steps take above the policy's cost table; None: nobody measures that.
        mark: marks the end of the device's work so far; comes with `pace`.
        alone: no other rank has to plan the same, so that it may depend on whether the device is done.
        statistics: counts every decode step; None: nobody does.
    """

    def __init__(
        self, requests: Requests, policy: Policy, *, suffix: bool, head_seconds: float = 0.0,
        pace: Pace | None = None, mark: Callable[[], Mark] | None = None, alone: bool = False,
        statistics: Statistics | None = None,
    ) -> None:  # fmt: skip
        self._requests = requests
        self._policy = policy
        self._suffix = suffix
        self._head_seconds = head_seconds
        self._pace = pace
        self._mark = mark
        self._alone = alone
        self._last: Mark | None = None
        self._patience = Patience()
        self._unasked = 0  # steps since drafts were asked for
        self._joined = False  # there may be requests that nobody asked about yet
        self._statistics = statistics
        self._waited = 0.0
        self._launched: _Launched | None = None
        self._pending: deque[_Pending] = deque()

    def plan(self, batch: Any) -> Plan:
        """What the next decode step of SGLang's `ScheduleBatch` verifies; of width 1: nothing, it decodes."""
        started, self._waited = time.perf_counter(), 0.0
        rows = len(batch.reqs)
        now = self._now(rows)
        plan = Plan.plain(rows)
        if self._policy.limit(rows) and not batch.sampling_info.has_custom_logit_processor:
            if self._asks(now):
                plan = self._plan(batch.reqs, now)
            else:
                self._take_in(batch.reqs)
        if plan.width > 1:
            self._patience.found()
        if self._pace is not None:
            self._pace.planned(now, plan.kind)
        drafting = time.perf_counter() - started - self._waited
        plan = replace(plan, seconds=(drafting, self._waited))
        self._pending.append(_Pending(plan, now))
        return plan

    def _asks(self, now: Circumstances) -> bool:
        self._joined |= now.prefilled
        if self._pace is not None and self._pace.due(now):
            return False
        joined, self._joined = self._joined, False
        return self._patience.asks(joined=joined)

    def _take_in(self, requests: Sequence[Any]) -> None:
        """Takes in tokens of some requests in a step in which nobody asks."""
        self._unasked += 1
        turn, rest = divmod(self._unasked, _STEPS)
        some = requests[turn % _TURNS :: _TURNS]
        if self._suffix and some and not rest:
            self._requests.propose(some, {}, 0)

    def launched(self, batch: Any, result: Any, *, prefill: bool) -> None:
        """A step has been launched; `result` will hold its tokens."""
        requests = list(batch.reqs)
        before = [len(r.output_ids) for r in requests] if prefill else None
        self._launched = _Launched([r.rid for r in requests], result, before, requests)
        if self._mark is not None:
            mark = self._mark()
            if not prefill:
                self._pending[-1].begin, self._pending[-1].end = self._last, mark
            self._last = mark

    def verified(self, accepted: Sequence[int]) -> None:
        """The oldest decode step that is not judged yet has been processed.

        Args:
            accepted: draft tokens accepted, by row.
        """
        step, counts = self._pending.popleft(), np.array(accepted, np.int32)
        plan, took = step.plan, None
        if step.begin is not None and step.end is not None:
            took = step.begin.elapsed_time(step.end) / 1e3
        if plan.width > 1:
            self._policy.observe(plan.picked, plan.width, counts)
            if counts.any() and not plan.probing:
                self._patience.came_true()
        if self._pace is not None:
            self._pace.observe(step.now, plan.kind, took, self._cost(plan))
        if self._statistics is not None:
            draft, wait = plan.seconds
            self._statistics.observe(
                plan.picked, plan.width, counts, draft=draft, wait=wait, verify=took or 0.0
            )

    def _cost(self, plan: Plan) -> float:
        """Seconds of the step by the table, the head's own with it."""
        seconds = self._policy.table.cost(len(plan.picked.lengths), plan.width)
        return seconds + self._head_seconds * (plan.kind is Kind.HEAD)

    def _plan(self, requests: Sequence[Any], now: Circumstances) -> Plan:
        excess = self._pace.excess(now) if self._pace is not None else Excess()
        excess = excess._replace(head=excess.head + self._head_seconds)
        # Who need not wait for the newest tokens takes them in at once.
        waits = self._in_flight() and not (self._alone and self._done())
        drafts, room = self._ask(requests, {} if waits else self._late())
        choice = self._policy.choose(drafts, room, excess, steps=1 + self._unasked)
        self._unasked = 0
        width = choice.width
        room = room if choice.head else None
        if width > 1 and waits and self._suffix and drafts.lengths.any():
            drafts, late = self._ask(requests, self._late())
            room = late if choice.head else None
            # The wait is over, and a plain step would now be as late as any.
            width = self._policy.width(
                drafts, room, excess._replace(plain=excess.wide), probing=choice.probing
            )
        if width == 1:
            return Plan.plain(len(requests), asked=True)
        if room is None:
            picked = Picked.all_of(Source.SUFFIX, drafts.lengths, drafts.scores)
        else:
            picked = self._policy.pick(drafts, room)
        heads = room is not None and bool((picked.sources == Source.HEAD).any())
        return Plan(width, drafts, picked, Kind.HEAD if heads else Kind.WIDE, choice.probing)

    def _ask(self, requests: Sequence[Any], late: dict[str, list[int]]) -> tuple[Drafts, Int32 | None]:
        """The index's drafts, and how many tokens the head may draft for each request; None: there is no head."""
        most = self._policy.limit(len(requests))
        if self._suffix:
            drafts, room = self._requests.propose(requests, late, most)
        else:
            drafts, room = Drafts.nothing(len(requests)), self._requests.limits(requests, late, most)
        return drafts, room if self._policy.head else None

    def _now(self, rows: int) -> Circumstances:
        last = self._launched
        if last is None:
            return Circumstances(rows)
        prefilled = last.before is not None
        return Circumstances(rows, prefilled, not prefilled and last.result.speculative_num_draft_tokens > 1)

    def _in_flight(self) -> bool:
        return self._launched is not None and not self._launched.processed()

    def _done(self) -> bool:
        """Whether the device is through with the step in flight."""
        assert self._launched is not None
        copied = self._launched.result.copy_done
        return copied is None or copied.query()

    def _late(self) -> dict[str, list[int]]:
        """Tokens of the step in flight by request, waiting for it to end; empty if none is in flight."""
        if not self._in_flight():
            return {}
        step = self._launched
        assert step is not None
        started = time.perf_counter()
        if step.result.copy_done is not None:
            step.result.copy_done.synchronize()
        self._waited += time.perf_counter() - started
        tokens = step.result.next_token_ids.tolist()
        if step.before is not None:
            return {rid: [token] for rid, token in zip(step.rids, tokens, strict=True)}
        width = step.result.speculative_num_draft_tokens
        lengths = step.result.accept_lens.tolist()
        return {
            rid: tokens[i * width : i * width + n]
            for i, (rid, n) in enumerate(zip(step.rids, lengths, strict=True))
        }
