"""The worker's side of a job on a cluster: one started engine that makes one part after another.

Nothing here knows Ray. What goes wrong is an answer rather than an exception, so that the one who asked can say
it in one line.
"""

from __future__ import annotations

import os
import pickle
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_sdk.chunks import Tally
from batch_sdk.engines.base import Engine
from batch_sdk.engines.restarting import RestartingEngine
from batch_sdk.errors import BatchError, EngineError, SourceError
from batch_sdk.figures import Figures
from batch_sdk.flow import limit
from batch_sdk.folder import disk_errors, sync
from batch_sdk.job import Job
from batch_sdk.look import Look
from batch_sdk.manifest import Part, package_versions
from batch_sdk.plan import Plan
from batch_sdk.runner import stream
from batch_sdk.sinks.base import Sink
from batch_sdk.sinks.parquet import RowGroupWriter
from batch_sdk.sinks.parts import count
from batch_sdk.sources.base import Source
from batch_sdk.units import Unit

_UNSEEN = Look(progress=False)
_LOGS = "see Ray's logs of its workers for the cause"


@dataclass(frozen=True, slots=True)
class Work:
    """All that the parts of a job have in common.

    Attributes:
        job: what to do.
        plan: makes the plan from `job` and the input's schema.
        engine: not started.
        versions: of the packages that shape the output, as the one who asks has them.
        folder: where parts are written to; on a disk that all share.
        error_column: name of the output's.
        max_restarts: see `RestartingEngine`; and how often the workers of one replica may be killed.
    """

    job: Job
    plan: Callable[[Any, pa.Schema], Plan]
    engine: Engine
    versions: dict[str, str]
    folder: Path
    error_column: str
    max_restarts: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says.

    Attributes:
        schema: the output's.
        part: the record of the part that was made, if one was asked for.
        file: its path; flushed to the disk, and not the output's yet.
        tally: what the part's rows took.
        restarts: of the engine or its worker since the last answer.
        error: why there is no part; the other fields mean nothing then.
    """

    schema: pa.Schema | None = None
    part: Part | None = None
    file: Path | None = None
    tally: Tally | None = None
    restarts: int = 0
    error: BatchError | None = None


# A row of the table of units that asks for no part: it is answered as soon as an engine is up.
HELLO: dict[str, Any] = {"name": "", "start": 0, "rows": 0}


def as_row(unit: Unit) -> dict[str, Any]:
    """Return what `Worker` is called with for a unit."""
    return asdict(unit)


def answer_of(row: Mapping[str, Any]) -> Answer:
    """Return the answer in what `Worker` returned."""
    found: Answer = pickle.loads(row["answer"])
    return found


class Worker:
    """Starts an engine when it is made, and makes a part whenever it is called.

    Args:
        fetch: returns what to do and the input.
        place: name of the replica, the same for a worker that takes the place of one that was killed.
    """

    def __init__(self, fetch: Callable[[], tuple[Work, Source]], place: str) -> None:
        self._told = 0
        self._error: BatchError | None = None
        self._engine: RestartingEngine | None = None
        try:
            self._work, self._source = fetch()
            self._told = -_deaths(self._work, place)
            _check_versions(self._work.versions)
            self._plan = self._work.plan(self._work.job, self._source.schema)
            self._engine = RestartingEngine(self._work.engine, self._work.max_restarts)
            self._engine.start()
        except Exception as error:  # noqa: BLE001  # the boundary: all of it is told, none of it ends a process
            self._error = _told(error)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Make the part that `row` names; see `as_row` and `answer_of`."""
        if self._error is not None:
            return _packed(Answer(error=self._error))
        try:
            assert self._engine is not None
            return _packed(self._make(Unit(**row), self._engine))
        except Exception as error:  # noqa: BLE001  # the boundary again
            self._error = _told(error)
            return _packed(Answer(error=self._error))

    def _make(self, unit: Unit, engine: RestartingEngine) -> Answer:
        work, tally = self._work, Tally()
        figures = Figures(tally, engine, None)
        schema, make_chunk = self._plan.bind(engine.info, tally)
        if not unit.name:
            return Answer(schema, restarts=self._restarts(engine))
        sink = UnitSink(unit, work.folder, work.error_column)
        try:
            sink.open(schema)
            stream(
                work.job, self._plan, self._source, sink, engine, schema, make_chunk, figures, _UNSEEN, None
            )
            part = sink.commit()
        finally:
            sink.abort()
        return Answer(schema, part, sink.file, tally, self._restarts(engine))

    def _restarts(self, engine: RestartingEngine) -> int:
        """Return the restarts that were not told of yet."""
        new, self._told = engine.restarts - self._told, engine.restarts
        return new

    def __del__(self) -> None:
        # Ray lets go of a worker that is no longer needed, and then ends its process.
        if self._engine is not None:
            self._engine.close()


