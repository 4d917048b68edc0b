"""A random model of two layers with the tiny model's tokenizer, and what it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from speculative.training import generations
from speculative.training.generations import Sampling
from speculative.training.states import load_model
from swiftkv.data import Table

TOKENIZER = Path(__file__).parents[4] / "examples" / "tiny_lm" / "model"
CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads, and sums differ with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The model's folder."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=8192, max_position_embeddings=128, initializer_range=0.3, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    return folder


@pytest.fixture(scope="session")
def model(folder):
    return load_model(str(folder), torch.float32, CPU)


@pytest.fixture(scope="session")
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"def add_{i}(a, b):\n    return a + b * {i}" + " " * (i % 5)} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def written(model, tmp_path_factory) -> Path:
    """A folder of generations, greedy and drawn, of a few lengths."""
    rng = np.random.default_rng(0)
    asked = [rng.integers(4, 8192, rng.integers(1, 9)).astype(np.int32) for _ in range(20)]
    folder = tmp_path_factory.mktemp("written") / "g"
    generations.generate(
        model, iter(asked), Sampling((0.0, 1.0), 5, 9, False, 0), folder, batch_size=7, about={}
    )
    return folder


@pytest.fixture
def table(written, tmp_path) -> Table:
    rows = lambda: generations.read(generations.files_of(written))  # noqa: E731
    return Table.keep(rows, 64, tmp_path / "table", name="written", fingerprint="")
