"""The command line's options about prompts and responses; each is an argument of `batch_sdk.generate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from batch_sdk.errors import OptionError
from batch_sdk.truncation import ON_TOO_LONG


def _name_column(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not sign or not name or not column:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted option=column")
    return name.replace("-", "_"), column


def add_options(parser: argparse.ArgumentParser, prompt: argparse._MutuallyExclusiveGroup) -> None:
    """Add the options to the command; `prompt` is the group of those that say what is asked."""
    prompt.add_argument(
        "--messages-file",
        type=Path,
        metavar="FILE",
        help='JSON list of {"role", "content"}, the contents templates, instead of a prompt',
    )
    prompt.add_argument(
        "--messages-column", metavar="COLUMN", help="column that holds each row's list of messages"
    )
    parser.add_argument(
        "--on-too-long", choices=ON_TOO_LONG, default="error", help="prompts over the context (%(default)s)"
    )
    parser.add_argument(
        "--order",
        choices=("table", "prefix"),
        default="table",
        help="prefix: rows that share a long prefix run together; the output keeps the table's order (%(default)s)",
    )
    parser.add_argument(
        "--dedupe", action="store_true", help="compute rows with the same prompt and sampling once"
    )
    parser.add_argument(
        "--sampling-column",
        type=_name_column,
        action="append",
        default=[],
        metavar="OPTION=COLUMN",
        help="take a sampling option row by row, e.g. temperature=temp_col; repeatable",
    )
    _add_response(parser.add_argument_group("response"))


def _add_response(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--response-schema", metavar="FILE", help="JSON schema of the responses, which become typed structs"
    )
    group.add_argument("--regex", metavar="TEXT", help="regular expression that responses match")
    group.add_argument("--ebnf", metavar="TEXT", help="grammar that responses follow")
    group.add_argument(
        "--choice", action="append", metavar="TEXT", help="a text that a response may be; repeatable"
    )
    group.add_argument(
        "--n", type=int, default=1, metavar="N", help="samples of a row; over 1, as lists (%(default)s)"
    )
    group.add_argument(
        "--logprobs", action="store_true", help="add the chosen tokens' ids and log-probabilities"
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generate` that the command line gave."""
    columns: dict[str, str] = {}
    for name, column in args.sampling_column:
        if name in columns:
            raise OptionError(f"--sampling-column {name} is given twice", "once")
        columns[name] = column
    return {
        "messages": _messages(args.messages_file) if args.messages_file is not None else args.messages_column,
        "response_format": args.response_schema,
        "regex": args.regex,
        "ebnf": args.ebnf,
        "choice": args.choice,
        "n": args.n,
        "logprobs": args.logprobs,
        "on_too_long": args.on_too_long,
        "order": args.order,
        "dedupe": args.dedupe,
        "sampling_columns": columns,
    }


def _messages(path: Path) -> list[Any]:
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--messages-file {path}: {error}", "a readable JSON file") from error
    if not isinstance(messages, list):
        raise OptionError(
            f"--messages-file {path} holds a {type(messages).__name__}", "a JSON list of messages"
        )
    return messages
