"""Write the model card: `python examples/tiny_lm/card.py --model DIR --packages packages.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_COLUMNS = ("name", "version", "licence", "functions", "tokens", "split")
_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [code, docstrings, example]
---

# tiny_lm

A Llama of {millions:.1f} M parameters that does one thing: given the source of a Python function, it writes the
first line of its docstring. It is small enough to sit in a repository and real enough to show that an engine
serves a model correctly. It is no code model: it reads up to about 900 tokens, knows only Python, writes only one
English sentence, and is sometimes wrong about what a function does.

| | |
| --- | --- |
| Architecture | Llama, {layers} layers, hidden {hidden}, {heads} heads and KV heads of {head_dim} |
| Vocabulary | {vocab} (byte-level BPE trained on the same corpus) |
| Weights | bfloat16, input and output embedding shared |
| Input | the function's source as the user's message; a system message is left out by the template |
| Training | {steps} steps, {tokens:.0f} M tokens, {seconds:.0f} s on one {device} |
| Held-out loss | **{loss:.4f}** nats per token of the summary, end token included |

`python examples/tiny_lm/evaluate.py examples/tiny_lm/model` recomputes the held-out loss on `heldout.jsonl`:
functions of packages that gave no training example at all.

## Corpus

{functions} functions with a docstring, and some without one, from the Python files of {count} packages that pip
installed. Only packages whose metadata names a permissive licence were used. Of each docstring the first sentence
was kept, its markup removed and its verb put in the imperative; repeats, tests, vendored and generated code were
left out, and so were summaries that share no word with their function.

| Package | Version | Licence | Functions | Tokens | Used for |
| --- | --- | --- | ---: | ---: | --- |
"""


def card(training: dict[str, Any], config: dict[str, Any], packages: list[dict[str, Any]]) -> str:
    """Return the card's text."""
    head = _HEAD.format(
        millions=training["parameters"] / 1e6,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        vocab=config["vocab_size"],
        steps=training["steps"],
        tokens=training["tokens"] / 1e6,
        seconds=training["seconds"],
        device=training["device"],
        loss=training["heldout_loss"],
        functions=sum(int(row["functions"]) for row in packages if row["split"] == "train"),
        count=len(packages),
    )
    lines = [
        "| " + " | ".join(str(row[key]) for key in _COLUMNS) + " |\n"
        for row in sorted(packages, key=lambda row: row["name"])
    ]
    return head + "".join(lines)


def main() -> None:
    """Parse the command line and write the card beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--packages", type=Path, default=HERE / "packages.json")
    args = parser.parse_args()
    training = json.loads((args.model / "training.json").read_text())
    config = json.loads((args.model / "config.json").read_text())
    text = card(training, config, json.loads(args.packages.read_text()))
    (args.model / "README.md").write_text(text)


if __name__ == "__main__":
    main()
