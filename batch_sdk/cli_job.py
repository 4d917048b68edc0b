"""`arctic-batch run JOB.yaml`: a job written down, with the names of `generate`'s and `embed`'s arguments."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from batch_sdk.api import embed, generate
from batch_sdk.cli_looking import add_looking, looking
from batch_sdk.errors import OptionError, check_names
from batch_sdk.sampling import SamplingOptions
from batch_sdk.summary import JobSummary

_COMMANDS = {"generate": generate, "embed": embed}
_NOT_IN_A_FILE = ("return_summary",)


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="run a job file",
        description="Run the job that a YAML file describes: command (generate or embed), input, output, model, "
        "and any other argument of batch_sdk.generate or embed by its name.",
    )
    parser.add_argument("file", type=Path, metavar="JOB.yaml", help="the job file")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="replace an existing output")
    again.add_argument(
        "--resume", action="store_true", help="go on with an unfinished directory, or begin it"
    )
    add_looking(parser)
    parser.add_argument("--fail-on-error", action="store_true", help="exit 1 if any row has an error")


def load(path: Path) -> tuple[str, Any, dict[str, Any]]:
    """Read a job file.

    Returns:
        The command, the input, and the other arguments by name.

    Raises:
        OptionError: the file cannot be read, is no mapping, or has a name that the command does not know.
    """
    import yaml  # only those who have job files wait for it

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())  # YAML's errors are drawings of several lines
        raise OptionError(f"{str(path)!r} cannot be read: {said}", "a YAML file in UTF-8") from error
    if not isinstance(fields, dict):
        raise OptionError(f"{str(path)!r} holds a {type(fields).__name__}", "a mapping of names to values")
    command = fields.pop("command", None)
    if command not in _COMMANDS:
        raise OptionError(f"command: {command!r} in {str(path)!r}", " or ".join(_COMMANDS))
    check_names(map(str, fields), ["input", *_known(command)], f"field of the {command} job")
    for name in ("input", "output", "model"):
        if fields.get(name) is None:
            raise OptionError(
                f"{str(path)!r} lacks {name!r}", f"input, output and model beside {command}'s own"
            )
    return command, fields.pop("input"), fields


def _known(command: str) -> list[str]:
    kinds = inspect.signature(_COMMANDS[command]).parameters.values()
    named = [
        p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in _NOT_IN_A_FILE
    ]
    return named + (list(SamplingOptions.__annotations__) if command == "generate" else [])


def run_file(args: argparse.Namespace) -> int:
    """Run the command, print the summary and return the exit code. Raises `BatchError`."""
    command, data, fields = load(args.file)
    args.output = fields["output"]  # for whoever says how to go on
    given = {"overwrite": args.overwrite or None, "resume": args.resume or None}
    fields |= {name: value for name, value in given.items() if value is not None} | looking(args)
    summary: JobSummary = _COMMANDS[command](data, **fields)
    print(summary)
    return 1 if args.fail_on_error and summary.errors else 0
