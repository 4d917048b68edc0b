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

    def inner(ids, positions, batch, input_embeds=None):
        seen.append(None if shift.tokens is None else shift.tokens.count)
        if batch == "fails":
            raise RuntimeError
        return ids

    def outer(ids, positions, batch, input_embeds=None):
        # A graph of the layers may have more tokens than the step whose logits it is used for.
        return made.model.forward([*ids, 0], positions, batch, input_embeds)

    made = SimpleNamespace(forward=outer, model=SimpleNamespace(forward=inner))
    model._switch_steps(made, shift)
    made.forward([1] * 9, None, None)
    made.forward([1] * 4, None, None)  # of five tokens, the inner one would not be tensor parallel by itself
    with pytest.raises(RuntimeError):
        made.forward([1] * 9, None, "fails")
    assert shift.tokens is None
    # Embeddings that a request brings are rows of all tokens: nobody has shared them out.
    made.forward([1] * 9, None, None, [[0.0]] * 9)
    made.forward([1] * 9, None, None, input_embeds=[[0.0]] * 9)
    made.model.forward([1] * 5, None, None)  # alone, as it is captured
    made.model.forward([1] * 4, None, None)
    assert seen == [9, None, 9, None, None, 5, None]
    assert shift.ran == (Mode.TENSOR, 4)


def test_a_step_is_noted_once(shift):
    for _ in range(2):
        with shift.step(9):
            pass
    shift.note()
    shift.note()
    assert shift.steps == {Mode.TENSOR: 0, Mode.SEQUENCE: 1}
    assert shift.ran is None


def batch(*, graph):
    return SimpleNamespace(forward_mode=SimpleNamespace(is_cuda_graph=lambda: graph))


def test_steps_are_counted_by_what_ran_or_by_the_graph(shift):
    runner = SimpleNamespace(
        shift=shift, decode_cuda_graph_runner=SimpleNamespace(bs=3, captured_req_width=2)
    )
    eager, replayed = SimpleNamespace(can_run_graph=False), SimpleNamespace(can_run_graph=True)
    with shift.step(4):  # a capture: nobody's request
        pass
    assert model.after_forward(replayed, runner, batch(graph=True)) is replayed
    assert shift.told()["tokens"] == {"tp": 0, "sp": 6}
    for count in (4, 2, 9):
        with shift.step(count):
            pass
        model.after_forward(eager, runner, batch(graph=count == 2))
    with shift.step(7):
        pass
    model.after_forward(
        replayed, runner, batch(graph=False)
    )  # a graph of the layers alone, in a step that ran
    model.after_forward(eager, runner, batch(graph=False))  # nothing ran: no tokens
    assert shift.told() == {
        "threshold": 4, "sequence_groups": [[0, 1]], "steps": {"tp": 2, "sp": 3}, "tokens": {"tp": 6, "sp": 22},
        "switches": 2, "timings": [],
    }  # fmt: skip
    assert shift.last is Mode.SEQUENCE


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
