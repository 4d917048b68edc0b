"""How much of a head's drafts the model would accept, from what the model wrote.

Greedy decoding with speculation gives the text of greedy decoding, so its steps can be walked through along a greedy
response: a draft is accepted as far as it equals what came. For a response drawn at a temperature the walk tells how
often the draft equals the draw, which is also how a deterministic draft is verified without bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speculative.speculators.modules import Speculator
from speculative.training.states import Source, tokens_of
from swiftkv.data import Epoch, Table


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Figures of one head on some responses.

    Attributes:
        responses: how many.
        tokens: in them, but for the first of each, which the prefill gives.
        steps: verify steps to make them.
        accepted: share of all positions from which the first 1, 2, ... n drafted tokens are all right; a draft that
            runs past the response's end counts as wrong there.
    """

    responses: int
    tokens: int
    steps: int
    accepted: tuple[float, ...]

    @property
    def length(self) -> float:
        """Tokens per verify step, the model's own included; at most n + 1."""
        return self.tokens / self.steps if self.steps else 1.0

    @property
    def expected(self) -> float:
        """The same if a step began at every position alike."""
        return 1.0 + sum(self.accepted)

    @classmethod
    def of(cls, sums: Tensor) -> "Acceptance":
        """From what `sums` gives, added up."""
        responses, tokens, steps, positions, *accepted = sums.double().tolist()
        shares = tuple(value / positions if positions else 0.0 for value in accepted)
        return cls(int(responses), int(tokens), int(steps), shares)

    def to_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "responses": self.responses, "tokens": self.tokens, "steps": self.steps,
            "acceptance_length": self.length, "expected_acceptance_length": self.expected,
            "accepted": list(self.accepted),
        }  # fmt: skip


def accepted_lengths(drafts: Tensor, tokens: Tensor, left: Tensor) -> Tensor:
    """How many drafted tokens equal what came, from the first on: int64 `[tokens]`.

    Args:
        drafts: int64 `[tokens, n]`; row j follows token j.
        tokens: int64 `[tokens]`, responses one after another.
        left: int64 `[tokens]`, how many of the same response come after each.
    """
    ahead = torch.arange(1, drafts.shape[1] + 1, device=drafts.device)
    there = torch.arange(len(tokens), device=drafts.device)[:, None] + ahead
    came = tokens[there.clamp(max=len(tokens) - 1)]
    right = (drafts == came) & (left[:, None] >= ahead)
    return right.long().cumprod(1).sum(1)


def walk(accepted: np.ndarray) -> int:
    """Verify steps that one response takes.

    Args:
        accepted: int `[tokens]`, what `accepted_lengths` gives of it.
    """
    at, steps = 0, 0
    while at < len(accepted) - 1:
        at += int(accepted[at]) + 1
        steps += 1
    return steps


@torch.no_grad()
def sums(
    speculator: Speculator,
    source: Source,
    table: Table,
    sequence_length: int,
    size: int,
    *,
    part: int = 0,
    parts: int = 1,
) -> Tensor:
    """The sums of an `Acceptance` over one part of the rows, float64 `[4 + n_predict]` on the CPU.

    Args:
        speculator: the head.
        source: of the rows' states.
        table: the rows.
        sequence_length: tokens of a sequence at most.
        size: sequences of a batch.
        part: which part, from 0.
        parts: into how many the batches are dealt.
    """
    count = speculator.config.n_predict
    weight = next(speculator.parameters())
    total = torch.zeros(4 + count, dtype=torch.float64)
    epoch = Epoch.make(table.lengths, sequence_length, 0, 0)
    for first in range(part * size, len(epoch), parts * size):
        sequences = [epoch[i] for i in range(first, min(first + size, len(epoch)))]
        tokens, left = (tensor.to(weight.device) for tensor in tokens_of(table, sequences))
        drafts = speculator.draft(source(sequences).to(weight.device, weight.dtype), tokens)
        lengths = accepted_lengths(drafts, tokens, left)
        total += _sums(lengths.cpu().numpy(), left.cpu().numpy(), count, np.concatenate(sequences), table)
    return total


def _sums(
    lengths: np.ndarray, left: np.ndarray, count: int, rows: Sequence[int] | np.ndarray, table: Table
) -> Tensor:
    sizes = table.counts[rows]
    steps = sum(map(walk, np.split(lengths, np.cumsum(sizes)[:-1])))
    inside = lengths[left > 0]
    accepted = [(inside >= number).sum() for number in range(1, count + 1)]
    return torch.tensor([len(rows), (sizes - 1).sum(), steps, len(inside), *accepted], dtype=torch.float64)
