"""The draft head on this rank: its part of the checkpoint, its graphs, its drafts."""

from pathlib import Path
from typing import Any

import torch

from arctic_sglang.compat import vendor
from speculative.settings import SpeculationSettings
from speculative.speculators import VocabShard, load
from speculative.speculators.drafter import Drafter, gather_over

# Larger batches are drafted without a graph; the policy has long stopped drafting for them.
LARGEST_GRAPH = 64
MEASURED_ROWS = 8


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

        Args:
            settings: which head.
            args: SGLang's arguments.
            runner: of the model.

        Raises:
            ValueError: the checkpoint cannot be read, or does not fit the model.
        """
        group = vendor.get_tp_group()
        parts = group.world_size
        shard = VocabShard(group.rank_in_group, parts) if parts > 1 else None
        folder = _folder(settings.head_path, args.speculative_draft_model_revision)
        speculator = load(folder, dtype=runner.dtype, device=runner.device, shard=shard)
        _check(speculator.config, runner.model_config, settings)
        drafter = Drafter(
            speculator,
            max_batch=min(args.max_running_requests or LARGEST_GRAPH, LARGEST_GRAPH),
            gather=gather_over(group.device_group) if parts > 1 else None,
        )
        return cls(drafter, settings.head_tokens or speculator.config.n_predict)

    def prepare(self, rows: int) -> float:
        """Captures the head's graphs.

        Args:
            rows: of the largest step.

        Returns:
            Seconds of a small batch's draft; 0 on a CPU, where the time is the model's own.
        """
        self._drafter.capture(steps=self.tokens)
        times = (
            self._drafter.measure(min(rows, MEASURED_ROWS), self.tokens) if torch.cuda.is_available() else {}
        )
        return min(times.values()) / 1e3 if times else 0.0

    def draft(self, relay: Any) -> torch.Tensor:
        """Drafts for every request: int64 [requests, tokens].

        Args:
            relay: the last tokens and their hidden states.
        """
        return self._drafter.draft(relay.states(), relay.bonus_tokens, self.tokens)


def _check(config: Any, model: Any, settings: SpeculationSettings) -> None:
    pairs = (
        ("hidden size", config.input_hidden_dim, model.hidden_size),
        ("vocabulary", config.vocab_size, model.vocab_size),
    )
    for name, ours, theirs in pairs:
        if ours != theirs:
            msg = (
                f"--speculative-draft-model-path {settings.head_path}: the head's {name} is {ours}, the model's is "
                f"{theirs}; the head was trained for another model"
            )
            raise ValueError(msg)
    tokens = settings.head_tokens or config.n_predict
    most = settings.width - 1
    if not config.tie_weights:
        most = min(most, config.n_predict)
    if not 1 <= tokens <= most:
        msg = (
            f"--speculative-num-steps is {tokens}: this head drafts from 1 to {most} tokens (its own n_predict where "
            "its steps share no weights, and one less than --speculative-num-draft-tokens)"
        )
        raise ValueError(msg)


def _folder(path: str | None, revision: str | None) -> Path:
    """The checkpoint's folder, fetched from the hub if it is not one here."""
    folder = Path(str(path))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        msg = (
            f"--speculative-draft-model-path {path}: there is no such folder, and it cannot be fetched from the hub "
            f"({type(error).__name__}: {error})"
        )
        raise ValueError(msg) from error
