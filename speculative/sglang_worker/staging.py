"""Drafts on their way from the host to the device, in one copy that nobody waits for."""

import torch

from speculative.chain import DRAFT, FROM_HEAD, LIMIT
from speculative.policy import Source
from speculative.sglang_worker.drafting import Plan

# A step's copy may still be under way while the next one is being planned, and none later than that.
BUFFERS = 3


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

    def put(self, plan: Plan) -> torch.Tensor:
        """Sends a plan's drafts: `packed` of `speculative.chain.Drafted`."""
        rows, width = len(plan.picked.lengths), plan.width
        self._turn = (self._turn + 1) % BUFFERS
        buffer = self._buffers[self._turn][: rows * (width + 1)].view(rows, width + 1)
        host = buffer.numpy()
        host[:, LIMIT] = plan.picked.lengths
        host[:, FROM_HEAD] = plan.picked.sources == Source.HEAD
        host[:, DRAFT:] = 0
        drafted = plan.drafts.tokens[:, : width - 1]
        host[:, DRAFT : DRAFT + drafted.shape[1]] = drafted
        return buffer.to(self._device, non_blocking=True)