def _deaths(work: Work, place: str) -> int:
    """Return how many workers have died in this place; raise `EngineError` if those are too many."""
    with disk_errors(work.folder), (work.folder / place).open("ab") as births:
        births.write(b".")
        deaths = births.tell() - 1
    if deaths > work.max_restarts:
        raise EngineError(
            f"a worker has died {deaths} times", f"{work.max_restarts} times at most (max_restarts)", _LOGS
        )
    return deaths


def _packed(answer: Answer) -> dict[str, Any]:
    return {"answer": pickle.dumps(answer)}


def _told(error: Exception) -> BatchError:
    """Return what is said of an error in another process, in one line."""
    if isinstance(error, BatchError):
        return error
    traceback.print_exception(error)  # for the worker's own log
    said = next(iter(str(error).splitlines()), "")  # Ray's own have a traceback below it
    return EngineError(f"a worker failed: {type(error).__name__}: {said}", remedy=_LOGS)


def _check_versions(wanted: Mapping[str, str]) -> None:
    for name, here in package_versions().items():
        if here != wanted.get(name):
            raise EngineError(
                f"a worker has {name} {here}",
                f"{wanted.get(name)} as here",
                "install the same on all machines",
            )


class UnitSink(Sink):
    """Writes one part, and the rows it is about are those of its unit.

    Attributes:
        file: where to, under a name that no other attempt has.
    """

    def __init__(self, unit: Unit, folder: Path, error_column: str) -> None:
        self._unit = unit
        self.position = unit.start
        self._error_column = error_column
        self.file = folder / f"{unit.name}.{uuid.uuid4().hex[:8]}"
        self._writer: RowGroupWriter | None = None
        self._tally = Tally()

    def prepare(self, schema: pa.Schema) -> None:
        """Nothing: the one who asked has looked."""

    def missing(
        self, source: Source, columns: Sequence[str], max_rows: int, limit_rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the unit's rows; `limit_rows` has been thought of when it was cut."""
        if not self._unit.rows:
            return iter(())
        return limit(source.batches_from(columns, max_rows, self._unit.start), self._unit.rows)

    def open(self, schema: pa.Schema) -> None:
        """Begin the file."""
        with disk_errors(self.file):
            self._writer = RowGroupWriter(self.file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows."""
        assert self._writer is not None
        with disk_errors(self.file):
            self._writer.write(batch)
        self._tally.add(count(batch, self._error_column))

    def commit(self) -> Part:
        """Flush the file to the disk and return its record."""
        assert self._writer is not None
        if self._tally.rows != self._unit.rows:
            raise SourceError(
                f"the input has {self._unit.start + self._tally.rows} rows where a worker reads it",
                f"{self._unit.start + self._unit.rows} at least, as when the job began",
            )
        with disk_errors(self.file):
            self._writer.close()
            self._writer = None
            sync(self.file)
            sync(self.file.parent)
        return Part.of(self._unit.name, self._unit.start, self._tally)

    def abort(self) -> None:
        """Delete the file, unless it is finished."""
        if self._writer is not None:
            self._writer.drop()
            self._writer = None
            with suppress(OSError):
                os.unlink(self.file)
