"""The tiny model's draft head: its size, its shape, and the acceptance that the card states."""

import json
from pathlib import Path

import pytest
import torch

from speculative.evaluate import evaluate
from speculative.speculators import load

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny_lm"
HEAD = EXAMPLE / "speculator"
PROMPTS = 40


def test_small_enough_to_commit():
    assert (HEAD / "pytorch_model.bin").stat().st_size < 12_000_000
    whole = [path for path in EXAMPLE.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in whole) < 40_000_000


def test_it_is_the_models():
    config = load(HEAD).config
    model = json.loads((EXAMPLE / "model" / "config.json").read_text())
    assert (config.kind, config.n_predict, config.dtype) == ("lstm", 3, "bfloat16")
    assert (config.input_hidden_dim, config.vocab_size) == (model["hidden_size"], model["vocab_size"])


def test_acceptance_is_what_the_card_says(tmp_path):
    """On the first of the prompts, in float32; the card's is of all of them."""
    stated = json.loads((HEAD / "evaluation.json").read_text())
    assert f"**{stated['acceptance_length']:.2f}**" in (HEAD / "README.md").read_text()
    rows = [json.loads(line) for line in (EXAMPLE / "heldout.jsonl").read_text().splitlines()]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["code"]}) + "\n" for row in rows[:PROMPTS]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = evaluate(str(EXAMPLE / "model"), HEAD, str(prompts), max_new_tokens=48)
    torch.set_num_threads(threads)
    assert found["responses"] == PROMPTS
    assert found["acceptance_length"] == pytest.approx(stated["acceptance_length"], abs=0.2)
