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
from speculative.policy import Picked, Policy, Source
from speculative.requests import Requests


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
        wait_seconds: what a step loses by waiting for the one before.
        bar: see `Policy.pick`.
        statistics: counts every decode step; None: nobody does.
    """

    def __init__(
        self, requests: Requests, policy: Policy, *, suffix: bool, head_tokens: int, head_seconds: float = 0.0,
        wait_seconds: float = 0.0, bar: float | None = None, statistics: Statistics | None = None,
    ) -> None:  # fmt: skip
        self._requests = requests
        self._policy = policy
        self._suffix = suffix
        self._head_tokens = head_tokens
        self._head_seconds = head_seconds
        self._wait_seconds = wait_seconds
        self._bar = bar
        self._statistics = statistics
        self._waited = 0.0
        self._launched: _Launched | None = None
        self._judged: deque[Plan] = deque()

    def plan(self, batch: Any) -> Plan:
        """What the next decode step of SGLang's `ScheduleBatch` verifies; of width 1: nothing, it decodes."""
        started, self._waited = time.perf_counter(), 0.0
        rows = len(batch.reqs)
        plan = Plan(1, Drafts.nothing(rows), Picked.none(rows))
        if self._policy.limit(rows) and not batch.sampling_info.has_custom_logit_processor:
            plan = self._plan(batch.reqs) or plan
        drafting = time.perf_counter() - started - self._waited
        plan = replace(plan, seconds=(drafting, self._waited))
        self._judged.append(plan)
        return plan

    def launched(self, batch: Any, result: Any, *, prefill: bool) -> None:
        """A step has been launched; `result` will hold its tokens."""
        requests = list(batch.reqs)
        before = [len(r.output_ids) for r in requests] if prefill else None
        self._launched = _Launched([r.rid for r in requests], result, before, requests)

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

    def _plan(self, requests: Sequence[Any]) -> Plan | None:
        rows = len(requests)
        head = self._head_tokens
        if head and not self._policy.head_pays(rows, head, self._head_seconds):
            head = 0
        drafts, picked = self._pick(requests, {}, head)
        waits = bool((picked.sources == Source.SUFFIX).any()) and self._in_flight()
        choice = self._policy.choose(picked, self._wait_seconds if waits else 0.0)
        width = choice.width
        if waits and width > 1:
            drafts, picked = self._pick(requests, self._late(), head)
            width = self._policy.width(picked, probing=choice.probing)
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
