"""A SwiftKV model from a plain one: converted, distilled on a table of chats, measured against its base.

    python examples/distil_swiftkv.py                          # the tiny model, 40 steps, minutes on two cores
    python examples/distil_swiftkv.py --model M --layers 16 --data 'chats/*.parquet' --heldout heldout.jsonl --steps 5000

The same as `python -m swiftkv.convert`, `swiftkv.distill` and `swiftkv.evaluate`, which have every option (docs/swiftkv.md).
The folder out/swiftkv/distilled is served as it is: see examples/serving.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from swiftkv import evaluate
from swiftkv.convert import convert
from swiftkv.distill import distill
from swiftkv.errors import SwiftKVError
from swiftkv.settings import Settings

HERE = Path(__file__).parent
HELDOUT = 30  # of the 270 functions


def functions(folder: Path, rows: int | None) -> tuple[str, str]:
    """Writes functions and their docstrings, some to train on and others to measure on; returns both files."""
    table = pl.read_parquet(HERE / "data" / "functions.parquet").select(prompt="code", response="docstring")
    files = folder / "train.parquet", folder / "heldout.parquet"
    for file, part in zip(files, (table[:-HELDOUT][:rows], table[-HELDOUT:]), strict=True):
        part.write_parquet(file)
    return str(files[0]), str(files[1])


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--model", default=str(HERE / "tiny_lm" / "model"), help="folder or name on the hub")
    found.add_argument("--layers", type=int, default=4, metavar="N", help="that keep their own keys and values (%(default)s)")
    found.add_argument("--data", help=".parquet or .jsonl (messages, prompt and response, or text); default: functions")
    found.add_argument("--heldout", help="the same, to measure on; needed with --data")
    found.add_argument("--rows", type=int, metavar="N", help="only the first N functions")
    found.add_argument("--steps", type=int, default=40, metavar="N", help="(%(default)s)")
    found.add_argument("--out", type=Path, default=Path("out/swiftkv"), help="folder for what is written (%(default)s)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 the request makes no sense."""
    args = parser().parse_args(argv)
    if bool(args.data) != bool(args.heldout):
        parser().error("--data and --heldout go together: one to train on, one to measure on")
    args.out.mkdir(parents=True, exist_ok=True)
    data, heldout = (args.data, args.heldout) if args.data else functions(args.out, args.rows)
    try:
        start = convert(args.model, args.layers, args.out / "converted")
        trained = distill(Settings(
            model=str(start), data=data, out=str(args.out / "distilled"), max_steps=args.steps,
            epochs=args.steps, sequence_length=512, batch_size=4, learning_rate=1e-3,
        ))  # fmt: skip
        for folder in (start, trained):
            print(f"{folder}:\n{evaluate.table(evaluate.evaluate(folder, heldout, max_new_tokens=32))}\n")
    except SwiftKVError as error:
        print(f"distil_swiftkv.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
