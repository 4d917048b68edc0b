"""The pooler that does what a checkpoint says, in place of the one that a model file fixed.

Token vectors of all texts of a batch lie packed in one tensor, text after text.
"""

import logging
from typing import Any

import torch

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.checkpoint import Mode, PoolingSpec

logger = logging.getLogger(__name__)


def pool(mode: Mode, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One vector per text.

    Sums are taken in float32 per text, so a text's vector does not depend on its neighbours in the batch
    (a running sum over the batch, differenced, does).

    Args:
        mode: first token, mean, or last token.
        hidden: `[tokens, width]`, any float dtype, texts packed one after another.
        lengths: `[texts]`, integer: tokens of each text, none of them 0; their sum is `tokens`.

    Returns:
        `[texts, width]`, float32.
    """
    ends = torch.cumsum(lengths, dim=0)
    if mode == "last":
        return hidden[ends - 1].float()
    if mode == "cls":
        return hidden[ends - lengths].float()
    text_of_token = torch.repeat_interleave(
        torch.arange(len(lengths), device=hidden.device), lengths, output_size=hidden.shape[0]
    )
    sums = torch.zeros(len(lengths), hidden.shape[1], dtype=torch.float32, device=hidden.device)
    sums.index_add_(0, text_of_token, hidden.float())
    return sums / lengths.unsqueeze(1)


def pool_slow(mode: Mode, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The specification of `pool`, one text at a time."""
    texts = torch.split(hidden.float(), lengths.tolist())
    pick = {"cls": lambda t: t[0], "last": lambda t: t[-1], "mean": lambda t: t.mean(dim=0)}[mode]
    return torch.stack([pick(text) for text in texts])


class CheckpointPooler(vendor.Pooler):
    """SGLang's pooler interface over `pool`: pools, cuts to Matryoshka `dimensions`, normalises."""

    def __init__(self, spec: PoolingSpec) -> None:
        kinds = vendor.PoolingType
        super().__init__({"cls": kinds.CLS, "mean": kinds.MEAN, "last": kinds.LAST}[spec.mode], spec.normalize)
        self.spec = spec

    def forward(self, hidden_states: torch.Tensor, forward_batch: Any) -> Any:
        """Pools `hidden_states` `[tokens, width]` into float32 vectors, a list if their widths differ."""
        lengths = forward_batch.extend_seq_lens
        hidden_states = hidden_states[: sum(forward_batch.extend_seq_lens_cpu)]  # without padding rows
        vectors = pool(self.spec.mode, hidden_states, lengths)
        widths = forward_batch.dimensions
        if widths is None:
            return vendor.EmbeddingPoolerOutput(embeddings=self._scaled(vectors))
        rows = [self._scaled(row[:width]) for row, width in zip(vectors, widths, strict=True)]
        same = len(set(widths)) == 1
        return vendor.EmbeddingPoolerOutput(embeddings=torch.stack(rows) if same else rows)

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors, p=2, dim=-1) if self.spec.normalize else vectors


def after_load_model(_result: None, runner: Any) -> None:
    """Puts the pooler that was asked for into the model that was just loaded.

    Raises:
        ValueError: the model has no pooler to replace.
    """
    spec: PoolingSpec = runner.server_args._arctic.pooling
    if not isinstance(getattr(runner.model, "pooler", None), vendor.Pooler):
        msg = (
            f"{type(runner.model).__name__} has no pooler that arctic-sglang could replace with {spec.mode} pooling; "
            "start with --embedding-pooling stock to keep what the model does"
        )
        raise ValueError(msg)
    runner.model.pooler = CheckpointPooler(spec)
    logger.info("arctic-sglang: %s pooling%s", spec.mode, ", normalised" if spec.normalize else "")
