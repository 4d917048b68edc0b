"""Weights loaded again into switched layers: a layer at a time, in any order, and what is left where it fails."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import linear

from arctic_sglang.shift import layers, weights
from arctic_sglang.shift.loading import one_by_one
from arctic_sglang.shift.policy import Policy
from arctic_sglang.shift.topology import Heads, Topology

HEADS = Heads(Topology(1, 2), 4, 2)
ORDER = weights.qkv_order(HEADS, 0, 2)
WIDTH = 8


class Parameter(torch.nn.Parameter):
    """One that shows its loader and keeps it elsewhere, as some of SGLang's do."""

    @property
    def weight_loader(self):
        return self._weight_loader


def layer(kept_as):
    one = SimpleNamespace(bias=None, tp_rank=0, tp_size=1)
    kind = Parameter if kept_as == "_weight_loader" else torch.nn.Parameter
    one.weight = kind(torch.randn(len(ORDER), WIDTH), requires_grad=False)

    def load(parameter, rows, first):
        assert parameter is one.weight
        assert one.tp_size == 1
        parameter.data.narrow(0, first, len(rows)).copy_(rows)

    setattr(one.weight, kept_as, load)
    one.forward = lambda x: (linear(x, one.weight.data), None)
    return one


@pytest.fixture
def switched():
    shift = layers.Shift(Topology(1, 2), 0, Policy(None), exchange=None)
    kinds = ("weight_loader", "_weight_loader", "weight_loader")
    return [layers.SwitchedQkv(layer(kept_as), shift, ORDER) for kept_as in kinds]


def in_turns(switched, new):
    """Both halves of every layer's weight, the second halves when all first ones are there."""
    for first in (0, len(ORDER) // 2):
        for one, weight in zip(switched, new, strict=True):
            parameter = one.layer.weight
            parameter.weight_loader(parameter, weight[first : first + len(ORDER) // 2], first)
            others = [other for other in switched if other is not one]
            assert all(
                other.layer.tp_size == 2 for other in others
            )  # whole copies of these would be in the way


def test_weights_come_as_the_first_ones_did(switched):
    new = [torch.randn(len(ORDER), WIDTH) for _ in switched]
    kept = [one.whole["weight"].data_ptr() for one in switched]
    loaders = [one.layer.weight.weight_loader for one in switched]
    with one_by_one(switched):
        in_turns(switched, new)
    for one, weight, where, loader in zip(switched, new, kept, loaders, strict=True):
        assert torch.equal(one.whole["weight"], weights.in_order(weight, ORDER, 0))
        assert one.whole["weight"].data_ptr() == where  # captured graphs know where it is
        assert one.layer.tp_size == 2
        assert one.layer.weight.weight_loader is loader
        with pytest.raises(AssertionError):
            loader(one.layer.weight, weight, 0)


def test_layers_that_get_nothing_stay_as_they_are(switched):
    before = [one.whole["weight"].clone() for one in switched]
    with one_by_one(switched):
        parameter = switched[1].layer.weight
        parameter.weight_loader(parameter, torch.zeros(2, WIDTH), 0)
    assert torch.equal(switched[0].whole["weight"], before[0])
    assert torch.equal(switched[2].whole["weight"], before[2])
    changed = (switched[1].whole["weight"] != before[1]).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(ORDER.tolist().index(row) for row in (0, 1))


def test_a_failure_leaves_every_layer_shared_out(switched, monkeypatch):
    x, real, calls = torch.randn(3, WIDTH), weights.in_order, []
    before = [one.layer.forward(x)[0] for one in switched]

    def in_order(*args):
        calls.append(args)
        if len(calls) == 3:  # given and taken is one layer's turn
            raise torch.OutOfMemoryError("no memory")
        return real(*args)

    monkeypatch.setattr(weights, "in_order", in_order)
    with pytest.raises(torch.OutOfMemoryError), one_by_one(switched):
        in_turns(switched, [one.whole["weight"][weights.loaded_order(ORDER)] for one in switched])
    assert len(calls) == 3
    for one, was in zip(switched, before, strict=True):
        assert one.layer.tp_size == 2
        assert torch.equal(one.layer.forward(x)[0], was)
