"""What a source of drafts is. Pure: numpy only.

Speculative decoding proposes the next tokens of every running request (the draft) and lets the model check them
all in one forward step (the verify). Drafts here are paths, one per request, never trees: `Drafts` holds
those of a step, and a `Proposer` is anything that makes them on the host from tokens alone.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Drafts:
    """The drafts of a step, one row per request.

    Attributes:
        tokens: int32 [rows, width]. Row i's draft is `tokens[i, : lengths[i]]`; what follows is zero.
        lengths: int32 [rows], 0 where there is nothing to draft.
        scores: float32 [rows], how many of the row's tokens the proposer expects to be accepted.
    """

    tokens: Int32
    lengths: Int32
    scores: Float32

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def nothing(cls, rows: int, width: int = 0) -> "Drafts":
        """No draft for any of `rows` requests."""
        return cls(np.zeros((rows, width), np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.float32))


class Proposer(Protocol):
    """A source of drafts that needs tokens alone. Requests are known by the slot that `start` gives.

    The same calls in the same order give the same drafts, whatever the clock says: ranks of a tensor-parallel
    group each ask their own proposer and must agree.
    """

    def start(self, prompt: Int32, response: Int32) -> int:
        """A request begins (or comes back after it was put away): its slot, until `stop`.

        Args:
            prompt: int32 [tokens].
            response: int32 [tokens], what was generated before; empty for a new request.
        """
        ...

    def step(self, slots: Int32, tokens: Int32, offsets: Int32, limits: Int32) -> Drafts:
        """Takes in the newest tokens of each request, then drafts what may follow them.

        Args:
            slots: int32 [rows].
            tokens: int32 [offsets[-1]], generated since the last call, row after row.
            offsets: int32 [rows + 1]; row i's are `tokens[offsets[i] : offsets[i + 1]]`, possibly none.
            limits: int32 [rows], the longest draft wanted; 0: none, only take in.
        """
        ...

    def work(self) -> None:
        """A slice of whatever was put off (a long prompt); called once a step while the device is busy."""
        ...

    def stop(self, slot: int) -> None:
        """The request is over; its slot may be given to another."""
        ...

    def clear(self) -> None:
        """Forgets what requests that are over have left behind."""
        ...
