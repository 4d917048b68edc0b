"""The loss of a draft head, teacher-forced: all positions at once, each step given the tokens that came.

From state j and token j the head is to say token j + 1; from that step's state and token j + 1, token j + 2; and so
on. The loss is the sum over the steps of their mean cross-entropies, as in Snowflake's recipes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from speculative.speculators.modules import Speculator, State

# Logits are made for so many tokens at a time that one float32 copy of them takes this many values (256 MiB).
LOGITS_AT_A_TIME = 2**26


class Objective(nn.Module):
    """A draft head and its loss; all that is trained goes through `forward`, because DDP acts there.

    Args:
        speculator: the head.
        autocast: compute in bfloat16, whatever the weights' dtype.
        model_head: the model's own vocabulary head, frozen, where its distribution is what the head learns to say.
    """

    def __init__(
        self, speculator: Speculator, *, autocast: bool = False, model_head: Tensor | None = None
    ) -> None:
        super().__init__()
        self.speculator = speculator
        self._autocast = autocast
        self._model_head = model_head

    def forward(self, states: Tensor, tokens: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of some responses.

        Args:
            states: `[tokens, input_hidden_dim]`.
            tokens: int64 `[tokens]`, of the responses one after another.
            left: int64 `[tokens]`, how many of the same response come after each.

        Returns:
            Of each step, float32 `[n_predict]`: the cross-entropies summed, and how many tokens were said right.
        """
        speculator = self.speculator
        with torch.autocast(states.device.type, torch.bfloat16, enabled=self._autocast):
            at = torch.arange(len(left), device=left.device)
            state = speculator.start(states.to(next(speculator.parameters()).dtype))
            losses, right = [], []
            for index in range(speculator.config.n_predict):
                kept = left[at] > index
                at = at[kept]
                state = State(state.output[kept], None if state.cell is None else state.cell[kept])
                state = speculator.step(index, state, tokens[at + index])
                aim = at + index + 1
                loss, hits = self._compare(
                    state.output, speculator.head_weight(index), tokens[aim], states[aim]
                )
                losses.append(loss)
                right.append(hits)
            return torch.stack(losses), torch.stack(right)

    def _compare(
        self, outputs: Tensor, head: Tensor, wanted: Tensor, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and hits, summed; logits are made in parts, and made again for the gradients."""
        chunk = max(1, LOGITS_AT_A_TIME // len(head))
        if len(outputs) <= chunk:
            return self._part(outputs, head, wanted, states)
        parts = zip(outputs.split(chunk), wanted.split(chunk), states.split(chunk), strict=True)
        found = [checkpoint(self._part, out, head, *more, use_reentrant=False) for out, *more in parts]
        return tuple(torch.stack(sums).sum(0) for sums in zip(*found, strict=True))

    def _part(self, outputs: Tensor, head: Tensor, wanted: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional.linear(outputs, head).float()
        hits = (logits.argmax(-1) == wanted).sum().float()
        if self._model_head is None:
            return functional.cross_entropy(logits, wanted, reduction="sum"), hits
        with torch.no_grad():
            aim = functional.linear(states.to(self._model_head.dtype), self._model_head).float().softmax(-1)
        return functional.cross_entropy(logits, aim, reduction="sum"), hits


@torch.no_grad()
def start_from(speculator: Speculator, embedding: Tensor, head: Tensor) -> None:
    """Sets a head's vocabulary weights to the model's: its head, and its embedding at the deviation of random ones.

    Args:
        speculator: after `reset_parameters`, with heads and an embedding of the model's width.
        embedding: the model's, `[vocabulary, hidden]`.
        head: the model's, `[vocabulary, hidden]`.
    """
    for own in speculator.head:
        own.weight.copy_(head)
    for own in speculator.emb:
        weight = own.weight
        weight.copy_(embedding * (weight.std() / embedding.float().std()))
