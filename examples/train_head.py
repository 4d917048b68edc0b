"""A draft head for a model: trained on what the model writes itself, then measured on prompts that it never saw.

    python examples/train_head.py                              # the tiny model, 60 steps, minutes on two cores
    python examples/train_head.py --model M --prompts 'prompts/*.parquet' --heldout heldout.jsonl --steps 5000

The same as `python -m speculative.train` and `speculative.evaluate`, which have every option:
docs/speculation-training.md. The head is served by `python examples/serving.py --model M --head out/head`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from speculative import evaluate
from speculative.train import train
from speculative.training.errors import TrainingError
from speculative.training.settings import Settings
from swiftkv.errors import SwiftKVError

HERE = Path(__file__).parent
HELDOUT = 30  # of the 270 functions, to measure on


def functions(folder: Path, rows: int | None) -> tuple[str, str]:
    """Writes functions and docstrings to train on, the first `rows` at most, and to measure on; both files."""
    table = pl.read_parquet(HERE / "data" / "functions.parquet").select(prompt="code", response="docstring")
    files = folder / "train.parquet", folder / "heldout.parquet"
    for file, part in zip(files, (table[:-HELDOUT][:rows], table[-HELDOUT:]), strict=True):
        part.write_parquet(file)
    return str(files[0]), str(files[1])


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--model", default=str(HERE / "tiny_lm" / "model"), help="folder or name on the hub")
    found.add_argument("--prompts", help=".parquet or .jsonl (messages, prompt or text); default: functions")
    found.add_argument("--heldout", help="the same, to measure on; needed with --prompts")
    found.add_argument("--rows", type=int, metavar="N", help="only the first N prompts")
    found.add_argument("--steps", type=int, default=60, metavar="N", help="(%(default)s)")
    found.add_argument(
        "--max-new-tokens", type=int, default=48, metavar="N", help="of an answer (%(default)s)"
    )
    found.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for what is written (%(default)s)"
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 the request makes no sense."""
    args = parser().parse_args(argv)
    if bool(args.prompts) != bool(args.heldout):
        parser().error("--prompts and --heldout go together: one to train on, one to measure on")
    args.out.mkdir(parents=True, exist_ok=True)
    prompts, heldout = (args.prompts, args.heldout) if args.prompts else functions(args.out, args.rows)
    try:
        head = train(Settings(
            model=args.model, prompts=prompts, output=str(args.out / "head"), max_prompts=args.rows,
            max_new_tokens=args.max_new_tokens, max_steps=args.steps, epochs=args.steps, batch_size=4,
            sequence_length=512, learning_rate=2e-3,
            labels="model", keep_states=True,  # what little text asks for: whole distributions, several epochs
            heldout_every=10,
        ))  # fmt: skip
        found = evaluate.evaluate(args.model, head, heldout, max_new_tokens=args.max_new_tokens)
    except (TrainingError, SwiftKVError) as error:
        print(f"train_head.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{head}:\n{evaluate.table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
