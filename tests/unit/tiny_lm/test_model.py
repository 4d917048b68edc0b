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


# The card's loss is of all 240 functions, that of the first 40 was computed by `evaluate.py` too.
@pytest.mark.parametrize(
    ("functions", "loss"), [(40, 2.802), pytest.param(240, None, marks=pytest.mark.full)]
)
def test_heldout_loss_is_what_the_card_says(tiny, tmp_path, functions, loss):
    stated = json.loads((MODEL / "training.json").read_text())["heldout_loss"]
    assert f"**{stated:.4f}**" in (MODEL / "README.md").read_text()
    evaluate = tiny("evaluate")
    rows = evaluate.HELDOUT.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(rows) == 240
    some = tmp_path / "some.jsonl"
    some.write_text("".join(rows[:functions]), encoding="utf-8")
    assert evaluate.heldout_loss(MODEL, some) == pytest.approx(loss or stated, abs=0.01)
