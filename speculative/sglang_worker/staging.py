"""Drafts on their way from the host to the device, in one copy that nobody waits for."""

from dataclasses import dataclass

import torch

from speculative.policy import Source
from speculative.sglang_worker.drafting import Plan

# A step's copy may still be under way while the next one is being planned, and none later than that.
BUFFERS = 3


@dataclass(frozen=True, slots=True)
class Staged:
    """A step's drafts on the device.

    Attributes:
        tokens: int64 [rows, width - 1]; zero behind a draft's end and where the head drafts.
        limits: int64 [rows], tokens that may be accepted.
        from_head: bool [rows], whose drafts are the head's; None if nobody's are.
    """

    tokens: torch.Tensor
    limits: torch.Tensor
    from_head: torch.Tensor | None


class Staging:
    """Pinned buffers, used in turn.

    Args:
        rows: requests of the largest step.
        width: tokens a request of the widest.
        device: where drafts go.
    """

    def __init__(self, rows: int, width: int, device: str) -> None:
        self._device = device
        pinned = torch.device(device).type == "cuda"
        self._buffers = [
            torch.zeros((rows * (width + 1),), dtype=torch.int64, pin_memory=pinned) for _ in range(BUFFERS)
        ]
        self._turn = 0

    def put(self, plan: Plan) -> Staged:
        """Sends a plan's drafts."""
        rows, width = len(plan.picked.lengths), plan.width
        self._turn = (self._turn + 1) % BUFFERS
        buffer = self._buffers[self._turn][: rows * (width + 1)].view(rows, width + 1)
        host = buffer.numpy()
        host[:, 0] = plan.picked.lengths
        head = plan.picked.sources == Source.HEAD
        host[:, 1] = head
        host[:, 2:] = 0
        drafted = plan.drafts.tokens[:, : width - 1]
        host[:, 2 : 2 + drafted.shape[1]] = drafted
        sent = buffer.to(self._device, non_blocking=True)
        return Staged(sent[:, 2:], sent[:, 0], sent[:, 1] != 0 if head.any() else None)
