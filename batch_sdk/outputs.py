"""What can be done with an output directory later: see how far it is, and go on."""

from __future__ import annotations

import importlib
import operator
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from batch_sdk.api import embed, generate
from batch_sdk.engines import ENGINES, Engine
from batch_sdk.engines.pace import shaping
from batch_sdk.errors import OutputError
from batch_sdk.folder import Folder, load_manifest
from batch_sdk.manifest import BEGIN_ANEW, CLASS_KEY, OBJECT_KEY, UNKNOWN_INPUT, Manifest
from batch_sdk.sources import open_recorded
from batch_sdk.summary import JobSummary

State = Literal["running", "stopped", "complete"]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How far a job is that writes to a directory.

    Attributes:
        output: the directory.
        state: "running" while a process writes to it, "stopped" if rows are missing and nobody does,
            "complete" if all are there.
        command: "generate" or "embed".
        model: path or hub name.
        rows: committed rows.
        total_rows: rows in the end; None where only reading would tell.
        parts: committed files.
        errors: committed rows without a result, by kind.
        prompt_tokens: of the committed rows.
        completion_tokens: of the committed rows.
    """

    output: str
    state: State
    command: str
    model: str
    rows: int
    total_rows: int | None
    parts: int
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        total = f"of {self.total_rows:,}" if self.total_rows is not None else "of an unknown number"
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.errors.items()))
        lines = [
            f"state     {self.state}",
            f"job       {self.command}, {self.model}",
            f"rows      {self.rows:,} {total}, in {self.parts:,} parts",
            f"errors    {sum(self.errors.values()):,}" + (f" ({kinds})" if kinds else ""),
            f"tokens    {self.prompt_tokens:,} in, {self.completion_tokens:,} out",
            f"output    {self.output}",
        ]
        return "\n".join(lines)


def _manifest(output: str | os.PathLike[str]) -> Manifest:
    path = Path(output)
    found = load_manifest(path)
    if found is None:
        what = "is one file, which is never unfinished" if path.is_file() else "holds no batch job"
        raise OutputError(f"{str(path)!r} {what}", "a directory that a batch job writes to")
    return found


def status(output: str | os.PathLike[str]) -> JobStatus:
    """Return how far the job in the directory `output` is; it may be running.

    Raises:
        OutputError: no job writes or wrote there.
    """
    found = _manifest(output)
    # Rows are missing and the lock is held: somebody is at work.
    running = not found.complete and Folder(Path(output)).locked_elsewhere()
    tally = found.tally()
    return JobStatus(
        output=os.fspath(output),
        state="complete" if found.complete else "running" if running else "stopped",
        command=found.command,
        model=found.job["model"],
        rows=found.rows,
        total_rows=found.rows if found.complete else found.input_rows,
        parts=len(found.parts),
        errors=dict(tally.errors),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
    )


def resume(
    output: str | os.PathLike[str],
    data: Any = None,
    *,
    errors: bool = False,
    model: Engine | None = None,
    engine_options: dict[str, Any] | None = None,
    **pace: Any,
) -> JobSummary:
    """Go on with the job in the directory `output`, as its manifest describes it.

    A finished job is left as it is. The output is then row for row that of a job that was never stopped.

    Args:
        output: the directory.
        data: the input, needed if it was a table in memory; files are found by the manifest.
        errors: compute the error rows of a finished job again, and only those.
        model: a started engine to use instead of one that is started here.
        engine_options: options that replace or join those of the last run, e.g. another `tp_size`.
        **pace: what does not change the output: `window_rows`, `batch_rows`, `block_rows`, `rows_per_file`,
            `part_seconds`, `max_restarts`, `progress`, `report`, `metrics_port`, `executor`, `executor_options`.

    Raises:
        OutputError: no job is there, or its input has changed.
        BatchError: see `generate`.
    """
    found = _manifest(output)
    if found.input is None:
        raise OutputError(
            f"{os.fspath(output)!r} was made from {UNKNOWN_INPUT}, which cannot be recognised again",
            remedy=BEGIN_ANEW,
        )
    if data is None:
        if "files" not in found.input:
            raise OutputError(
                f"{os.fspath(output)!r} was made from a table in memory",
                "the same table",
                "pass it: resume(output, table)",
            )
        data = open_recorded(found.input["files"])
    options = dict(found.job)
    if isinstance(options.get("response_format"), dict) and CLASS_KEY in options["response_format"]:
        options["response_format"] = _model_class(options["response_format"][CLASS_KEY], os.fspath(output))
    sampling = options.pop("sampling", {})
    if model is None:
        if found.engine not in ENGINES:
            raise OutputError(
                f"{os.fspath(output)!r} was made by the engine {found.engine}", "that engine as model="
            )
        options["engine"] = found.engine
        options["engine_options"] = _engine_options(found, engine_options, os.fspath(output))
    else:
        options |= {"model": model, "engine_options": engine_options}
    options["rows_per_file"] = found.rows_per_file
    options.update(pace, output=output, resume="errors" if errors else True)
    run = generate if found.command == "generate" else embed
    summary: JobSummary = run(data, **options, **sampling)
    return summary


def _engine_options(found: Manifest, given: dict[str, Any] | None, output: str) -> dict[str, Any]:
    """Return the options of the last run with those given now. One that was no data has to be given again."""
    merged = {**found.engine_options, **(given or {})}
    lost = {name: value for name, value in merged.items() if isinstance(value, dict) and OBJECT_KEY in value}
    for name, value in shaping(found.engine, lost).items():
        raise OutputError(
            f"{output!r} was made with the engine option {name}, {value[OBJECT_KEY]}, which no manifest holds",
            remedy=f"pass it again: engine_options={{{name!r}: ...}}, or a started engine as model=",
        )
    return {name: value for name, value in merged.items() if name not in lost}


def _model_class(reference: str, output: str) -> Any:
    """Return the pydantic model of a manifest. Whether its schema is still the same is compared later."""
    module, _, name = reference.partition(":")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise OutputError(
            f"{output!r} was made with the pydantic model {reference}, which cannot be imported: {error}",
            remedy="run the same generate(...) again with resume=True",
        ) from error


def hint(output: str) -> str:
    """Return what a person who sees a job stop wants to know: what is left of it and how to go on."""
    try:
        found = load_manifest(Path(output))
    except OutputError:
        found = None
    if found is None:
        return "nothing was written"
    if found.complete:
        return f"{output} is complete, with {found.tally().errors.total():,} error rows"
    if found.input is None:
        return (
            f"{found.rows:,} rows are in {output}, and the others cannot be added: the input is {UNKNOWN_INPUT}, which "
            f"cannot be recognised again; {BEGIN_ANEW}"
        )
    return f"{found.rows:,} rows are kept; go on with: arctic-batch resume {shlex.quote(output)}"
