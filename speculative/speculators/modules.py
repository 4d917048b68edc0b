"""Draft heads: small networks that draft the next tokens from the target model's last hidden state.

Step i takes the state (at first the hidden state, after the final norm, that gave the last accepted token) and the
token that came last, makes a new state, and a linear head gives the next token's logits from it. With
`z = emb(token)` and `a = config.emb_scale`:

- `RnnSpeculator` (method "sum_rnn", and the MLP of https://arxiv.org/abs/2404.19124):
  `state' = gelu(ln(proj(state) + a z))`;
- `LstmSpeculator` (method "sum_lstm"): see `gates.lstm_cell`.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from speculative.speculators.config import SpeculatorConfig
from speculative.speculators.gates import lstm_cell, scale_input
from speculative.speculators.shard import WHOLE, VocabShard

NORM_EPS = 1e-6  # of every norm, in Snowflake's code and in IBM's


@dataclass(frozen=True, slots=True)
class State:
    """What a step hands to the next.

    Attributes:
        output: `[..., state_dim]`, what the head reads; before the first step `[..., input_hidden_dim]`.
        cell: float32 `[..., state_dim]`, an LSTM's memory; None stands for zeros.
    """

    output: Tensor
    cell: Tensor | None = None


class RmsNorm(nn.Module):
    """`weight * x / rms(x) + bias`, computed in float32, in the type of `x`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Of `[..., width]`, the same shape."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
        return (self.weight.float() * wide + self.bias.float()).to(x.dtype)


