"""Configs of draft heads, as Snowflake's recipes and IBM's write them."""

import json

import pytest

from speculative.speculators.config import SpeculatorConfig, SpeculatorConfigError

LSTM = {
    "architectures": ["ArcticLSTMSpeculatorPreTrainedModel"],
    "base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "input_hidden_dim": 4096,
    "inner_dim": "4096",
    "proj_dim": "4096",
    "emb_dim": "4096",
    "model_type": "mlp_speculator",
    "n_candidates": 3,
    "n_predict": 3,
    "scale_input": True,
    "tie_weights": True,
    "tie_lstm_embs": True,
    "top_k_tokens_per_head": [1, 1, 1],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "vocab_size": 128256,
    "method": "sum_lstm",
}
# With the string and the misspelt key that Snowflake's recipe for MLP heads writes.
MLP = {
    "architectures": "MLPSpeculatorPreTrainedModel",
    "base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "emb_dim": 4096,
    "inner_dim": 0,
    "model_type": "mlp_speculator",
    "n_candidates": 4,
    "n_predict": 4,
    "scale_input": True,
    "tie_weights": True,
    "top_k_tokesns_per_head": [1, 1, 1, 1],
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def test_an_lstm():
    config = SpeculatorConfig.parse(LSTM)
    assert (config.kind, config.input_hidden_dim, config.state_dim) == ("lstm", 4096, 4096)
    assert (config.n_predict, config.vocab_size, config.max_steps) == (3, 128256, None)
    assert config.scale_input
    assert config.tie_lstm_embs
    assert config.base_model == "meta-llama/Llama-3.1-8B-Instruct"
    assert config.emb_scale == pytest.approx(23.07, abs=0.005)
    assert {**LSTM, **config.content()} == LSTM


def test_a_missing_method_is_sum_rnn():
    content = {key: value for key, value in LSTM.items() if key != "method"} | {"inner_dim": "4096.512"}
    config = SpeculatorConfig.parse({**content, "tie_weights": False})
    assert (config.kind, config.inner_dim, config.state_dim) == ("rnn", (4096, 512), 512)
    assert config.max_steps == 3
    assert config.content()["method"] == "sum_rnn"
    assert config.content()["inner_dim"] == "4096.512"


def test_an_mlp():
    config = SpeculatorConfig.parse(MLP)
    assert (config.kind, config.input_hidden_dim, config.inner_dim) == ("mlp", 4096, (4096,))
    assert (config.proj_dim, config.emb_dim, config.max_steps) == ((4096,), (4096,), None)
    narrow = SpeculatorConfig.parse({**MLP, "inner_dim": 1024, "tie_weights": False})
    assert (narrow.input_hidden_dim, narrow.emb_dim, narrow.max_steps) == (4096, (1024,), 4)
    assert SpeculatorConfig.parse(narrow.content()) == narrow


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            "architectures is ['LlamaForCausalLM']; wanted is one of Arctic",
        ),
        ({"architectures": []}, "architectures is []"),
        ({"architectures": None}, "architectures is None"),
        ({"method": "sum_gru"}, "method is 'sum_gru'; wanted is one of sum_lstm, sum_rnn"),
        ({"n_predict": None}, "n_predict is missing; wanted is a whole number"),
        ({"n_predict": 0, "top_k_tokens_per_head": []}, "n_predict is 0; wanted is at least 1"),
        ({"vocab_size": "128256"}, "vocab_size is '128256'; wanted is a whole number"),
        ({"inner_dim": "4096."}, "inner_dim is '4096.'; wanted is a width"),
        ({"inner_dim": None}, "inner_dim is missing"),
        ({"emb_dim": "2048"}, "must be equal; given inner_dim (4096,), proj_dim (4096,), emb_dim (2048,)"),
        ({"inner_dim": "4096.4096"}, 'only method "sum_rnn" has several widths'),
        ({"method": "sum_rnn", "emb_dim": "512.4096"}, "all of emb_dim"),
        ({"tie_weights": False}, "tie_weights must be true"),
        ({"tie_weights": 1}, "tie_weights is 1; wanted is true or false"),
        ({"top_k_tokens_per_head": [1, 1]}, "a list of n_predict = 3 numbers"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'; wanted is one of float32"),
        ({"input_hidden_dim": 4096.0}, "input_hidden_dim is 4096.0"),
    ],
)
def test_what_does_not_fit(change, says):
    with pytest.raises(SpeculatorConfigError) as caught:
        SpeculatorConfig.parse({**LSTM, **change})
    assert says in str(caught.value)


def test_an_mlp_has_one_hidden_width():
    with pytest.raises(SpeculatorConfigError, match="the target's hidden width"):
        SpeculatorConfig.parse({**MLP, "input_hidden_dim": 2048})


def test_reading_a_file(tmp_path):
    with pytest.raises(SpeculatorConfigError, match=r"config\.json cannot be read"):
        SpeculatorConfig.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LSTM, "n_predict": "3"}))
    with pytest.raises(SpeculatorConfigError, match=r"config\.json: n_predict is '3'"):
        SpeculatorConfig.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LSTM))
    assert SpeculatorConfig.read(tmp_path) == SpeculatorConfig.parse(LSTM)
