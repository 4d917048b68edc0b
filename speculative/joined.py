"""Several sources of drafts as one. Pure: numpy only."""

import numpy as np

from speculative.base import Drafts, Int32, Proposer


class Joined:
    """A `Proposer` that asks others: each request, in each step, gets the draft with the highest score.

    Args:
        sources: at least one; on a tie the first of them.

    Raises:
        ValueError: no source is given.
    """

    def __init__(self, *sources: Proposer) -> None:
        if not sources:
            msg = "Joined() has no source of drafts; give one or more proposers"
            raise ValueError(msg)
        self._first, *self._others = sources
        self._slots: dict[int, list[int]] = {}  # the others' slots, by the first one's, which is ours

    def start(self, prompt: Int32, response: Int32) -> int:
        """See `Proposer.start`."""
        slot = self._first.start(prompt, response)
        self._slots[slot] = [other.start(prompt, response) for other in self._others]
        return slot

    def step(self, slots: Int32, tokens: Int32, offsets: Int32, limits: Int32) -> Drafts:
        """See `Proposer.step`."""
        best = self._first.step(slots, tokens, offsets, limits)
        for index, other in enumerate(self._others):
            theirs = np.array([self._slots[slot][index] for slot in slots.tolist()], np.int32)
            best = _better(best, other.step(theirs, tokens, offsets, limits))
        return best

    def work(self) -> None:
        """See `Proposer.work`."""
        for source in (self._first, *self._others):
            source.work()

    def stop(self, slot: int) -> None:
        """See `Proposer.stop`."""
        self._first.stop(slot)
        for other, theirs in zip(self._others, self._slots.pop(slot), strict=True):
            other.stop(theirs)

    def clear(self) -> None:
        """See `Proposer.clear`."""
        for source in (self._first, *self._others):
            source.clear()


def _better(one: Drafts, other: Drafts) -> Drafts:
    width = max(one.tokens.shape[1], other.tokens.shape[1])
    taken = other.scores > one.scores
    tokens = [np.pad(drafts.tokens, ((0, 0), (0, width - drafts.tokens.shape[1]))) for drafts in (other, one)]
    return Drafts(
        np.where(taken[:, None], *tokens),
        np.where(taken, other.lengths, one.lengths),
        np.where(taken, other.scores, one.scores),
    )
