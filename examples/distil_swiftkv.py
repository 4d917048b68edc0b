"""A SwiftKV model from a plain one: converted, distilled on a table of chats, measured against its base.

    python examples/distil_swiftkv.py                          # the tiny model, 60 steps, minutes on two cores
    python examples/distil_swiftkv.py --model M --layers 16 --data 'chats/*.parquet' --heldout held.jsonl --steps 5000

The same as `python -m swiftkv.convert`, `swiftkv.distill` and `swiftkv.evaluate`, which have every option:
docs/swiftkv.md. The folder is served as it is: `python examples/serving.py --model out/swiftkv/distilled`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train_head import functions

from swiftkv import evaluate
from swiftkv.convert import convert
from swiftkv.distill import distill
from swiftkv.errors import SwiftKVError
from swiftkv.settings import Settings

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--model", default=str(HERE / "tiny_lm" / "model"), help="folder or name on the hub")
    found.add_argument(
        "--layers", type=int, default=4, metavar="N", help="that keep their own keys and values (%(default)s)"
    )
    found.add_argument(
        "--data", help=".parquet or .jsonl (messages, prompt and response, or text); default: functions"
    )
    found.add_argument("--heldout", help="the same, to measure on; needed with --data")
    found.add_argument("--rows", type=int, metavar="N", help="only the first N functions")
    found.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="to compare (%(default)s)")
    found.add_argument("--steps", type=int, default=60, metavar="N", help="(%(default)s)")
    found.add_argument(
        "--out", type=Path, default=Path("out/swiftkv"), help="folder for what is written (%(default)s)"
    )
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
            epochs=args.steps, sequence_length=512, batch_size=4, learning_rate=5e-4,
        ))  # fmt: skip
        for folder in (start, trained):
            found = evaluate.evaluate(folder, heldout, max_new_tokens=args.max_new_tokens)
            print(f"{folder}:\n{evaluate.table(found)}")
    except SwiftKVError as error:
        print(f"distil_swiftkv.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
