"""What is put around a model of SGLang's, with stand-ins for it."""

from types import SimpleNamespace
from unittest.mock import ANY

import pytest
import torch

from arctic_sglang.compat import vendor
from arctic_sglang.shift import model
from arctic_sglang.shift.formats import PLAIN, Axes, Format
from arctic_sglang.shift.layers import Shift
from arctic_sglang.shift.policy import Mode, Policy
from arctic_sglang.shift.topology import Topology


@pytest.fixture
def shift():
    return Shift(Topology(1, 2), 0, Policy(4), exchange=None)


def test_a_step_has_its_mode_while_it_runs_and_none_after_a_failure(shift):
    seen = []

    def forward(ids, positions, batch, input_embeds=None):
        seen.append(None if shift.tokens is None else shift.tokens.count)
        if batch == "fails":
            raise RuntimeError
        return ids

    outer = SimpleNamespace(forward=forward)
    model._switch_steps(outer, shift)
    assert outer.forward([1] * 9, None, None) == [1] * 9
    outer.forward([1] * 4, None, None)
    with pytest.raises(RuntimeError):
        outer.forward([1] * 9, None, "fails")
    assert shift.tokens is None
    # Embeddings that a request brings are rows of all tokens: nobody has shared them out.
    outer.forward([1] * 9, None, None, [[0.0]] * 9)
    outer.forward([1] * 9, None, None, input_embeds=[[0.0]] * 9)
    assert seen == [9, None, 9, None, None]
    assert shift.told() == {
        "threshold": 4, "sequence_groups": [[0, 1]], "steps": {"tp": 3, "sp": 2}, "tokens": {"tp": 22, "sp": 18},
        "switches": 3,
    }  # fmt: skip
    assert shift.last is Mode.TENSOR


def test_tensors_are_not_copied_to_parameters_by_name():
    asked = []

    def original(updater, named, load_format):
        asked.append((updater, named, load_format))
        return True, ""

    updater = updater_of([PLAIN])
    assert model.around_update_from_tensor(original, updater, ["w"]) == (True, "")
    assert asked == [(updater, ["w"], None)]
    loaded, why = model.around_update_from_tensor(original, updater, ["w"], "direct")
    assert not loaded
    assert "leave it out" in why
    assert len(asked) == 1


def updater_of(forms):
    """SGLang's, of a model with layers of these formats."""
    runner = SimpleNamespace(switched=[SimpleNamespace(form=form) for form in forms])
    return SimpleNamespace(get_model_runner=lambda: runner)


QUANTISED = Format({}, product=None, quantized=True)


def test_quantised_weights_are_not_loaded_again():
    asked, outer = [], SimpleNamespace(load_weights=lambda weights: asked.append(weights))
    model._keep_loadable(outer, updater_of([PLAIN, QUANTISED]).get_model_runner().switched)
    for update in (model.around_update, model.around_update_from_tensor):
        loaded, why = update(lambda *_: asked.append("update"), updater_of([PLAIN, QUANTISED]), "path")
        assert not loaded
        assert "start the server with the new ones" in why
    with pytest.raises(ValueError, match="start the server with the new ones"):
        outer.load_weights([])
    assert asked == []
    assert model.around_update(lambda *given, **more: (given, more), updater_of([PLAIN]), "p", load_format="x") == (
        (ANY, "p"), {"load_format": "x"},
    )  # fmt: skip


def layer_of(kind, scheme=None, **method):
    """A linear layer of SGLang's, of which nothing was run."""
    made = object.__new__(kind)
    vars(made).update(method)
    weight = torch.zeros(6, 4).to(torch.float8_e4m3fn).t()
    return SimpleNamespace(
        quant_method=made,
        scheme=scheme,
        weight=weight,
        weight_scale=torch.ones(6, 1),
        params_dtype=torch.bfloat16,
    )


class Unknown:
    pass


def scheme_of(kind, block):
    made = object.__new__(kind)
    made.weight_block_size = block
    return made


def test_the_format_is_that_of_sglangs_method():
    assert model.format_of(layer_of(vendor.UnquantizedLinearMethod)) is PLAIN
    known = (
        layer_of(vendor.Fp8LinearMethod, use_marlin=False, block_quant=False),
        layer_of(vendor.CompressedTensorsLinearMethod, scheme_of(vendor.CompressedTensorsW8A8Fp8, None)),
    )
    for layer in known:
        form = model.format_of(layer)
        assert form.quantized
        assert form.dtype is torch.bfloat16
        assert form.product == layer.quant_method.apply
        assert form.axes == {"weight": Axes(1, 0), "bias": Axes(0), "weight_scale": Axes(rows=0)}


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: layer_of(vendor.Fp8LinearMethod, use_marlin=True, block_quant=False), "Fp8LinearMethod"),
        (lambda: layer_of(vendor.Fp8LinearMethod, use_marlin=False, block_quant=True), "Fp8LinearMethod"),
        (
            lambda: layer_of(
                vendor.CompressedTensorsLinearMethod, scheme_of(vendor.CompressedTensorsW8A8Fp8, [128, 128])
            ),
            "CompressedTensorsW8A8Fp8",
        ),
        (lambda: layer_of(vendor.CompressedTensorsLinearMethod, scheme_of(Unknown, None)), "Unknown"),
        (lambda: layer_of(type("AWQLinearMethod", (), {})), "AWQLinearMethod"),
    ],
)
def test_other_formats_are_refused_by_name(layer, name):
    with pytest.raises(
        ValueError, match=f"{name} has prepared the weights of a SimpleNamespace.*may be plain, or in fp8"
    ):
        model.format_of(layer())


def test_the_log_tells_what_was_copied(shift):
    def one(copied):
        weight = torch.zeros(2**19, dtype=torch.uint8)
        return SimpleNamespace(whole={"weight": weight}, copied=weight[: 2**18] if copied else None)

    assert "GiB more" not in model._told(shift, [one(False)])
    told = model._told(shift, [one(False)] * 40 + [one(True)] * 40)
    assert "0.04 GiB a rank, where two would be 0.06" in told
    assert "0.01 GiB more for the parts of 40 of 80 layers" in told
