"""The report of a run, `NAME.json` and `NAME.html`: what was asked, what came of it, and how it went over time."""

from __future__ import annotations

import datetime
import json
import os
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batch_sdk.errors import OptionError, OutputError
from batch_sdk.figures import Figures
from batch_sdk.folder import disk_errors, sync
from batch_sdk.remote import is_url, plain
from batch_sdk.report.facts import Facts
from batch_sdk.report.page import MARK, render
from batch_sdk.report.recorder import Recorder

FORMAT = 1
_ENDINGS = (".json", ".html")
_MARK_WITHIN = 400


def check_name(name: object) -> None:
    """Raise `OptionError` unless two files can be called so: `name` is a local path without their endings."""
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name) or os.fspath(name).endswith("/"):
        raise OptionError(f"report={name!r}", "a path without an ending: .json and .html are added")
    text = os.fspath(name)
    if text.endswith(_ENDINGS):
        raise OptionError(
            f"report={text!r}",
            "a path without the ending: .json and .html are added",
            f"report={text[:-5]!r}",
        )
    if is_url(text):
        raise OptionError(f"report={text!r}", "a local path")


class Report:
    """Writes the report of a run when its `with` block is left, by an error or Ctrl-C too.

    Args:
        name: path of the files, without their endings. Older ones are replaced.
        facts: what the run is about.
        figures: of the run.
        recorder: that watches the run.

    Raises:
        OutputError: the files cannot be written there, or that is the job's own output or input.
    """

    def __init__(
        self, name: str | os.PathLike[str], facts: Facts, figures: Figures, recorder: Recorder
    ) -> None:
        stem = Path(os.path.abspath(plain(os.fspath(name))))
        self._files = {ending: stem.with_name(stem.name + ending) for ending in _ENDINGS}
        self._facts = facts
        self._figures = figures
        self._recorder = recorder
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._check()

    def _check(self) -> None:
        folder = self._files[".json"].parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{str(folder)!r} for the report", "a directory that can be written to")
        output = self._facts.output
        if output is not None and not is_url(output):
            if Path(output).resolve() == folder.resolve():
                raise OutputError(f"a report in the job's output, {output!r}", "another place")
        for path in self._files.values():
            if os.path.lexists(path) and not _is_report(path):
                raise OutputError(f"{str(path)!r} exists and is no report", "another name for the report")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with disk_errors(self._files[".json"]):
                self._write(error)
        except OutputError as failure:
            if error is None:
                raise
            # What ended the job is more important, and is on its way already.
            warnings.warn(str(failure), stacklevel=2)

    def _write(self, error: BaseException | None) -> None:
        data = self.to_data(error)
        texts = {".json": json.dumps(data, indent=1, ensure_ascii=False), ".html": render(data)}
        for ending, text in texts.items():
            _replace(self._files[ending], text)

    def to_data(self, error: BaseException | None) -> dict[str, Any]:
        """Return the report as JSON has it; `error` is what ended the run, None if nothing did."""
        state, problem = outcome(error)
        timeline, summary = self._recorder.timeline, self._figures.summary()
        if timeline is not None:
            timeline.finish(self._figures.done or time.monotonic())
        rates = ("rows_per_second", "tokens_per_second")
        return {
            "kind": MARK,
            "format": FORMAT,
            "state": state,
            "problem": problem,
            "started": self._started,
            **asdict(self._facts),
            "summary": {**asdict(summary), **{name: getattr(summary, name) for name in rates}},
            "throughput": [span._asdict() for span in timeline.spans] if timeline is not None else [],
            "tokens": {name: histogram.to_data() for name, histogram in self._recorder.tokens.items()},
            "errors": {
                kind: {"rows": rows, "examples": self._recorder.examples.found.get(kind, [])}
                for kind, rows in summary.errors.items()
            },
        }


def _is_report(path: Path) -> bool:
    """Whether that is an older report, which may be replaced. A `schema.json` may not."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(_MARK_WITHIN)
    except OSError:
        return False


def outcome(error: BaseException | None) -> tuple[str, str | None]:
    """Return the state of a run that this ended, and what was the matter."""
    if error is None:
        return "complete", None
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "Ctrl-C"
    if isinstance(error, SystemExit):
        return "terminated", f"the process was told to end with code {error.code}"
    return "failed", f"{type(error).__name__}: {error}"


def _replace(path: Path, text: str) -> None:
    """Put a file in place whole, over an older one."""
    staging = path.with_name(f".{path.name}.tmp")
    try:
        staging.write_bytes(text.encode("utf-8", "replace"))
        sync(staging)
        os.replace(staging, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
