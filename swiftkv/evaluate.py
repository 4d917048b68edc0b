"""How close a SwiftKV model is to its base on held-out rows: `python -m swiftkv.evaluate --help`.

Both come from the one folder. Exit codes: 0 done, 2 the request makes no sense.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

from swiftkv.checkpoint import Checkpoint
from swiftkv.data import Table
from swiftkv.distillation import Distillation, load
from swiftkv.encoding import Encoder, Kind, Rows
from swiftkv.errors import SwiftKVError
from swiftkv.measure import Distance, continuations, distance_sums
from swiftkv.settings import length_of

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    teacher: str | Path | None = None,
    column: str | None = None,
    limit: int | None = None,
    sequence_length: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 48,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Measures a SwiftKV model against its base.

    Args:
        model: the SwiftKV folder, or a name of the hub.
        data: held-out rows, as for distillation.
        teacher: the base, if the folder does not hold its projections.
        column: the column of the text.
        limit: only the first so many rows.
        sequence_length: rows are cut to this, and prompts have room in it for a continuation; default: the model's
            positions, at most 8,192.
        batch_size: sequences, or prompts, at a time.
        max_new_tokens: of a continuation; 0 for none.
        dtype: a name of `DTYPES`, or "auto": bfloat16 on a GPU, else float32.

    Returns:
        What the JSON file says.

    Raises:
        SwiftKVError: the request makes no sense.
    """
    source = Checkpoint.open(model)
    rows = Rows.open(data, column, limit=limit)
    length = length_of(sequence_length, source.config.get("max_position_embeddings"))
    if rows.kind is not Kind.TEXT and max_new_tokens >= length:
        msg = f"--max-new-tokens is {max_new_tokens} and a sequence has {length} tokens: no prompt has room in it"
        raise SwiftKVError(f"{msg}; give fewer, or 0 for no continuations")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = DTYPES.get(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder)
    both = load(source, kind, teacher=Checkpoint.open(teacher) if teacher else None).to(device)
    with tempfile.TemporaryDirectory() as folder:
        table = Table.make(rows, tokenizer, length, Path(folder) / "rows", progress=_bar("tokenise", "row"))
        sums = distance_sums(Distillation(both), table, length, batch_size, device)
        report = str(table.report)
    result = {
        "model": str(model), "data": str(data), "rows": report, "dtype": str(kind).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **Distance.of(sums).to_dict(),
    }  # fmt: skip
    if rows.kind is not Kind.TEXT and max_new_tokens:
        prompts = _prompts(rows, Encoder(tokenizer), length - max_new_tokens)
        found = continuations(both, tokenizer, prompts, max_new_tokens, batch_size)
        result["continuations"] = {"max_new_tokens": max_new_tokens, **found.to_dict()}
    return result


def _bar(text: str, unit: str) -> Any:
    return lambda items: tqdm(items, desc=text, unit=unit, disable=None)


def _prompts(rows: Rows, encoder: Encoder, longest: int) -> list[np.ndarray]:
    """Each chat up to its last answer, where there is room for one."""
    prompts = (encoder.prompt(row) for row in rows if row is not None)
    return [prompt for prompt in prompts if prompt is not None and len(prompt) <= longest]


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        ("tokens that count", f"{result['tokens']:,}"),
        ("perplexity of the base", f"{result['base_perplexity']:.4f}"),
        ("perplexity of SwiftKV", f"{result['swiftkv_perplexity']:.4f}  ({result['ratio'] - 1:+.2%})"),
        ("same next token", f"{result['equal_next_token']:.2%}"),
    ]
    if found := result.get("continuations"):
        lines.append(("prompts continued", f"{found['prompts']:,}, {found['max_new_tokens']} tokens at most"))
    if found and found["prompts"]:
        lines += [
            ("same continuation", f"{found['equal']:.2%}"),
            ("same tokens until they differ", f"{found['equal_tokens']:.2%}"),
        ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m swiftkv.evaluate",
        description="Compare a SwiftKV model with its base on held-out rows.",
    )
    parser.add_argument("--model", required=True, help="SwiftKV folder or hub name")
    parser.add_argument("--teacher", help="the base, if the folder does not hold its projections")
    parser.add_argument("--data", required=True, help=".parquet or .jsonl: a file, a folder or a glob")
    parser.add_argument("--column", help="the column of the text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--sequence-length", type=int, metavar="N",
        help="cut rows to N tokens (the model's positions, at most 8192)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="at a time (%(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=48, metavar="N",
        help="of a continuation; 0 for none (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES], help="(%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = vars(build_parser().parse_args(argv))
    out = args.pop("out")
    try:
        for name, least in (("limit", 1), ("sequence_length", 2), ("batch_size", 1), ("max_new_tokens", 0)):
            if args[name] is not None and args[name] < least:
                raise SwiftKVError(f"--{name.replace('_', '-')} is {args[name]}; it must be {least} or more")
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            raise SwiftKVError(f"--out is {out}; it must be a file in a folder that exists")
        result = evaluate(args.pop("model"), args.pop("data"), **args)
        print(table(result), flush=True)  # whatever becomes of the file
        if out is not None:
            _write(out, result)
    except SwiftKVError as error:
        print(f"swiftkv.evaluate: error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(out: Path, result: dict[str, Any]) -> None:
    try:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SwiftKVError(f"--out {out} could not be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
