"""Rows for distilling the tiny model: `python examples/tiny_lm/swiftkv_rows.py --data DIR --out DIR`.

Takes the folder that `tokenizer.py` wrote and writes `train.parquet`, a random part of the documented training
functions, and `heldout.jsonl`, the held-out ones, both with the columns `prompt` and `response`.  Every row is
checked: in the chat template its text has exactly the tokens that the base was trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parent))

from batches import Examples, read
from tokenizer import SPECIALS, read_rows

BATCH = 1024
USER_TOKENS = 1  # before the function: <|user|>
ANSWER_TOKENS = 2  # after it: <|assistant|> and a line break


def texts(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, use: np.ndarray
) -> Iterator[dict[str, str]]:
    """Yield prompt and response of the chosen examples; those whose text gives other tokens are left out."""
    for first in range(0, len(use), BATCH):
        rows, expected = [], []
        for index in use[first : first + BATCH].tolist():
            start, split = int(examples.starts[index]), int(examples.prompts[index])
            ids = examples.tokens[start : start + split + int(examples.answers[index])].tolist()
            code = tokenizer.decode(ids[USER_TOKENS : split - ANSWER_TOKENS])
            rows.append({"prompt": code, "response": tokenizer.decode(ids[split:-1])})
            expected.append(ids)
        chats = [
            [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
            for row in rows
        ]
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        found = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        for row, ids, wanted in zip(rows, found, expected, strict=True):
            if ids[: len(wanted)] == wanted and not any(name in row["prompt"] for name in SPECIALS):
                yield row


def main() -> None:
    """Parse the command line and write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what tokenizer.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="how many training rows; default: all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.data)
    examples = read(args.data / "train.bin.xz")
    order = np.random.default_rng(args.seed).permutation(len(examples.starts))[: args.rows]
    rows = list(texts(examples, tokenizer, order))
    args.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows), args.out / "train.parquet", compression="zstd", compression_level=19
    )
    with (args.out / "heldout.jsonl").open("w", encoding="utf-8") as out:
        for row in read_rows(args.data / "heldout.jsonl"):
            out.write(json.dumps({"prompt": row["code"], "response": row["doc"]}) + "\n")
    print(f"{len(rows):,} of {len(order):,} rows")


if __name__ == "__main__":
    main()
