"""Random models of a few kilobytes, and the tiny model's tokenizer, which needs no network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from swiftkv.convert import convert
from swiftkv.settings import Settings

TOKENIZER = Path(__file__).parents[3] / "examples" / "tiny_lm" / "model"
BASES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads, and sums differ with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="session")
def make_base(tmp_path_factory) -> Callable[..., Path]:
    """Saves a random base of 6 layers: `make_base("qwen2", tie_word_embeddings=True)` -> its folder."""

    def make(
        family: str = "llama", *, shard: str = "5GB", dtype=torch.float32, seed: int = 0, **more
    ) -> Path:
        torch.manual_seed(seed)
        config_class, model_class = BASES[family]
        shape = {
            "num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 8192, "max_position_embeddings": 512,
            "initializer_range": 0.2, "tie_word_embeddings": False, "eos_token_id": 3, "pad_token_id": 0,
        }  # fmt: skip
        model = model_class(config_class(**(shape | more))).to(dtype)
        with torch.no_grad():  # norms and biases of a fresh model are all alike, and would hide a mix-up
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder, max_shard_size=shard)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, folder)
        (folder / "LICENSE").write_text("words")
        return folder

    return make


@pytest.fixture(scope="session")
def llama(make_base) -> Path:
    return make_base("llama")


@pytest.fixture
def write_rows(tmp_path) -> Callable[..., Path]:
    """Writes rows as JSON lines."""

    def write(rows: list[dict], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    return [
        {
            "prompt": f"def add_{i}(a, b):\n    return a + b * {i}",
            "response": f"Add {i} times b to a. " * (1 + i % 3),
        }
        for i in range(24)
    ]


@pytest.fixture(scope="session")
def model(llama, tmp_path_factory) -> Path:
    return convert(llama, 2, tmp_path_factory.mktemp("start") / "model", key_value_group_size=2)


@pytest.fixture
def rows(write_rows, pairs) -> Path:
    return write_rows(pairs)


@pytest.fixture
def settings(model, rows, tmp_path):
    """Settings of a short run; `settings(seed=1)` changes some."""
    plain = {
        "model": str(model), "data": str(rows), "out": str(tmp_path / "out"), "sequence_length": 128,
        "batch_size": 2, "learning_rate": 3e-3, "epochs": 3,
    }  # fmt: skip
    return lambda **changes: Settings(**(plain | changes))
