"""Model folders and tables for benchmarks that run `batch_sdk` on a real engine with dummy weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import transformers

ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny_lm" / "model"


def write_model(folder: Path, config: dict[str, Any]) -> transformers.PreTrainedTokenizerBase:
    """Writes config.json and a tokenizer; returns the tokenizer.

    The tokenizer is the tiny model's BPE. Its vocabulary is filled up to the model's with tokens that no text leads
    to, so that whatever a model with random weights answers has a text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text((TINY / "tokenizer_config.json").read_text())
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"w{index}": index for index in range(len(vocab), config["vocab_size"])}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(vocab)}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return transformers.AutoTokenizer.from_pretrained(folder)


class Texts:
    """Draws pieces of real text, Python functions, of a wanted number of tokens.

    Args:
        tokenizer: counts the tokens.
        seed: of the draws.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, seed: int = 0) -> None:
        self._tokenizer = tokenizer
        self._draw = np.random.default_rng(seed)
        codes = pq.read_table(ROOT / "examples" / "data" / "functions.parquet")["code"].to_pylist()
        self._ids = np.concatenate([tokenizer(code)["input_ids"] for code in codes])

    def piece(self, tokens: int) -> str:
        """About so many tokens; no two pieces begin alike."""
        start = int(self._draw.integers(len(self._ids)))
        repeated = np.resize(np.roll(self._ids, -start), tokens)
        return f"{self._draw.integers(10**9)}\n" + self._tokenizer.decode(repeated)
