"""Snowflake's checkpoints: names, shapes and equations as they are written down, not as our own code has them."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from speculative.speculators import SpeculatorConfig, VocabShard, build, load, save
from speculative.speculators.checkpoint import SpeculatorCheckpointError

HIDDEN, WIDTH, VOCAB = 6, 4, 11
COMMON = {
    "base_model_name_or_path": "some/model",
    "model_type": "mlp_speculator",
    "n_candidates": 3,
    "n_predict": 3,
    "top_k_tokens_per_head": [1, 1, 1],
    "torch_dtype": "float32",
    "vocab_size": VOCAB,
    "scale_input": True,
    "tie_weights": True,
}
RECURRENT = {
    **COMMON,
    "architectures": ["ArcticLSTMSpeculatorPreTrainedModel"],
    "input_hidden_dim": HIDDEN,
    "inner_dim": "4",
    "proj_dim": "4",
    "emb_dim": "4",
    "tie_lstm_embs": True,
}
LSTM = {**RECURRENT, "method": "sum_lstm"}
LSTM_SHAPES = {
    "forget_emb.0.weight": (11, 4),
    "forget_proj.0.weight": (4, 6),
    "forget_proj.1.weight": (4, 4),
    "input_proj.0.weight": (4, 6),
    "input_proj.1.weight": (4, 4),
    "output_proj.0.weight": (4, 6),
    "output_proj.1.weight": (4, 4),
    "cell_proj.0.weight": (4, 6),
    "cell_proj.1.weight": (4, 4),
    "cell_ln.0.weight": (4,),
    "cell_ln.0.bias": (4,),
    "state_ln.0.weight": (4,),
    "state_ln.0.bias": (4,),
    "head.0.weight": (11, 4),
    "head.1.weight": (11, 4),
    "head.2.weight": (11, 4),
}
RNN_SHAPES = {
    "emb.0.0.weight": (11, 4),
    "proj.0.0.weight": (4, 6),
    "proj.1.0.weight": (4, 4),
    "ln.0.0.weight": (4,),
    "ln.0.0.bias": (4,),
    "head.0.weight": (11, 4),
    "head.1.weight": (11, 4),
    "head.2.weight": (11, 4),
}
DEEP_RNN = {
    **RECURRENT,
    "n_candidates": 1,
    "n_predict": 1,
    "top_k_tokens_per_head": [1],
    "inner_dim": "4.5",
    "proj_dim": "4.4",
    "emb_dim": "4.4",
    "scale_input": False,
    "tie_weights": False,
}
DEEP_RNN_SHAPES = {
    "emb.0.0.weight": (11, 4),
    "emb.0.1.weight": (4,),
    "emb.0.1.bias": (4,),
    "emb.0.3.weight": (4, 4),
    "proj.0.0.weight": (4, 6),
    "proj.0.1.weight": (4,),
    "proj.0.1.bias": (4,),
    "proj.0.3.weight": (4, 4),
    "ln.0.0.weight": (4,),
    "ln.0.0.bias": (4,),
    "ln.0.2.weight": (5, 4),
    "ln.0.3.weight": (5,),
    "ln.0.3.bias": (5,),
    "head.0.weight": (11, 5),
}
MLP = {
    **COMMON,
    "architectures": "MLPSpeculatorPreTrainedModel",
    "emb_dim": HIDDEN,
    "inner_dim": WIDTH,
    "tie_weights": False,
    "scale_input": False,
}
MLP_SHAPES = {
    name: shape
    for i, hidden in enumerate((6, 4, 4))
    for name, shape in {
        f"emb.{i}.weight": (11, 4),
        f"proj.{i}.weight": (4, hidden),
        f"ln.{i}.weight": (4,),
        f"ln.{i}.bias": (4,),
        f"head.{i}.weight": (11, 4),
    }.items()
}
TIED_MLP = {**MLP, "tie_weights": True}


def tensors_of(shapes, *, tied=True):
    torch.manual_seed(3)
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    if tied:
        for name in made:
            if name.startswith("head."):
                made[name] = made["head.0.weight"]
    return made


def tie_mlp(made):
    for i in (1, 2):
        for name in ("emb.{}.weight", "ln.{}.weight", "ln.{}.bias", "head.{}.weight"):
            made[name.format(i)] = made[name.format(0)]
    made["proj.2.weight"] = made["proj.1.weight"]
    return made


def write(folder, config, tensors, prefix="", *, safetensors=False):
    (folder / "config.json").write_text(json.dumps(config))
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    if safetensors:
        save_file({name: tensor.clone() for name, tensor in named.items()}, folder / "model.safetensors")
    else:
        torch.save(named, folder / "pytorch_model.bin")


def norm(x, weight=1.0, bias=0.0):
    return weight * x / math.sqrt(sum(v * v for v in x.tolist()) / len(x) + 1e-6) + bias


def gelu(x):
    return torch.tensor([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])


def emb_scale(n, width):
    state_weight = 0.5 ** (0.5 / n)
    return math.sqrt((1 - state_weight**2) * width / 2) / state_weight


def lstm_by_hand(t, hidden, tokens):
    """The logits of every step, for one hidden state and the tokens that come after it."""
    s, c, out = norm(hidden) / math.sqrt(2), torch.zeros(WIDTH), []
    for step, token in enumerate(tokens):
        p, z = min(step, 1), emb_scale(3, WIDTH) * t["forget_emb.0.weight"][token]
        f, i, o, g = (t[f"{gate}_proj.{p}.weight"] @ s + z for gate in ("forget", "input", "output", "cell"))
        f, i, o = (1 / (1 + torch.exp(-gate)) for gate in (f, i, o))
        c = c * f + gelu(norm(g, t["cell_ln.0.weight"], t["cell_ln.0.bias"])) * i
        s = gelu(norm(c, t["state_ln.0.weight"], t["state_ln.0.bias"])) * o
        out.append(t["head.0.weight"] @ s)
    return torch.stack(out)


def rnn_by_hand(t, hidden, tokens, infix, scaled):
    s, out = norm(hidden) / math.sqrt(2) if scaled else hidden, []
    for step, token in enumerate(tokens):

        def of(name, step=step):
            kept = f"{name}.{step}{infix}"
            return t.get(f"{kept}.weight", t.get(f"{name}.{min(step, 1)}{infix}.weight"))

        i = step if f"ln.{step}{infix}.weight" in t else 0
        summed = of("proj") @ s + emb_scale(3, WIDTH) * t[f"emb.{i}{infix}.weight"][token]
        s = gelu(norm(summed, t[f"ln.{i}{infix}.weight"], t[f"ln.{i}{infix}.bias"]))
        out.append(t[f"head.{step}.weight"] @ s)
    return torch.stack(out)


def logits_of(speculator, hidden, tokens):
    return torch.stack(speculator.logits(hidden[None, None], tokens[None]))[:, 0, 0]


@pytest.mark.parametrize("prefix", ["", "speculator."])
@pytest.mark.parametrize("safetensors", [False, True])
def test_an_lstm_checkpoint_and_its_equations(tmp_path, prefix, safetensors):
    tensors = tensors_of(LSTM_SHAPES)
    write(tmp_path, LSTM, tensors, prefix, safetensors=safetensors)
    speculator = load(tmp_path)
    hidden, tokens = torch.randn(HIDDEN), torch.tensor([7, 0, 10])
    expected = lstm_by_hand(tensors, hidden, tokens.tolist())
    torch.testing.assert_close(logits_of(speculator, hidden, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "shapes", "infix"), [(RECURRENT, RNN_SHAPES, ".0"), (MLP, MLP_SHAPES, ""), (TIED_MLP, MLP_SHAPES, "")]
)  # fmt: skip
def test_rnn_and_mlp_checkpoints_and_their_equations(tmp_path, config, shapes, infix):
    tensors = tensors_of(shapes, tied=config["tie_weights"])
    tensors = tie_mlp(tensors) if config is TIED_MLP else tensors
    write(tmp_path, config, tensors)
    hidden, tokens = torch.randn(HIDDEN), torch.tensor([7, 0, 10])
    expected = rnn_by_hand(tensors, hidden, tokens.tolist(), infix, config["scale_input"])
    torch.testing.assert_close(logits_of(load(tmp_path), hidden, tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_with_several_widths(tmp_path):
    t = tensors_of(DEEP_RNN_SHAPES)
    write(tmp_path, DEEP_RNN, t)
    hidden = torch.randn(HIDDEN)
    z = t["emb.0.3.weight"] @ gelu(norm(t["emb.0.0.weight"][9], t["emb.0.1.weight"], t["emb.0.1.bias"]))
    s = t["proj.0.3.weight"] @ gelu(
        norm(t["proj.0.0.weight"] @ hidden, t["proj.0.1.weight"], t["proj.0.1.bias"])
    )
    s = norm(s + emb_scale(1, WIDTH) * z, t["ln.0.0.weight"], t["ln.0.0.bias"])
    s = gelu(norm(t["ln.0.2.weight"] @ gelu(s), t["ln.0.3.weight"], t["ln.0.3.bias"]))
    found = logits_of(load(tmp_path), hidden, torch.tensor([9]))
    torch.testing.assert_close(found, (t["head.0.weight"] @ s)[None], rtol=1e-5, atol=1e-5)


def test_lstm_embeddings_of_their_own(tmp_path):
    tensors = tensors_of(
        {**LSTM_SHAPES, **{f"{g}_emb.0.weight": (11, 4) for g in ("input", "cell", "output")}}
    )
    write(tmp_path, {**LSTM, "tie_lstm_embs": False}, tensors)
    emb = load(tmp_path).emb[0].weight
    names = [f"{gate}_emb.0.weight" for gate in ("forget", "input", "output", "cell")]
    assert torch.equal(emb, torch.cat([tensors[name] for name in names], dim=1))


def test_a_shared_tensor_may_have_all_its_names_or_one(tmp_path):
    tensors = tensors_of(LSTM_SHAPES)
    del tensors["head.1.weight"], tensors["head.2.weight"]
    write(tmp_path, LSTM, tensors)
    assert torch.equal(load(tmp_path).head_weight(2), tensors["head.0.weight"])
    more = {
        f"{gate}_emb.0.weight": tensors["forget_emb.0.weight"].clone() for gate in ("input", "cell", "output")
    }
    write(tmp_path, LSTM, {**tensors, **more})
    assert torch.equal(load(tmp_path).emb[0].weight, tensors["forget_emb.0.weight"])


def test_shared_tensors_that_differ(tmp_path):
    write(tmp_path, LSTM, tensors_of(LSTM_SHAPES, tied=False))
    with pytest.raises(SpeculatorCheckpointError, match=r"head\.0\.weight and head\.1\.weight differ"):
        load(tmp_path)


def test_all_faults_at_once(tmp_path):
    tensors = tensors_of(LSTM_SHAPES)
    del tensors["cell_ln.0.bias"], tensors["forget_proj.1.weight"]
    tensors["input_proj.0.weight"] = torch.zeros(4, 7)
    tensors["lm_head.weight"] = torch.zeros(1)
    write(tmp_path, LSTM, tensors)
    with pytest.raises(SpeculatorCheckpointError) as caught:
        load(tmp_path)
    said = str(caught.value)
    for part in (
        "missing: ",
        "cell_ln.0.bias",
        "forget_proj.1.weight",
        "not known: lm_head.weight",
        "input_proj.0.weight is [4, 7] and should be [4, 6]",
    ):
        assert part in said
    assert "head.1" not in said


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LSTM))
    with pytest.raises(SpeculatorCheckpointError, match=r"has no weights: neither pytorch_model\.bin"):
        load(tmp_path)


def test_weights_that_are_code_are_not_run(tmp_path):
    write(tmp_path, LSTM, {"head.0.weight": print})
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load(tmp_path)


@pytest.mark.parametrize("safetensors", [False, True])
@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (LSTM, LSTM_SHAPES), (RECURRENT, RNN_SHAPES), (DEEP_RNN, DEEP_RNN_SHAPES), (MLP, MLP_SHAPES),
        (TIED_MLP, MLP_SHAPES),
    ],
)  # fmt: skip
def test_what_is_saved(tmp_path, config, shapes, safetensors):
    speculator = build(SpeculatorConfig.parse(config))
    speculator.reset_parameters()
    save(speculator, tmp_path, torch.bfloat16, safetensors=safetensors)
    written = json.loads((tmp_path / "config.json").read_text())
    architecture = written.pop("architectures")[0]
    assert architecture in config["architectures"]
    for key, value in {**config, "torch_dtype": "bfloat16"}.items():
        assert key == "architectures" or written[key] == value, key
    if safetensors:
        found = load_file(tmp_path / "model.safetensors")
        assert {name: shapes[name] for name in found} == {name: tuple(t.shape) for name, t in found.items()}
    else:
        found = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    again = load(tmp_path)
    for name, parameter in speculator.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.bfloat16())


def test_a_shared_tensor_is_in_the_file_once(tmp_path):
    speculator = build(SpeculatorConfig.lstm(8, 8, 4096))
    save(speculator, tmp_path)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 1.2 * 4 * sum(
        p.numel() for p in speculator.parameters()
    )


def test_a_shard_of_the_head(tmp_path):
    tensors = tensors_of(LSTM_SHAPES)
    write(tmp_path, LSTM, tensors)
    rows = [load(tmp_path, shard=VocabShard(rank, 3)).head_weight(0) for rank in range(3)]
    assert [len(part) for part in rows] == [3, 4, 4]
    assert torch.equal(torch.cat(rows), tensors["head.0.weight"])
    shard = load(tmp_path, shard=VocabShard(1, 3))
    with pytest.raises(ValueError, match="part 1 of 3 of a draft head cannot be saved"):
        save(shard, tmp_path)
    with pytest.raises(ValueError, match="draft with a Drafter"):
        shard.draft(torch.randn(1, HIDDEN), torch.tensor([1]))
    assert torch.equal(load(tmp_path, torch.float16).head_weight(0), tensors["head.0.weight"].half())
