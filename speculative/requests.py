"""Running requests as a proposer knows them: which slot, how much of each is taken in. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from speculative.base import Drafts, Int32, Proposer


class Request(Protocol):
    """What is read of SGLang's `Req`."""

    rid: str
    origin_input_ids: Sequence[int]
    output_ids: Sequence[int]
    sampling_params: Any

    is_retracted: bool

    def finished(self) -> bool:
        """Whether the request is over."""
        ...


@dataclass(slots=True)
class _Known:
    request: Request
    slot: int
    tokens: int  # of the response, taken in
    room: int  # tokens of the response that a draft may reach; none if nothing may be drafted


class Requests:
    """Feeds a proposer with what requests have generated.

    Requests come and go between steps, are put away and come back, or lose tokens that were on their way when
    that happened; each call makes the proposer agree with the request again.

    Args:
        proposer: the source of drafts.
        longest: tokens of the longest draft that can be verified.
        context: tokens that the model has positions for.
        vocabulary: ids that the model knows are below; None: all are.
    """

    def __init__(self, proposer: Proposer, longest: int, context: int, vocabulary: int | None = None) -> None:
        self._proposer = proposer
        self._longest = longest
        self._context = context
        self._vocabulary = vocabulary
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def propose(
        self, requests: Sequence[Request], pending: dict[str, list[int]], most: int | None = None
    ) -> tuple[Drafts, Int32]:
        """Takes in what is new and drafts for every request.

        Args:
            requests: of this step, in its order.
            pending: tokens that were generated and are not in `output_ids` yet, by request id.
            most: tokens of the longest draft that is of use in this step; None: `longest`.

        Returns:
            The drafts, and how many draft tokens each request may get at most, int32 [requests].
        """
        slots: list[int] = []
        limits: list[int] = []
        offsets, tokens = [0], list[int]()
        longest = self._longest if most is None else min(most, self._longest)
        for request in requests:
            late = pending.get(request.rid, ())
            known = self._agree(request, late)
            done = len(request.output_ids)
            if known.tokens < done:
                tokens += request.output_ids[known.tokens : done]
                tokens += late
            else:
                tokens += late[known.tokens - done :]
            known.tokens = done = done + len(late)
            slots.append(known.slot)
            offsets.append(len(tokens))
            limits.append(max(0, min(longest, known.room - done)))
        allowed = np.array(limits, np.int32)
        drafts = self._proposer.step(
            np.array(slots, np.int32), np.array(tokens, np.int32), np.array(offsets, np.int32), allowed
        )
        return self._known_ids(drafts), allowed

    def _known_ids(self, drafts: Drafts) -> Drafts:
        """Drafts end before an id that no model knows: SGLang writes such ids where a prompt has an image."""
        if self._vocabulary is None or drafts.tokens.max(initial=0) < self._vocabulary:
            return drafts
        beyond = drafts.tokens >= self._vocabulary
        first = np.where(beyond.any(axis=1), beyond.argmax(axis=1), drafts.tokens.shape[1])
        lengths = np.minimum(drafts.lengths, first).astype(np.int32)
        tokens = np.where(np.arange(drafts.tokens.shape[1]) < lengths[:, None], drafts.tokens, 0)
        return Drafts(tokens.astype(np.int32), lengths, np.minimum(drafts.scores, lengths).astype(np.float32))

    def finish(self, rid: str) -> None:
        """The request is over: its last tokens are taken in, its slot is given back."""
        known = self._known.pop(rid, None)
        if known is None:
            return
        rest = np.array(known.request.output_ids[known.tokens :], np.int32)
        if len(rest):
            slots, offsets = np.array([known.slot], np.int32), np.array([0, len(rest)], np.int32)
            self._proposer.step(slots, rest, offsets, np.zeros(1, np.int32))
        self._proposer.stop(known.slot)

    def sweep(self) -> None:
        """Finishes requests that no step will have: SGLang says nothing of those that end with their first token.

        Nor of those that are given up while they wait to come back; who does come back begins anew.
        """
        for rid in [rid for rid, known in self._known.items() if _gone(known.request)]:
            self.finish(rid)

    def idle(self) -> bool:
        """Whether none of them runs. Those that ended without a word are finished then."""
        if not all(_gone(known.request) for known in self._known.values()):
            return False
        self.sweep()
        return True

    def limits(
        self, requests: Sequence[Request], pending: dict[str, list[int]], most: int | None = None
    ) -> Int32:
        """How many draft tokens each request may get: int32 [requests]; arguments as of `propose`."""
        longest = self._longest if most is None else min(most, self._longest)
        found = [
            max(0, min(longest, self._room(r) - len(r.output_ids) - len(pending.get(r.rid, ()))))
            for r in requests
        ]
        return np.array(found, np.int32)

    def _room(self, request: Request) -> int:
        # A step yields one token more than it accepts of the draft.
        if not draftable(request):
            return 0
        return min(request.sampling_params.max_new_tokens, self._context - len(request.origin_input_ids)) - 1

    def _agree(self, request: Request, late: Sequence[int]) -> _Known:
        known = self._known.get(request.rid)
        if (
            known is not None
            and known.request is request
            and known.tokens <= len(request.output_ids) + len(late)
        ):
            return known
        if known is not None:
            self._proposer.stop(known.slot)
        response = np.array(request.output_ids, np.int32)
        slot = self._proposer.start(np.array(request.origin_input_ids, np.int32), response)
        self._known[request.rid] = known = _Known(request, slot, len(response), self._room(request))
        return known


def _gone(request: Request) -> bool:
    return request.finished() or request.is_retracted


def draftable(request: Request) -> bool:
    """Whether a draft of more than one step ahead can be verified for this request.

    Penalties and custom logit processors depend on every token before, so the logits of a draft's later rows
    would be those of another text.
    """
    params = request.sampling_params
    return (
        params.frequency_penalty == 0.0
        and params.presence_penalty == 0.0
        and params.repetition_penalty == 1.0
        and params.min_new_tokens == 0
        and getattr(request, "custom_logit_processor", None) is None
    )
