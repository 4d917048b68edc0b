"""`arctic-batch openai`: a file made for the OpenAI or vLLM batch API."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from batch_sdk.engines import ENGINES
from batch_sdk.openai_batch import run_openai_batch


def add_openai(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    key_value: Callable[[str], tuple[str, Any]],
) -> None:
    """Add the command; `key_value` parses an engine option."""
    parser = commands.add_parser(
        "openai",
        help="run an OpenAI batch file",
        description="Run a JSONL file made for the OpenAI or vLLM batch API; every line gets an answer line.",
    )
    parser.add_argument("input", nargs="+", metavar="INPUT", help="JSONL file, directory, glob or URL")
    parser.add_argument("--model", "-m", required=True, help="path or hub name of the model that runs")
    parser.add_argument(
        "--output", "-o", required=True, help="NAME.jsonl, NAME.jsonl.gz or NAME.jsonl.zst, path or URL"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N lines")
    parser.add_argument("--engine", default="sglang", help=f"{' or '.join(ENGINES)} (%(default)s)")
    parser.add_argument(
        "--engine-option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the engine, e.g. tp_size=2; the value is read as JSON where it is; repeatable",
    )
    parser.add_argument(
        "--default-max-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="tokens of an answer to a chat that sets no limit (%(default)s)",
    )
    parser.add_argument(
        "--window-rows",
        type=int,
        default=2048,
        metavar="N",
        help="lines between oldest and newest in work (%(default)s)",
    )
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="progress bar on stderr (on a terminal)"
    )
    parser.add_argument("--fail-on-error", action="store_true", help="exit 1 if any line has an error")


def run_openai(args: argparse.Namespace) -> int:
    """Run the command, print the summary and return the exit code. Raises `BatchError`."""
    summary = run_openai_batch(
        args.input,
        args.output,
        model=args.model,
        engine=args.engine,
        engine_options=args.engine_option,
        default_max_tokens=args.default_max_tokens,
        window_rows=args.window_rows,
        limit_rows=args.limit,
        overwrite=args.overwrite,
        progress=args.progress,
    )
    print(summary)
    return 1 if args.fail_on_error and summary.errors else 0
