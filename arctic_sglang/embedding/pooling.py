"""The pooler that does what a checkpoint says, in place of the one that a model file fixed."""

import logging
from typing import Any

import torch

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.checkpoint import PoolingSpec
from arctic_sglang.embedding.pool import pool

logger = logging.getLogger(__name__)


class CheckpointPooler(vendor.Pooler):
    """SGLang's pooler interface over `pool`: pools, cuts to Matryoshka `dimensions`, normalises."""

    def __init__(self, spec: PoolingSpec) -> None:
        super().__init__(vendor.PoolingType[spec.mode.upper()], spec.normalize)
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
            f"{type(runner.model).__name__} has no pooler to replace with {spec.mode} pooling; start with "
            " --embedding-pooling stock to keep what the model does"
        )
        raise ValueError(msg)
    runner.model.pooler = CheckpointPooler(spec)
    logger.info("arctic-sglang: %s pooling%s", spec.mode, ", normalised" if spec.normalize else "")
