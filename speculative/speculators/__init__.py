"""Draft heads: small networks that draft the next tokens from the target model's last hidden state.

config, layout, shard   a checkpoint's config, its tensors' names, parts of the vocabulary (pure)
modules                 LSTM, RNN and MLP in torch          checkpoint   load and save, Snowflake's format
gates, products         kernels in Triton, and their twins  drafter      drafting for a batch, as one CUDA graph
"""

from speculative.speculators.checkpoint import load, save
from speculative.speculators.config import SpeculatorConfig
from speculative.speculators.modules import Speculator, build
from speculative.speculators.shard import VocabShard

__all__ = ["Speculator", "SpeculatorConfig", "VocabShard", "build", "load", "save"]
