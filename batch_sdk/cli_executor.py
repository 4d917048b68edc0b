"""The part of the command line that says where a job runs."""

from __future__ import annotations

import argparse
from typing import Any

from batch_sdk.executors import EXECUTORS

_OPTIONS: dict[str, tuple[type, str, str]] = {
    "replicas": (int, "replicas", "engines on the Ray cluster (1)"),
    "ray-address": (str, "address", "host:port of the cluster; default: this machine's, or a new one on it"),
    "gpus-per-replica": (float, "gpus_per_replica", "GPUs of each engine"),
    "cpus-per-replica": (float, "cpus_per_replica", "CPUs of each engine (1)"),
    "wait-seconds": (float, "wait_seconds", "how long to wait for the cluster to have room (60)"),
}


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("executor")
    group.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="this machine or a Ray cluster (%(default)s)"
    )
    for flag, (kind, _, text) in _OPTIONS.items():
        group.add_argument(f"--{flag}", type=kind, metavar="N" if kind is not str else "ADDRESS", help=text)


def executor(args: argparse.Namespace) -> dict[str, Any]:
    """Return `executor` and `executor_options` as they were given."""
    given = {name: getattr(args, flag.replace("-", "_")) for flag, (_, name, _) in _OPTIONS.items()}
    options = {name: value for name, value in given.items() if value is not None}
    return {"executor": args.executor, "executor_options": options}
