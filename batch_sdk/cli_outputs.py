"""The part of the command line that is about outputs: `resume`, `status`, and how parts are written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from batch_sdk.cli_executor import add_executor, executor
from batch_sdk.cli_looking import add_looking, looking
from batch_sdk.outputs import resume, status

_PACE: dict[str, tuple[type, int | float, str]] = {
    "rows_per_file": (int, 100_000, "rows of a part file at most"),
    "part_seconds": (float, 300.0, "close a part after this time, even if it has fewer rows"),
    "max_restarts": (int, 6, "restarts of an engine that dies, to find the row that kills it"),
}


def add_pace(parser: argparse.ArgumentParser) -> None:
    """Add the options that change how an output is written and not what is in it."""
    for name, (kind, default, text) in _PACE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=f"{text} ({default})")


def pace(args: argparse.Namespace) -> dict[str, Any]:
    """Return those of `add_pace`'s options that were given."""
    return {name: getattr(args, name) for name in _PACE if getattr(args, name) is not None}


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], key_value: Callable[[str], Any]
) -> None:
    """Add `resume` and `status`; `key_value` parses an engine option."""
    again = commands.add_parser(
        "resume",
        help="go on with a job that was stopped",
        description="Compute the rows that an output directory lacks, as its manifest says.",
    )
    again.add_argument("output", metavar="OUTPUT", help="directory that a job writes to")
    again.add_argument(
        "--errors", action="store_true", help="compute the error rows of a finished job again, only those"
    )
    again.add_argument(
        "--engine-option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replaces or joins those of the last run; repeatable",
    )
    add_pace(again)
    add_looking(again)
    add_executor(again)
    again.add_argument("--fail-on-error", action="store_true", help="exit 1 if any row has an error")
    state = commands.add_parser(
        "status", help="how far a job is", description="Say how far the job in an output directory is."
    )
    state.add_argument("output", metavar="OUTPUT", help="directory that a job writes to")


def run_resume(args: argparse.Namespace) -> int:
    """Resume, print the summary, and return the exit code."""
    summary = resume(
        args.output,
        errors=args.errors,
        engine_options=args.engine_option,
        **looking(args),
        **pace(args),
        **executor(args),
    )
    print(summary)
    return 1 if args.fail_on_error and summary.errors else 0


def run_status(args: argparse.Namespace) -> int:
    """Print the status and return the exit code."""
    print(status(args.output))
    return 0
