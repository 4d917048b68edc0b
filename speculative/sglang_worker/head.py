"""The draft head on this rank: its part of the checkpoint, its graphs, its drafts."""

import logging
import time
from typing import Any

import torch

from arctic_sglang.compat import vendor
from speculative.settings import SpeculationSettings
from speculative.speculators import VocabShard, load

Drafter = object

logger = logging.getLogger(__name__)
MEASURED_ROWS = 8
REPEATS = 5


class Head:
    """Drafts on the device from the last token of each request and the hidden state it came from.

    Args:
        drafter: the head with its buffers and graphs.
        tokens: that it drafts in a step.
    """

    def __init__(self, drafter: Drafter, tokens: int) -> None:
        self._drafter = drafter
        self.tokens = tokens

    @classmethod
    def load(cls, settings: SpeculationSettings, args: Any, runner: Any) -> "Head":
        """Reads the checkpoint; with tensor parallelism each rank keeps its part of the vocabulary.

        Raises:
            ValueError: the checkpoint does not fit the model.
        """
        group = vendor.get_tp_group()
        shard = VocabShard(group.rank_in_group, group.world_size) if group.world_size > 1 else None
        speculator = load(
            settings.head_path, dtype=runner.dtype, device=runner.device, shard=shard, gather=_gather(group)
        )
        config, model = speculator.config, runner.model_config
        for name, ours, theirs in (
            ("hidden size", config.input_hidden_dim, model.hidden_size),
            ("vocabulary", config.vocab_size, model.vocab_size),
        ):
            if ours != theirs:
                msg = (
                    f"--speculative-draft-model-path {settings.head_path}: the head's {name} is {ours}, the model's is "
                    f"{theirs}; the head was trained for another model"
                )
                raise ValueError(msg)
        tokens = settings.head_tokens or config.n_predict
        if not 1 <= tokens < settings.width:
            msg = (
                f"--speculative-num-steps is {tokens}: the head's drafts must be from 1 to {settings.width - 1} tokens "
                "(--speculative-num-draft-tokens less one)"
            )
            raise ValueError(msg)
        return cls(Drafter(speculator, args.max_running_requests or 0), tokens)

    def prepare(self, rows: int) -> float:
        """Captures the head's graphs for batches up to `rows`, and returns the seconds of a small one's draft."""
        self._drafter.capture(rows, self.tokens)
        device = self._drafter.device
        if torch.device(device).type != "cuda":
            return 0.0
        hidden, tokens = self._drafter.example(min(rows, MEASURED_ROWS))
        self._drafter.draft(hidden, tokens, self.tokens)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(REPEATS):
            self._drafter.draft(hidden, tokens, self.tokens)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / REPEATS

    def fill(self, drafted: torch.Tensor, rows: torch.Tensor, relay: Any) -> torch.Tensor:
        """Puts the head's drafts where there are none of the index.

        Args:
            drafted: int64 [requests, width - 1].
            rows: bool [requests], where the head's draft goes.
            relay: the last tokens and their hidden states.

        Returns:
            int64 [requests, width - 1].
        """
        own = self._drafter.draft(relay.hidden_states, relay.bonus_tokens, self.tokens)
        count = min(self.tokens, drafted.shape[1])
        front = torch.where(rows[:, None], own[:, :count], drafted[:, :count])
        return torch.cat([front, drafted[:, count:]], dim=1)


def _gather(group: Any) -> Any:
    return None if group.world_size == 1 else group.all_gather
