"""How much of a draft head's drafts its model accepts, greedily: `python -m speculative.evaluate --help`.

The model continues held-out prompts greedily; along each answer the head drafts from the model's own states, and a
draft counts as far as it equals the answer. No engine is needed: greedy text does not depend on speculation.

Exit codes: 0 done, 2 the request makes no sense.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from speculative.speculators import load
from speculative.speculators.checkpoint import SpeculatorCheckpointError
from speculative.speculators.config import SpeculatorConfigError
from speculative.training import generations
from speculative.training.acceptance import Acceptance, sums
from speculative.training.errors import TrainingError
from speculative.training.generations import Sampling
from speculative.training.prompts import Prompts
from speculative.training.settings import DEFAULT_SEQUENCE_LENGTH
from speculative.training.states import Run, load_model
from swiftkv.checkpoint import locate
from swiftkv.data import Table
from swiftkv.errors import SwiftKVError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_WINDOW = 64


def evaluate(
    model: str,
    speculator: str | Path,
    prompts: str,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Measures a head.

    Args:
        model: a folder, or a name of the hub.
        speculator: the head's folder.
        prompts: .parquet or .jsonl, as for training.
        max_new_tokens: of an answer.
        batch_size: prompts at a time.
        dtype: a name of `DTYPES`, or "auto": bfloat16 on a GPU, else float32.

    Returns:
        What the JSON file says.

    Raises:
        TrainingError, SwiftKVError, SpeculatorConfigError, SpeculatorCheckpointError: the request makes no sense.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = DTYPES.get(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    head = load(speculator, kind, device)
    target = load_model(model, kind, device)
    config = target.config.get_text_config()
    fits = (head.config.input_hidden_dim, head.config.vocab_size)
    if fits != (config.hidden_size, target.get_output_embeddings().out_features):
        msg = f"{speculator} is for hidden states of {fits[0]} and a vocabulary of {fits[1]}"
        raise TrainingError(f"{msg}; {model} has others")
    length = min(
        DEFAULT_SEQUENCE_LENGTH, getattr(config, "max_position_embeddings", None) or DEFAULT_SEQUENCE_LENGTH
    )
    if max_new_tokens >= length:
        raise TrainingError(
            f"--max-new-tokens is {max_new_tokens} and sequences have {length} tokens at most"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(locate(model))
    rows = Prompts(prompts, tokenizer, window=_WINDOW, longest=length - max_new_tokens)
    greedy = Sampling((0.0,), 1, max_new_tokens, ignore_eos=False, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        generations.generate(target, iter(rows), greedy, Path(folder) / "g", batch_size=batch_size, about={})
        written = partial(generations.read, generations.files_of(Path(folder) / "g"))
        table = Table.keep(written, length, Path(folder) / "t", name=prompts, fingerprint="")
        found = Acceptance.of(sums(head, Run(target, table), table, length, 1))
    return {
        "model": model, "speculator": str(speculator), "prompts": prompts, "left_out": rows.left_out,
        "max_new_tokens": max_new_tokens, "dtype": str(kind).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **found.to_dict(),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        ("prompts", f"{result['responses']:,}, left out {result['left_out']:,}"),
        (
            "tokens per verify step",
            f"{result['acceptance_length']:.3f} of {len(result['accepted']) + 1} at most",
        ),
        *(
            (f"first {count} drafted right", f"{share:.1%}")
            for count, share in enumerate(result["accepted"], 1)
        ),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speculative.evaluate",
        description="Measure how much of a draft head's drafts its model accepts, greedily.",
    )
    parser.add_argument("--model", required=True, help="the model: a folder, or a name of the hub")
    parser.add_argument("--speculator", required=True, help="the head's folder")
    parser.add_argument("--prompts", required=True, help=".parquet or .jsonl (messages, prompt or text)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="prompts at a time (%(default)s)"
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES], help="(%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = vars(build_parser().parse_args(argv))
    out = args.pop("out")
    try:
        for name in ("max_new_tokens", "batch_size"):
            if args[name] < 1:
                raise TrainingError(f"--{name.replace('_', '-')} is {args[name]}; it must be 1 or more")
        result = evaluate(**args)
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (TrainingError, SwiftKVError, SpeculatorConfigError, SpeculatorCheckpointError) as error:
        print(f"speculative.evaluate: error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
