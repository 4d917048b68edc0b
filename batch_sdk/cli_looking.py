"""The part of the command line about looking at a job that runs: progress, report, metrics."""

from __future__ import annotations

import argparse
from typing import Any

_NAMES = ("progress", "report", "metrics_port")


def add_looking(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("looking at it")
    group.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="progress bar on stderr (on a terminal)"
    )
    group.add_argument(
        "--report",
        metavar="NAME",
        help="write NAME.json and NAME.html at the end, whatever ends it: figures, plots, errors",
    )
    group.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="serve figures for Prometheus at this port while the job runs",
    )


def looking(args: argparse.Namespace) -> dict[str, Any]:
    """Return those of `add_looking`'s options that were given."""
    return {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
