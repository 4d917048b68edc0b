"""Which loads of weights must be whole, on a model that has none."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from swiftkv.layout import Layout
from swiftkv.models.causal import SwiftKVCausal

SOME = [("model.layers.0.mlp.down_proj.weight", torch.zeros(4)), ("model.norm_swiftkv.weight", torch.ones(4))]


class Stock(nn.Module):
    """SGLang's part: takes note of what it is given."""

    def load_weights(self, weights):
        self.given = [name for name, _ in weights]


class Model(SwiftKVCausal, Stock):
    def __init__(self):
        nn.Module.__init__(self)
        self.queries = []
        weight = SimpleNamespace(
            weight_loader=lambda _, tensor: self.queries.append(tensor), dtype=torch.bfloat16
        )
        query = SimpleNamespace(bias=None, weight=weight)
        attention = SimpleNamespace(q_proj_swiftkv=query, q_norm_swiftkv=None)
        self.model = SimpleNamespace(
            layout=Layout(4, 2, 1), layers=[SimpleNamespace(self_attn=attention)] * 4,
            keys_values=SimpleNamespace(load=lambda *loaded: None),
            norm_swiftkv=SimpleNamespace(weight=torch.zeros(4)),
        )  # fmt: skip


def test_a_checkpoint_must_be_whole():
    with pytest.raises(ValueError, match="lacks 6 of the 7 tensors that SwiftKV adds"):
        Model().load_weights(SOME)


def test_updates_may_be_partial():
    whole = [
        (f"model.layers.{i}.self_attn.{kind}_proj_swiftkv.weight", torch.ones(4))
        for i in (2, 3)
        for kind in "qkv"
    ]
    model = Model()
    model.load_weights([*whole, SOME[1]])
    model.load_weights(SOME)
    assert model.given == [SOME[0][0]]
    assert model.model.norm_swiftkv.weight.tolist() == [1] * 4
    # a float32 checkpoint in bf16: SGLang's loader of fp8 weights casts nothing itself
    assert {tensor.dtype for tensor in model.queries} == {torch.bfloat16}


def test_weights_that_were_made_up_are_replaced_piece_by_piece():
    """`--load-format dummy` and others never call `load_weights`; SGLang's loaders then call this."""
    model = Model()
    model.post_load_weights()
    model.load_weights(SOME)
    assert model.model.norm_swiftkv.weight.tolist() == [1] * 4
