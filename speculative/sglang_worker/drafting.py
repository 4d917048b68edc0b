"""The host's side of a step: which requests get which draft, and how wide the step is.

With overlap the host launches a step while the one before still runs, so the newest tokens are not known yet.
Most steps need not know them: the index is asked with the tokens at hand, and only where it has something worth
a wider step does the host wait for the step in flight, take its tokens in, and ask again.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from speculative.base import Drafts
from speculative.metrics import Statistics
from speculative.pace import Pace
from speculative.policy import Picked, Policy, Source
from speculative.requests import Requests

# Waiting for a step that has ended takes less.
BLOCKED_SECONDS = 5e-5


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
        seconds: spent on finding drafts, and on waiting for the step before.
    """

    width: int
    drafts: Drafts
    picked: Picked
    seconds: tuple[float, float] = (0.0, 0.0)


class Drafting:
    """Plans steps and learns from what came of them.

    Args:
        requests: running requests, as the suffix index knows them.
        policy: whose drafts, and how wide a step is worth being.
        suffix: whether the index is asked.
        head_tokens: tokens that the draft head drafts; 0 without one.
        head_seconds: time of the head's draft.
        pace: what steps take above the policy's cost table.
        bar: see `Policy.pick`.
        statistics: counts every decode step; None: nobody does.
    """

    def __init__(
        self, requests: Requests, policy: Policy, *, suffix: bool, head_tokens: int, head_seconds: float = 0.0,
        pace: Pace | None = None, bar: float | None = None, statistics: Statistics | None = None,
    ) -> None:  # fmt: skip
        self._requests = requests
        self._policy = policy
        self._suffix = suffix
        self._head_tokens = head_tokens
        self._head_seconds = head_seconds
        self._pace = pace
        self._pause = 0
        self._bar = bar
        self._statistics = statistics
        self._waited = 0.0
        self._ended: float | None = None  # when the step in flight ended, if the host was there to see it
        self._launched: _Launched | None = None
        self._judged: deque[Plan] = deque()

    def plan(self, batch: Any) -> Plan:
        """What the next decode step of SGLang's `ScheduleBatch` verifies; of width 1: nothing, it decodes."""
        started, self._waited, self._ended = time.perf_counter(), 0.0, None
        rows = len(batch.reqs)
        plan = Plan(1, Drafts.nothing(rows), Picked.none(rows))
        if self._policy.limit(rows) and not batch.sampling_info.has_custom_logit_processor:
            if self._pause:
                self._pause -= 1
            else:
                plan = self._plan(batch.reqs) or plan
                if plan.width == 1 and self._pace is not None:
                    self._pause = self._pace.pause(rows, self._policy.table.cost(rows, 1))
        drafting = time.perf_counter() - started - self._waited
        plan = replace(plan, seconds=(drafting, self._waited))
        self._judged.append(plan)
        return plan

    def launched(self, batch: Any, result: Any, *, prefill: bool) -> None:
        """A step has been launched; `result` will hold its tokens."""
        requests = list(batch.reqs)
        before = [len(r.output_ids) for r in requests] if prefill else None
        self._launched = _Launched([r.rid for r in requests], result, before, requests)
        if self._pace is not None:
            self._time(self._pace, self._judged[-1] if self._judged and not prefill else None)

    def verified(self, accepted: Sequence[int]) -> None:
        """The oldest decode step that is not judged yet has been processed.

        Args:
            accepted: draft tokens accepted, by row.
        """
        plan, counts = self._judged.popleft(), np.array(accepted, np.int32)
        if plan.width > 1:
            self._policy.observe(plan.picked, plan.width, counts)
        if self._statistics is not None:
            draft, wait = plan.seconds
            self._statistics.observe(plan.picked, plan.width, counts, draft=draft, wait=wait)

    def _time(self, pace: Pace, plan: Plan | None) -> None:
        if plan is None:
            pace.interrupt()
            return
        rows, wide = len(plan.picked.lengths), plan.width > 1
        seconds = self._policy.table.cost(rows, plan.width)
        if (plan.picked.sources == Source.HEAD).any():
            seconds += self._head_seconds
        waited, now = plan.seconds[1] > 0, time.perf_counter()
        pace.launched(now, rows, seconds, wide=wide, waited=waited, ended=self._ended)

    def _plan(self, requests: Sequence[Any]) -> Plan | None:
        rows = len(requests)
        plain, wide = self._pace.excess(rows) if self._pace is not None else (0.0, 0.0)
        head = self._head_tokens
        if head and not self._policy.head_pays(rows, head, self._head_seconds + wide, plain):
            head = 0
        drafts, picked = self._pick(requests, {}, head)
        waits = bool((picked.sources == Source.SUFFIX).any()) and self._in_flight()
        choice = self._policy.choose(picked, wide, plain)
        width = choice.width
        if waits and width > 1:
            drafts, picked = self._pick(requests, self._late(), head)
            # The wait is over, and a plain step would now be as late as any.
            width = self._policy.width(picked, wide, wide, probing=choice.probing)
        return Plan(width, drafts, picked) if width > 1 else None

    def _pick(self, requests: Sequence[Any], late: dict[str, list[int]], head: int) -> tuple[Drafts, Picked]:
        drafts = self._requests.propose(requests, late) if self._suffix else Drafts.nothing(len(requests))
        picked = self._policy.pick(drafts, head, self._bar)
        if head:
            room = np.minimum(picked.lengths, self._requests.limits(requests, late))
            scores = np.where(picked.sources == Source.HEAD, room, picked.scores).astype(np.float32)
            picked = Picked(np.where(room > 0, picked.sources, Source.NONE).astype(np.int8), room, scores)
        return drafts, picked

    def _in_flight(self) -> bool:
        return self._launched is not None and not self._launched.processed()

    def _late(self) -> dict[str, list[int]]:
        """Tokens of the step in flight by request, waiting for it to end; empty if none is in flight."""
        if not self._in_flight():
            return {}
        step = self._launched
        assert step is not None
        started = time.perf_counter()
        if step.result.copy_done is not None:
            step.result.copy_done.synchronize()
        ended = time.perf_counter()
        self._waited += ended - started
        if self._waited > BLOCKED_SECONDS:
            self._ended = ended
        tokens = step.result.next_token_ids.tolist()
        if step.before is not None:
            return {rid: [token] for rid, token in zip(step.rids, tokens, strict=True)}
        width = step.result.speculative_num_draft_tokens
        lengths = step.result.accept_lens.tolist()
        return {
            rid: tokens[i * width : i * width + n]
            for i, (rid, n) in enumerate(zip(step.rids, lengths, strict=True))
        }
