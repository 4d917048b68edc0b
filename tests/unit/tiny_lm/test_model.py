"""The committed weights: their size, their shape, and the held-out loss that the card states."""

import json
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[3] / "examples" / "tiny_lm" / "model"


def test_small_enough_to_commit():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 20_000_000


def test_shape():
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] == 64
    assert config["num_attention_heads"] % 4 == config["num_key_value_heads"] % 4 == 0
    assert config["num_hidden_layers"] % 2 == 0


def test_heldout_loss_is_what_the_card_says(tiny):
    stated = json.loads((MODEL / "training.json").read_text())["heldout_loss"]
    assert f"**{stated:.4f}**" in (MODEL / "README.md").read_text()
    assert tiny("evaluate").heldout_loss(MODEL) == pytest.approx(stated, abs=0.01)
