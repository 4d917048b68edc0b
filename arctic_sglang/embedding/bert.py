"""BERT and XLM-RoBERTa over packed rows, on SGLang's weights, with fewer passes over memory than its layers make."""

from __future__ import annotations

from typing import Any

import torch

from arctic_sglang.compat import vendor
from arctic_sglang.embedding import kernels
from arctic_sglang.embedding.core import Core
from arctic_sglang.embedding.graphs import Graphs
from arctic_sglang.embedding.step import Step, attend


class BertCore(Core):
    """BertModel, XLMRobertaModel and what derives from them, on one rank.

    Args:
        model: as SGLang loaded it.
        device: where it is.
        dtype: of its activations.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(model, device, dtype)
        body = getattr(model, "roberta", model)
        self.embeddings = body.embeddings
        self.layers = list(body.encoder.layer)
        padding = getattr(self.embeddings, "padding_idx", None)
        if padding is not None:  # RoBERTa counts positions from behind its padding token
            self.first_position, self.pad_id = padding + 1, padding
        self.graphs = Graphs(self.hidden, device) if device.type == "cuda" else None

    @staticmethod
    def serves(model: Any) -> bool:
        """Whether this core can run the model."""
        body = getattr(model, "roberta", model)
        sparse = getattr(model, "_is_sparse", False)
        return isinstance(getattr(body, "encoder", None), vendor.BertEncoder) and not sparse

    def pooled(self, step: Step) -> torch.Tensor:
        """The vectors of a step, `[rows, width]`."""
        hidden = self.hidden(step) if self.graphs is None else self.graphs(step)
        return self.model.pooler(hidden, step).embeddings

    def hidden(self, step: Step) -> torch.Tensor:
        """The last layer's output, `[tokens, width]`."""
        emb = self.embeddings
        hidden = kernels.embed_norm(
            step.ids,
            step.positions,
            emb.word_embeddings.weight,
            emb.position_embeddings.weight,
            emb.token_type_embeddings.weight[0],
            emb.LayerNorm.weight,
            emb.LayerNorm.bias,
            emb.LayerNorm.eps,
        )
        for layer in self.layers:
            hidden = self._layer(layer, hidden, step)
        return hidden

    def _layer(self, layer: Any, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        own = layer.attention.self_attn
        qkv = _product(own.qkv_proj, hidden, with_bias=True)
        shape = (len(hidden), 3, own.num_heads, own.head_dim)
        q, k, v = qkv.view(shape).unbind(1)
        found = attend(q, k, v, step, scale=own.scaling, causal=False, varlen=self.varlen)
        hidden = _closed(layer.attention.output, found.reshape(len(hidden), -1), hidden)
        inner = layer.intermediate
        if isinstance(inner.intermediate_act_fn, torch.nn.GELU):
            wide = kernels.bias_gelu(_product(inner.dense, hidden), inner.dense.bias)
        else:
            wide = inner.intermediate_act_fn(_product(inner.dense, hidden, with_bias=True))
        return _closed(layer.output, wide, hidden)


def _product(linear: Any, x: torch.Tensor, *, with_bias: bool = False) -> torch.Tensor:
    """A linear layer of SGLang's, in whatever format its weights are, with or without its bias."""
    return linear.quant_method.apply(linear, x, linear.bias if with_bias else None)


def _closed(block: Any, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """What closes each half of a layer: projection, residual, LayerNorm."""
    norm = block.LayerNorm
    product = _product(block.dense, x)
    return kernels.add_norm(product, block.dense.bias, residual, norm.weight, norm.bias, norm.eps)
