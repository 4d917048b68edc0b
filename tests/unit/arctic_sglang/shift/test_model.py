"""What is put around a model of SGLang's, with stand-ins for it."""

from types import SimpleNamespace

import pytest

from arctic_sglang.shift import model
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

    assert model.around_update_from_tensor(original, "updater", ["w"]) == (True, "")
    assert asked == [("updater", ["w"], None)]
    loaded, why = model.around_update_from_tensor(original, "updater", ["w"], "direct")
    assert not loaded
    assert "leave it out" in why
    assert len(asked) == 1
