"""`arctic-batch`: the same jobs for people who live in a shell.

Exit codes: 0 done (rows may have errors: the summary says), 1 its engine, disk or input stopped the job half-way
or, with --fail-on-error, a row has an error, 2 the request makes no sense, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from batch_sdk import cli_prompts, show
from batch_sdk.api import embed, generate
from batch_sdk.cli_executor import add_executor, executor
from batch_sdk.cli_job import add_run, run_file
from batch_sdk.cli_looking import add_looking, looking
from batch_sdk.cli_openai import add_openai, run_openai
from batch_sdk.cli_outputs import add_commands, add_pace, pace, run_resume, run_status
from batch_sdk.engines import ENGINES
from batch_sdk.errors import BatchError, EngineError, OptionError
from batch_sdk.estimate import estimate
from batch_sdk.job import EMBED_BATCH_ROWS, EMBED_WINDOW_ROWS
from batch_sdk.outputs import hint
from batch_sdk.summary import JobSummary
from batch_sdk.vectors import VECTOR_TYPES

_SAMPLING_FLAGS: dict[str, tuple[type, str]] = {
    "max_new_tokens": (int, "tokens of a response at most (128)"),
    "temperature": (float, "0 is greedy; default: the engine's"),
    "top_p": (float, "sample from the smallest set of tokens with this probability"),
    "top_k": (int, "sample from this many most likely tokens"),
    "min_p": (float, "drop tokens less likely than this share of the likeliest"),
    "seed": (int, "of the draws, where the engine samples deterministically"),
}
_SHOW_ROWS = 3


def _version() -> str:
    try:
        return metadata.version("arctic-sglang")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _key_value(text: str) -> tuple[str, Any]:
    """Parse `key=value`; the value is JSON if it reads as JSON, else a string."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted key=value")
    try:
        return key.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return key.replace("-", "_"), value


def _add_shared(parser: argparse.ArgumentParser, writes: bool) -> None:
    parser.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="file, directory, glob or URL of Parquet, Arrow, JSONL, CSV or TSV",
    )
    parser.add_argument("--model", "-m", required=True, help="path or hub name of the model")
    if writes:
        _add_output(parser)
    else:
        parser.add_argument(
            "--sample-rows", type=int, default=256, metavar="N", help="rows to run (%(default)s)"
        )
    parser.add_argument("--engine", default="sglang", help=f"{' or '.join(ENGINES)} (%(default)s)")
    parser.add_argument(
        "--engine-option",
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the engine, e.g. tp_size=2; the value is read as JSON where it is; repeatable",
    )
    _add_table_options(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        help="NAME.parquet, .arrow, .jsonl, .jsonl.gz or .jsonl.zst for one file (URLs too), any other name for a"
        " directory of Parquet parts",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the same job's unfinished directory, or begin it"
    )
    add_pace(parser)
    add_executor(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N input rows")
    parser.add_argument(
        "--show", type=int, metavar="K", help=f"print K output rows at the end ({_SHOW_ROWS} on a terminal)"
    )
    add_looking(parser)
    parser.add_argument("--fail-on-error", action="store_true", help="exit 1 if any row has an error")


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", action="append", metavar="COLUMN", help="pass only this column through; repeatable"
    )
    parser.add_argument("--keep-none", action="store_true", help="pass no input column through")
    parser.add_argument(
        "--details-prefix", default="", metavar="TEXT", help="put before prompt_tokens, error, ..."
    )
    parser.add_argument(
        "--window-rows",
        type=int,
        default=2048,
        metavar="N",
        help="rows between oldest and newest in work (%(default)s)",
    )
    parser.add_argument(
        "--batch-rows",
        type=int,
        default=1024,
        metavar="N",
        help="rows read and written at a time (%(default)s)",
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = _Parser(
        prog="arctic-batch",
        description="Stream tables through a language model; every row gets a result or an error.",
    )
    parser.add_argument("--version", action="version", version=f"arctic-batch {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands, writes=True)
    _add_embed(commands, writes=True)
    guess = commands.add_parser(
        "estimate",
        help="what a job would take",
        description="Run a sample of the rows and say what time, tokens and memory all of them would take.",
    )
    jobs = guess.add_subparsers(dest="job", required=True, metavar="JOB")
    _add_generate(jobs, writes=False)
    _add_embed(jobs, writes=False)
    add_run(commands)
    add_openai(commands, _key_value)
    add_commands(commands, _key_value)
    return parser


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, writes: bool) -> None:
    gen = commands.add_parser(
        "generate", help="one text a row", description="Generate one text for every row."
    )
    _add_shared(gen, writes)
    prompt = gen.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt", "-p", help="Jinja2 template over the columns, e.g. 'Summarise: {{ body }}'"
    )
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="read the template from a file")
    cli_prompts.add_options(gen, prompt)
    gen.add_argument("--system", help="template of a system message")
    gen.add_argument(
        "--chat",
        choices=("auto", "on", "off"),
        default="auto",
        help="use the model's chat template (%(default)s)",
    )
    gen.add_argument("--response-column", default="response", metavar="NAME", help="(%(default)s)")
    sampling = gen.add_argument_group("sampling")
    for name, (kind, text) in _SAMPLING_FLAGS.items():
        sampling.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(), help=text
        )
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="end a response here; repeatable")
    sampling.add_argument(
        "--sampling",
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other parameter, e.g. repetition_penalty=1.1; repeatable",
    )


