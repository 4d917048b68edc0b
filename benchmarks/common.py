"""What every benchmark prints and writes: commit, command, hardware, date, and the figures as JSON."""

import argparse
import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON (benchmarks/results)")
    made.add_argument("--commit", default=None, help="commit to record where there is no git")
    return made


def key_value(text: str) -> tuple[str, Any]:
    """Reads KEY=VALUE, the value as JSON where it is JSON, else as it stands."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        message = f"{text!r} is not KEY=VALUE"
        raise argparse.ArgumentTypeError(message)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def header(commit: str | None = None) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "commit": commit or _commit(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(),
        "versions": {name: _version(name) for name in ("arctic-sglang", "sglang", "torch")},
        "python": platform.python_version(),
    }


def hardware() -> str:
    """GPUs and their driver, or the processor."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return f"CPU {platform.processor() or platform.machine()}"
    gpus = [line.strip() for line in found if line.strip()]
    return f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU"


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and spread of repeats."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": [round(value, 4) for value in values],
    }


def write(name: str, content: dict[str, Any], folder: Path, commit: str | None = None) -> None:
    """Prints the result and writes it to `<folder>/<name>.json`."""
    whole = {**header(commit), **content}
    text = json.dumps(whole, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"written to {path}")


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    if done.returncode != 0:
        return "unknown"
    dirty = subprocess.run(
        ["git", "diff", "--quiet", "HEAD"], cwd=Path(__file__).parent, check=False
    ).returncode
    return done.stdout.strip() + ("-dirty" if dirty else "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
