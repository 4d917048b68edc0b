"""The pooler that does what a checkpoint says, in place of the one that a model file fixed."""

import logging
from typing import Any

import torch

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.checkpoint import PoolingSpec
from arctic_sglang.embedding.head import EmbeddingHead

logger = logging.getLogger(__name__)


class CheckpointPooler(vendor.Pooler):
    """SGLang's pooler interface over `EmbeddingHead`."""

    def __init__(self, head: EmbeddingHead) -> None:
        super().__init__(vendor.PoolingType[head.spec.mode.upper()], head.spec.normalize)
        self.head = head

    def forward(self, hidden_states: torch.Tensor, forward_batch: Any) -> Any:
        """Makes float32 vectors of `hidden_states` `[tokens, width]`, a list if their widths differ."""
        lengths = forward_batch.extend_seq_lens
        hidden_states = hidden_states[: sum(forward_batch.extend_seq_lens_cpu)]  # without padding rows
        vectors = self.head(hidden_states, lengths)
        # SGLang gives a request that names no dimensions, beside one that does, the model's own width.
        own = hidden_states.shape[1]
        widths = forward_batch.dimensions and [None if n == own else n for n in forward_batch.dimensions]
        if widths is None:
            return vendor.EmbeddingPoolerOutput(embeddings=self.head.finish(vectors))
        if len(set(widths)) == 1:
            return vendor.EmbeddingPoolerOutput(embeddings=self.head.finish(vectors, widths[0]))
        rows = [self.head.finish(row, width) for row, width in zip(vectors, widths, strict=True)]
        return vendor.EmbeddingPoolerOutput(embeddings=rows)


def after_load_model(_result: None, runner: Any) -> None:
    """Puts the pooler that was asked for into the model that was just loaded.

    Raises:
        ValueError: the model has no pooler to replace, or a Dense layer's weights are not what its config says.
    """
    spec: PoolingSpec = runner.server_args._arctic.pooling
    if not isinstance(getattr(runner.model, "pooler", None), vendor.Pooler):
        msg = (
            f"{type(runner.model).__name__} has no pooler to replace with {spec.mode} pooling; start with "
            " --embedding-pooling stock to keep what the model does"
        )
        raise ValueError(msg)
    runner.model.pooler = CheckpointPooler(EmbeddingHead(spec, runner.device))
    dense = "".join(f", {layer.activation} to {layer.out_features}" for layer in spec.dense)
    logger.info("arctic-sglang: %s pooling%s%s", spec.mode, dense, ", normalised" if spec.normalize else "")