def _add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, writes: bool) -> None:
    emb = commands.add_parser(
        "embed", help="one vector a row", description="Compute one vector for every row."
    )
    _add_shared(emb, writes)
    emb.add_argument("--column", "-c", required=True, help="column of texts or of token ids")
    emb.add_argument("--normalize", action="store_true", help="scale every vector to length 1")
    emb.add_argument(
        "--dimensions", type=int, metavar="N", help="keep the first N components of a vector (all)"
    )
    emb.add_argument(
        "--truncate", action="store_true", help="cut texts over the model's window; default: an error row"
    )
    emb.add_argument(
        "--prompt-name", metavar="NAME", help="the checkpoint's prompt to put in front of every text"
    )
    emb.add_argument("--embedding-column", default="embedding", metavar="NAME", help="(%(default)s)")
    emb.add_argument(
        "--embedding-type",
        choices=VECTOR_TYPES,
        default="float32",
        help="of the vectors' items (%(default)s)",
    )
    emb.add_argument(
        "--block-rows", type=int, metavar="N", help="rows of one engine request (what suits the engine)"
    )
    emb.set_defaults(window_rows=EMBED_WINDOW_ROWS, batch_rows=EMBED_BATCH_ROWS)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise OptionError(
                f"--engine-option {name} is given twice", "once", "write several values as JSON: [...]"
            )
        found[name] = value
    return found


def _output_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "output": args.output,
        "overwrite": args.overwrite,
        "resume": args.resume,
        **pace(args),
        **executor(args),
        "limit_rows": args.limit,
        **looking(args),
    }


def _job_options(args: argparse.Namespace, job: str) -> dict[str, Any]:
    if args.keep and args.keep_none:
        raise OptionError("--keep together with --keep-none", "one of them")
    shared = {
        "model": args.model,
        "engine": args.engine,
        "engine_options": args.engine_option,
        "keep": [] if args.keep_none else args.keep,
        "details_prefix": args.details_prefix,
        "window_rows": args.window_rows,
        "batch_rows": args.batch_rows,
    }
    if job == "generate":
        return {
            "prompt": _prompt(args),
            "system": args.system,
            "chat": {"auto": "auto", "on": True, "off": False}[args.chat],
            "response_column": args.response_column,
            **cli_prompts.options(args),
            **shared,
            **_sampling(args),
        }
    return {
        "column": args.column,
        "normalize": args.normalize,
        "dimensions": args.dimensions,
        "truncate": args.truncate,
        "prompt_name": args.prompt_name,
        "embedding_column": args.embedding_column,
        "embedding_type": args.embedding_type,
        "block_rows": args.block_rows,
        **shared,
    }


def _prompt(args: argparse.Namespace) -> str | None:
    if args.prompt_file is None:
        return args.prompt
    try:
        return str(args.prompt_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"--prompt-file {args.prompt_file}: {error}", "a readable UTF-8 text file"
        ) from error


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    sampling: dict[str, Any] = {
        name: getattr(args, name) for name in _SAMPLING_FLAGS if getattr(args, name) is not None
    }
    if args.stop:
        sampling["stop"] = args.stop
    for name, value in args.sampling:
        if name in sampling:
            raise OptionError(f"{name} is given twice", "once")
        sampling[name] = value
    return sampling


def _run(args: argparse.Namespace) -> int:
    if "engine_option" in args:
        args.engine_option = _once(args.engine_option)
    if args.command == "openai":
        return run_openai(args)
    if args.command == "run":
        return run_file(args)
    if args.command in ("resume", "status"):
        return run_resume(args) if args.command == "resume" else run_status(args)
    if args.command == "estimate":
        print(estimate(args.input, sample_rows=args.sample_rows, **_job_options(args, args.job)))
        return 0
    show_rows = args.show if args.show is not None else _SHOW_ROWS if sys.stdout.isatty() else 0
    if show_rows < 0:
        raise OptionError(f"--show {show_rows}", "a whole number from 0")
    run = generate if args.command == "generate" else embed
    summary: JobSummary = run(args.input, **_job_options(args, args.command), **_output_options(args))
    print(summary)
    if show_rows and summary.rows:
        assert summary.output is not None
        if args.command == "generate":
            print(show.generated_rows(summary.output, show_rows))
        else:
            print(show.nearest_rows(summary.output, args.column, args.embedding_column, show_rows))
    return 1 if args.fail_on_error and summary.errors else 0


class _Terminated(SystemExit):
    """SIGTERM came."""


def _terminate(signum: int, frame: object) -> NoReturn:
    # As an exception, so that finished rows are kept and the engine's processes are closed on the way out.
    raise _Terminated(128 + signum)


def _left(args: argparse.Namespace) -> str:
    return f"; {hint(args.output)}" if "output" in args else ""


def _say_what_is_left(args: argparse.Namespace) -> None:
    if "output" in args:
        print(f"arctic-batch: {hint(args.output)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see the module's docstring."""
    args = build_parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(args)
    except BatchError as error:
        print(f"arctic-batch: error: {error}", file=sys.stderr)
        if not error.begun and not isinstance(error, EngineError):
            return 2
        _say_what_is_left(args)
        return 1
    except Exception:
        _say_what_is_left(args)
        raise
    except KeyboardInterrupt:
        print(f"arctic-batch: interrupted{_left(args)}", file=sys.stderr)
        return 130
    except _Terminated as ended:
        print(f"arctic-batch: terminated{_left(args)}", file=sys.stderr)
        return int(ended.code or 1)


if __name__ == "__main__":
    sys.exit(main())
