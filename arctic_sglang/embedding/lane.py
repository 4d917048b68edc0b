"""Which blocks make the next forward step. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from arctic_sglang.embedding.wire import EmbedBlock


class Lane:
    """Blocks that wait for a step, those of small requests and those of large ones.

    While both kinds wait, steps begin with one and the other in turn, so that neither starves; what room a step
    has left is filled from either. Within a kind the order is that of arrival, so every rank of a tensor-parallel
    group makes the same steps.

    Args:
        step_tokens: of a step. A block of more is a step alone.
    """

    def __init__(self, step_tokens: int) -> None:
        self.step_tokens = step_tokens
        self._small: deque[EmbedBlock] = deque()
        self._large: deque[EmbedBlock] = deque()
        self._large_first = False

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def add(self, block: EmbedBlock) -> None:
        """Let a block wait."""
        (self._small if block.small else self._large).append(block)

    def drop(self, numbers: Collection[int]) -> list[int]:
        """Remove those of these blocks that still wait, and return their numbers."""
        dropped = []
        for queue in (self._small, self._large):
            found = [block for block in queue if block.number in numbers]
            for block in found:
                queue.remove(block)
                dropped.append(block.number)
        return dropped

    def next_step(self) -> list[EmbedBlock]:
        """Take the blocks of the next step; none if none wait."""
        queues = (self._large, self._small) if self._large_first else (self._small, self._large)
        # The turn passes only where both kinds wait: a small request that comes alone need not sit one out.
        self._large_first = bool(self._small) and bool(self._large) and not self._large_first
        step: list[EmbedBlock] = []
        used = 0
        for queue in queues:
            while queue and (not step or used + len(queue[0].ids) <= self.step_tokens):
                step.append(queue.popleft())
                used += len(step[-1].ids)
        return step