class Speculator(nn.Module):
    """What the kinds have in common. Parameters are those of `config`; `head` holds this shard's rows only.

    Args:
        config: of the head.
        shard: which part of the vocabulary `head` is for; embeddings are whole on every rank.
    """

    def __init__(self, config: SpeculatorConfig, shard: VocabShard = WHOLE) -> None:
        super().__init__()
        self.config = config
        self.shard = shard
        count = 1 if config.tie_weights else config.n_predict
        rows = len(shard.tokens(config.vocab_size))
        self.head = nn.ModuleList(nn.Linear(config.state_dim, rows, bias=False) for _ in range(count))

    @abstractmethod
    def step(self, index: int, state: State, tokens: Tensor) -> State:
        """The state after step `index` (from 0).

        Args:
            index: below `config.max_steps`, if that is a number.
            state: of the step before.
            tokens: int64 `[...]`, the tokens that came last, all of them in the vocabulary.
        """

    def start(self, hidden: Tensor) -> State:
        """The state before the first step, of hidden states `[..., input_hidden_dim]`."""
        return State(scale_input(hidden, NORM_EPS) if self.config.scale_input else hidden)

    def head_weight(self, index: int) -> nn.Parameter:
        """The head of step `index`, `[tokens of the shard, state_dim]`."""
        return self.head[min(index, len(self.head) - 1)].weight

    def states(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        """The state of every step at every position, teacher-forced: n_predict tensors `[batch, T, state_dim]`.

        Args:
            hidden: `[batch, T, input_hidden_dim]`.
            tokens: int64 `[batch, T + n_predict - 1]` or longer; `tokens[:, t]` is the token that the target chose
                from `hidden[:, t]`. Step i at position t reads `tokens[:, t + i]` and drafts `tokens[:, t + i + 1]`.
        """
        length, state, outputs = hidden.shape[1], self.start(hidden), []
        for index in range(self.config.n_predict):
            state = self.step(index, state, tokens[:, index : index + length])
            outputs.append(state.output)
        return outputs

    def logits(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        """The logits of `states`, n_predict tensors `[batch, T, tokens of the shard]`.

        For large vocabularies take `states` instead and slices of `head_weight`.
        """
        outputs = self.states(hidden, tokens)
        return [functional.linear(out, self.head_weight(index)) for index, out in enumerate(outputs)]

    @torch.no_grad()
    def draft(
        self,
        hidden: Tensor,
        tokens: Tensor,
        steps: int | None = None,
        pick: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The likeliest tokens, one after another: int64 `[batch, steps]`.

        Args:
            hidden: `[batch, input_hidden_dim]`.
            tokens: int `[batch]`, what the target chose from `hidden`; ids beyond the vocabulary count as its last.
            steps: how many, or None for n_predict.
            pick: from the step's index and its output `[batch, state_dim]` to tokens int64 `[batch]`; None:
                the argmax of this module's own logits, which needs the whole vocabulary.

        Raises:
            ValueError: the weights allow fewer steps.
        """
        steps = self.config.n_predict if steps is None else steps
        self.check_steps(steps)
        pick = self._argmax if pick is None else pick
        last, state, drafted = tokens.long().clamp(0, self.config.vocab_size - 1), self.start(hidden), []
        for index in range(steps):
            state = self.step(index, state, last)
            last = pick(index, state.output)
            drafted.append(last)
        return torch.stack(drafted, dim=1) if drafted else last.new_empty(len(last), 0)

    def check_steps(self, steps: int) -> None:
        """Raises ValueError where the weights do not allow drafts of so many tokens."""
        limit = self.config.max_steps
        if steps < 0 or (limit is not None and steps > limit):
            why = "" if limit is None else f"; this head has weights for {limit} steps (tie_weights is false)"
            msg = f"a draft of {steps} tokens was asked for{why}"
            raise ValueError(msg)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random weights to start training from: normal, of a deviation that keeps magnitudes; norms at one."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                nn.init.normal_(parameter, std=self._fan(name, parameter) ** -0.5)

    def _fan(self, name: str, parameter: Tensor) -> int:
        return min(parameter.shape)

    def _argmax(self, index: int, output: Tensor) -> Tensor:
        if self.shard.size > 1:
            msg = f"this head holds part {self.shard.rank} of {self.shard.size} of the vocabulary: draft with a Drafter"
            raise ValueError(msg)
        return functional.linear(output, self.head_weight(index)).argmax(-1)


class LstmSpeculator(Speculator):
    """Method "sum_lstm". `proj` keeps the four gates' projections in one, in the order of `layout.GATES`."""

    def __init__(self, config: SpeculatorConfig, shard: VocabShard = WHOLE) -> None:
        super().__init__(config, shard)
        inner, gates = config.state_dim, 4
        self.emb = nn.ModuleList(
            [nn.Embedding(config.vocab_size, inner if config.tie_lstm_embs else gates * inner)]
        )
        self.proj = nn.ModuleList(
            nn.Linear(width, gates * inner, bias=False) for width in (config.input_hidden_dim, inner)
        )
        self.cell_ln = nn.ModuleList([RmsNorm(inner)])
        self.state_ln = nn.ModuleList([RmsNorm(inner)])

    def step(self, index: int, state: State, tokens: Tensor) -> State:
        """The state after step `index`."""
        gates = self.proj[min(index, 1)](state.output)
        return self.update(gates, state.cell, tokens)

    def update(self, gates: Tensor, cell: Tensor | None, tokens: Tensor) -> State:
        """The state from the projections `[..., 4 * state_dim]` of the one before."""
        cell_ln, state_ln = self.cell_ln[0], self.state_ln[0]
        norms = (cell_ln.weight, cell_ln.bias, state_ln.weight, state_ln.bias)
        scale = self.config.emb_scale
        return State(*lstm_cell(gates, tokens, self.emb[0].weight, scale, cell, norms, NORM_EPS))

    def _fan(self, name: str, parameter: Tensor) -> int:
        # As if the gates were apart, which is how Snowflake's code draws them.
        inner = self.config.state_dim
        return min(inner, *parameter.shape)


class RnnSpeculator(Speculator):
    """Method "sum_rnn", and the MLP, whose checkpoints have one layer where "sum_rnn" has a list of them."""

    def __init__(self, config: SpeculatorConfig, shard: VocabShard = WHOLE) -> None:
        super().__init__(config, shard)
        steps = range(config.n_predict)
        shared = steps[:1] if config.tie_weights else steps
        projections = steps[:2] if config.tie_weights else steps
        self.emb = nn.ModuleList(self._embedding() for _ in shared)
        self.proj = nn.ModuleList(
            self._projection(config.input_hidden_dim if index == 0 else config.state_dim)
            for index in projections
        )
        self.ln = nn.ModuleList(self._norm() for _ in shared)

    def step(self, index: int, state: State, tokens: Tensor) -> State:
        """The state after step `index`."""
        emb, proj, ln = (group[min(index, len(group) - 1)] for group in (self.emb, self.proj, self.ln))
        summed = torch.add(proj(state.output), emb(tokens), alpha=self.config.emb_scale)
        return State(functional.gelu(ln(summed)))

    def _embedding(self) -> nn.Module:
        widths = self.config.emb_dim
        return self._stack(nn.Embedding(self.config.vocab_size, widths[0]), _further(widths))

    def _projection(self, width: int) -> nn.Module:
        widths = self.config.proj_dim
        return self._stack(nn.Linear(width, widths[0], bias=False), _further(widths))

    def _norm(self) -> nn.Module:
        widths, further = self.config.inner_dim, []
        for before, width in pairwise(widths):
            further += [nn.GELU(), nn.Linear(before, width, bias=False), RmsNorm(width)]
        return self._stack(RmsNorm(widths[0]), further)

    def _stack(self, first: nn.Module, further: list[nn.Module]) -> nn.Module:
        return first if self.config.kind == "mlp" else nn.Sequential(first, *further)


def _further(widths: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [RmsNorm(before), nn.GELU(), nn.Linear(before, width, bias=False)]
    return layers


def build(config: SpeculatorConfig, shard: VocabShard = WHOLE) -> Speculator:
    """A head of this config, its weights as torch makes them; see `Speculator.reset_parameters` and `load`."""
    return (LstmSpeculator if config.kind == "lstm" else RnnSpeculator)(config, shard)
