"""What is put around a model of SGLang's, with stand-ins for it."""

from types import SimpleNamespace
from unittest.mock import ANY

import pytest
import torch

from arctic_sglang.compat import server_args, vendor
from arctic_sglang.shift import model, modules, start
from arctic_sglang.shift.formats import PLAIN, Axes, Format
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
    assert shift.figures.steps == {Mode.TENSOR: 0, Mode.SEQUENCE: 1}
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
        "switches": 2, "exchange_seconds": 0.0, "exchange_seconds_of_a_step": {}, "timings": [],
    }  # fmt: skip
    assert shift.figures.last is Mode.SEQUENCE


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

    assert "copies" not in start.told(shift, [one(False)])
    told = start.told(shift, [one(False)] * 40 + [one(True)] * 40)
    assert "0.04 GiB a rank, and 0.01 GiB for copies of the parts of 40 of 80 layers" in told
    assert "where two would be 0.06" in told


def extend(**change):
    modes = {name: (lambda: False) for name in ("is_target_verify", "is_draft_extend_v2", "is_dllm_extend")}
    fields = {
        "forward_mode": SimpleNamespace(is_extend=lambda: True, **modes), "return_logprob": False,
        "capture_hidden_mode": SimpleNamespace(need_capture=lambda: False), "multi_item_delimiter_indices": None,
        "extend_seq_lens": torch.tensor([3, 1, 5]),
    }  # fmt: skip
    return SimpleNamespace(**fields | change)


def test_of_a_prefill_the_last_tokens_alone_are_read():
    assert model._last_tokens(None, None, None, extend()).tolist() == [2, 3, 8]
    assert model._last_tokens(None, None, None, extend(), None, None).tolist() == [2, 3, 8]


@pytest.mark.parametrize(
    "change",
    [{"return_logprob": True}, {"capture_hidden_mode": SimpleNamespace(need_capture=lambda: True)},
     {"multi_item_delimiter_indices": [1]}, {"forward_mode": SimpleNamespace(is_extend=lambda: False)},
     *({"forward_mode": SimpleNamespace(**vars(extend().forward_mode) | {name: lambda: True})}
       for name in ("is_target_verify", "is_draft_extend_v2", "is_dllm_extend"))],
)  # fmt: skip
def test_elsewhere_all_rows_are_read(change):
    assert model._last_tokens(None, None, None, extend(**change)) is None


def test_hidden_states_beside_the_last_ones_are_read():
    assert model._last_tokens(None, None, None, extend(), [torch.zeros(9, 2)]) is None


def test_the_vocabulary_is_that_of_the_checkpoint():
    indices = SimpleNamespace(num_added_elements=0, org_vocab_start_index=8, org_vocab_end_index=11)
    weight = torch.nn.Parameter(torch.arange(10.0).view(5, 2))  # padded
    embedding = SimpleNamespace(shard_indices=indices, weight=weight, org_vocab_size=11)
    found = model._vocabulary_of(embedding)
    assert (found().first, found().total) == (8, 11)
    assert found().rows(torch.tensor([7, 8, 10, 11])).tolist() == [[0, 0], [0, 1], [4, 5], [0, 0]]
    weight.data = weight.data + 1  # loaded again
    assert found().rows(torch.tensor([8])).tolist() == [[1, 2]]
    indices.num_added_elements = 1
    with pytest.raises(ValueError, match="a vocabulary with added tokens is not supported"):
        model._vocabulary_of(embedding)


@pytest.mark.parametrize(
    ("chunk", "most", "found"), [(8192, 16384, (32768, 32768)), (2048, 16384, (8192, 16384))]
)
def test_a_prefill_has_as_many_tokens_for_each_rank_as_for_one(chunk, most, found):
    args = SimpleNamespace(chunked_prefill_size=chunk, max_prefill_tokens=most)
    args.override = lambda _source, **fields: vars(args).update(fields)
    server_args._scale_prefill(args, 4)
    assert (args.chunked_prefill_size, args.max_prefill_tokens) == found


def test_a_prefill_that_is_not_chunked_stays_so():
    args = SimpleNamespace(chunked_prefill_size=-1, max_prefill_tokens=16384)
    server_args._scale_prefill(args, 4)
    assert args.chunked_prefill_size == -1


def test_the_rest_of_a_step_has_a_mode_of_its_own(shift):
    with shift.step(9):
        with shift.rest(3, None):
            assert shift.tokens is None
        with shift.rest(5, None):
            assert shift.tokens.count == 5
        with shift.rest(5, Mode.TENSOR):
            assert shift.tokens is None
        assert shift.tokens.count == 9
    assert shift.ran == (Mode.SEQUENCE, 9)


@pytest.mark.parametrize(("rank", "own"), [(0, [0, 1, 2]), (1, [3, 4, None])])
def test_own_rows_are_those_of_a_place_with_padding(rank, own):
    one, rows = Shift(Topology(1, 2), rank, Policy(4), exchange=None), torch.arange(1.0, 11).view(5, 2)
    assert one.own(rows) is rows
    with one.step(5):
        found = one.own(rows)
    assert found.tolist() == [[0, 0] if row is None else rows[row].tolist() for row in own]


def test_every_rank_has_all_rows_from_the_cut_on(shift):
    rows = torch.arange(10.0).view(5, 2)
    whole = torch.cat((rows, torch.full((1, 2), torch.nan)))  # padding
    seen = []
    shift.exchange = SimpleNamespace(gather=lambda own: (seen.append(own), whole)[1])

    def norm(state, residual=None):
        return state * 2 if residual is None else ((state + residual) * 2, state + residual)

    body = SimpleNamespace(at_cut=norm, norm_swiftkv=norm)
    modules.switch_cut(body, shift)
    assert all(
        part.equal(wanted) for part, wanted in zip(body.at_cut(rows, rows), (rows * 4, rows * 2), strict=True)
    )
    assert not seen
    with shift.step(5):
        states, state = body.at_cut(rows[:3], rows[:3])
        assert states.equal(rows * 2)
        assert state.equal(rows)
        assert body.own(state).equal(rows[:3])
    assert seen[0].equal(rows[:3] * 2)


@pytest.mark.parametrize(("rows", "decodes", "mode"), [(9, True, None), (9, False, 9), (4, False, None)])
def test_rows_that_go_up_have_the_mode_of_their_number(shift, rows, decodes, mode):
    seen = []
    made = SimpleNamespace(finish=lambda hidden, tail: seen.append(shift.tokens and shift.tokens.count))
    modules.switch_tail(made, shift)
    with shift.step(20):
        made.finish([0] * rows, SimpleNamespace(decodes=decodes))
        assert shift.tokens.count == 20
    assert seen == [mode]
