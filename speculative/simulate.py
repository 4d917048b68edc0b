"""`python -m speculative.simulate traces.jsonl`: what suffix decoding would do on recorded traffic, without a GPU.

Every setting of suffix decoding is an option that takes one value or several with commas between; all combinations
are played. What is played, and what is not, is told in `speculative.replay`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from speculative.base import Proposer
from speculative.cost import CostTable
from speculative.replay import Outcome, Replay
from speculative.suffix import SuffixProposer, SuffixSettings
from speculative.traces import WANTED, Tokenizer, Trace, TraceError, read

WIDTHS = (1, 2, 4, 8, 16, 32)
_CONSTANT, _PER_TOKEN = 5e-3, 3e-5
ASSUMED = (
    f"assumed, {1e3 * _CONSTANT:g} ms and {1e6 * _PER_TOKEN:g} us for each token checked, about an 8 B model in "
    "bf16 on one H100"
)

_LABEL = 27  # characters
# `levels` is several numbers itself.
_SWEPT = [field for field in fields(SuffixSettings) if field.name != "levels"]
_HEAD = f"{'':>3}  {'pass':>4}  {'accept len':>10}  {'drafted':>7}  {'us/token':>8}  {'speed-up':>8}  widths, settings"


class _Bad(ValueError):
    """What was asked for cannot be done; the message is for the user."""


def _suffix(settings: SuffixSettings) -> Proposer:
    """Compiled beforehand, so that compilation is in no figure."""
    proposer = SuffixProposer(settings)
    proposer.warm()
    return proposer


def main(arguments: Sequence[str] | None = None, make: Callable[[SuffixSettings], Proposer] = _suffix) -> int:
    """Runs the command; 0, or 2 where something was asked for that cannot be done.

    Args:
        arguments: of the command line; None: the process's own.
        make: what to play, given settings.
    """
    try:
        _run(_parser().parse_args(arguments), make)
    except (_Bad, TraceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speculative.simulate",
        description="What suffix decoding would do on recorded traffic, without a GPU.",
        epilog=f"A line of the traces is {WANTED}.",
    )
    parser.add_argument("traces", help="JSON lines")
    parser.add_argument("--tokenizer", metavar="MODEL", help="folder or name of a model, for traces of text")
    parser.add_argument("--max-traces", type=int, metavar="N", help="play the first N alone")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at once (8)")
    parser.add_argument("--passes", type=int, default=1, metavar="N", help="play all of it N times (1)")
    parser.add_argument("--cost-table", metavar="JSON", help=f"measured step times; by default {ASSUMED}")
    parser.add_argument("--whole", action="store_true", help="check every draft whole, paying or not")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", metavar="FILE.svg", help="write a plot there")
    settings = parser.add_argument_group("settings of suffix decoding, one value or several: 24,64")
    for field in _SWEPT:
        settings.add_argument(f"--{field.name.replace('_', '-')}", metavar="V[,V]", help=f"({field.default})")
    return parser


def _run(options: argparse.Namespace, make: Callable[[SuffixSettings], Proposer]) -> None:
    for name in ("concurrency", "passes", "max_traces"):
        value = getattr(options, name)
        if value is not None and value < 1:
            msg = f"--{name.replace('_', '-')} {value}: wanted is 1 or more"
            raise _Bad(msg)
    for name in ("json", "plot"):
        _writable(name, getattr(options, name))
    table = _table(options)
    combinations = list(_combinations(options, table))
    traces = read(options.traces, _tokenizer(options.tokenizer), options.max_traces)
    print(_intro(options, traces), _HEAD, sep="\n\n", flush=True)
    rows = []
    for swept, settings in combinations:
        for number, outcome in enumerate(_passes(options, traces, table, make(settings), settings), 1):
            rows.append({"settings": asdict(settings), "swept": swept, "pass": number, **_figures(outcome)})
            print(_line(len(rows), rows[-1]), flush=True)
    if options.json is not None:
        told = {
            "traces": Path(options.traces).name,
            "requests": len(traces),
            "prompt_tokens": sum(len(trace.prompt) for trace in traces),
            "response_tokens": sum(len(trace.response) for trace in traces),
            "concurrency": options.concurrency,
            "whole": options.whole,
            "cost_table": table.to_dict(),
            "rows": rows,
        }
        _write("json", options.json, json.dumps(told, indent=1) + "\n")
    if options.plot is not None:
        _write("plot", options.plot, _plot(rows))


def _passes(
    options: argparse.Namespace,
    traces: Sequence[Trace],
    table: CostTable,
    proposer: Proposer,
    settings: SuffixSettings,
) -> Iterator[Outcome]:
    try:
        replay = Replay(
            proposer,
            table,
            concurrency=options.concurrency,
            longest=settings.max_draft,
            whole=options.whole,
        )
    except ValueError as error:
        raise _Bad(str(error)) from error
    for _ in range(options.passes):
        yield replay.run(traces)


def _combinations(
    options: argparse.Namespace, table: CostTable
) -> Iterator[tuple[dict[str, Any], SuffixSettings]]:
    """Every combination of settings: what differs from the others, and the whole."""
    given = {
        field.name: [_value(field.name, text) for text in getattr(options, field.name).split(",")]
        for field in _SWEPT
        if getattr(options, field.name) is not None
    }
    widest = table.widths[-1] - 1
    if widest < 1:
        msg = "the cost table has no width but 1, plain decode: there is nothing to compare"
        raise _Bad(msg)
    draft = {} if "max_draft" in given else {"max_draft": min(SuffixSettings().max_draft, widest)}
    for values in itertools.product(*given.values()):
        asked = dict(zip(given, values, strict=True))
        try:
            settings = SuffixSettings(**draft, **asked)
        except ValueError as error:
            raise _Bad(str(error)) from error
        if settings.max_draft > widest:
            msg = (
                f"--max-draft {settings.max_draft}: the widest step of the cost table checks {widest} draft "
                "tokens; ask for fewer, or measure a wider one"
            )
            raise _Bad(msg)
        yield {name: value for name, value in asked.items() if len(given[name]) > 1}, settings


def _value(name: str, text: str) -> int | float | str:
    default = next(field.default for field in _SWEPT if field.name == name)
    kind = type(default) if default is not None else int
    try:
        return kind(text)
    except ValueError as error:
        msg = f"--{name.replace('_', '-')} {text!r}: wanted is a number, or several with commas between"
        raise _Bad(msg) from error


def _table(options: argparse.Namespace) -> CostTable:
    if options.cost_table is None:
        return CostTable.linear(WIDTHS, options.concurrency, constant=_CONSTANT, per_token=_PER_TOKEN)
    try:
        return CostTable.from_dict(json.loads(Path(options.cost_table).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        msg = f"--cost-table {options.cost_table}: {error}"
        raise _Bad(msg) from error


def _tokenizer(name: str | None) -> Tokenizer | None:
    if name is None:
        return None
    from transformers import AutoTokenizer  # seconds to import, and lists of ids need none

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        msg = f"--tokenizer {name}: {str(error).splitlines()[0]}"
        raise _Bad(msg) from error


def _intro(options: argparse.Namespace, traces: Sequence[Trace]) -> str:
    tokens = sum(len(trace.response) for trace in traces)
    prompts = sum(len(trace.prompt) for trace in traces)
    costs = (
        f"from {options.cost_table}"
        if options.cost_table
        else f"{ASSUMED} (--cost-table gives measured ones)"
    )
    return (
        f"{len(traces):,} requests with {prompts:,} tokens of prompts and {tokens:,} of responses, "
        f"{options.concurrency} at once.\nStep times: {costs}.\n"
        "accept len: tokens a request gets from a step; drafted: share of requests' steps that had a draft checked;\n"
        "us/token: what suffix decoding took here; speed-up: of decoding, that time included."
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    counts = outcome.counts
    rows = int(counts.rows.sum())
    return {
        "accept_length": round(counts.accept_length, 4),
        "drafted_share": round(1 - int(counts.rows[0]) / rows, 4) if rows else 0.0,
        "draft_tokens": int(counts.drafted.sum()),
        "accepted_tokens": int(counts.accepted.sum()),
        "steps": int(counts.steps.sum()),
        "widths": counts.to_dict()["widths"],
        "propose_us_per_token": round(outcome.propose_microseconds, 3),
        "speedup": round(outcome.speedup, 4),
    }


def _named(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in row["swept"].items())


def _line(number: int, row: Mapping[str, Any]) -> str:
    widths = " ".join(f"{width}: {count / row['steps']:.0%}" for width, count in row["widths"].items())
    return (
        f"{number:>3}  {row['pass']:>4}  {row['accept_length']:>10.2f}  {row['drafted_share']:>7.0%}  "
        f"{row['propose_us_per_token']:>8.2f}  {row['speedup']:>7.2f}x  {widths}  {_named(row)}".rstrip()
    )


def _plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the speed-up of each row, and of the widths of the fastest."""
    from batch_sdk.report import svg  # draws the plots of batch jobs; seconds to import

    fastest = max(rows, key=lambda row: row["speedup"])
    speedups = [(_label(number, row), row["speedup"]) for number, row in enumerate(rows, 1)]
    widths = [(f"width {width}", count) for width, count in fastest["widths"].items()]
    return svg.document(
        [
            ("Speed-up of decoding", svg.bars(speedups, "one", title="speed-up", unit="times")),
            ("Steps by width, the fastest", svg.bars(widths, "two", title="steps by width", unit="steps")),
        ]
    )


def _label(number: int, row: Mapping[str, Any]) -> str:
    """The values of a row, or its number where a plot has no room for them."""
    values = " ".join([*map(str, row["swept"].values()), f"pass {row['pass']}"])
    return values if len(values) <= _LABEL else f"row {number} of the table"


def _writable(name: str, path: str | None) -> None:
    if path is not None and not Path(path).resolve().parent.is_dir():
        msg = f"--{name} {path}: there is no folder {str(Path(path).parent)!r}"
        raise _Bad(msg)


def _write(name: str, path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"--{name} {path}: {error}"
        raise _Bad(msg) from error


if __name__ == "__main__":
    sys.exit(main())
