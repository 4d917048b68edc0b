"""The output as a directory of Parquet parts with a manifest: every part is there for good once it is recorded.

Killed at any moment, the directory holds whole parts only, and resuming it adds the rows that are missing, in
order: none is lost and none comes twice.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from batch_sdk.chunks import Tally
from batch_sdk.errors import OutputError
from batch_sdk.folder import Folder, disk_errors, load_manifest, sync
from batch_sdk.manifest import BEGIN_ANEW, Manifest, Part, describe_schema, differences
from batch_sdk.sinks.base import Sink
from batch_sdk.sinks.parquet import RowGroupWriter, check_parent, check_types
from batch_sdk.sources.base import Source
from batch_sdk.units import Unit, after, holes, missing_units, part_name, without

_DIFFERENCES_SHOWN = 3


def count(batch: pa.RecordBatch, error_column: str) -> Tally:
    """Return the rows, tokens and errors of a batch of output rows."""
    prefix = error_column.removesuffix("error")

    def total(name: str) -> int:
        if name not in batch.schema.names:
            return 0
        return int(pc.sum(batch.column(name)).as_py() or 0)

    kinds = batch.column(error_column).field("kind")
    valid = kinds.filter(batch.column(error_column).is_valid())
    return Tally(
        rows=batch.num_rows,
        prompt_tokens=total(f"{prefix}prompt_tokens"),
        completion_tokens=total(f"{prefix}completion_tokens"),
        errors=Counter(valid.to_pylist()),
    )


def check_same(target: Path, then: Manifest, now: Manifest) -> None:
    """Raise `OutputError` that names what differs, unless the output of both jobs is the same."""
    found = differences(then, now)
    if found:
        rest = len(found) - _DIFFERENCES_SHOWN
        more = [f"{rest} more"] if rest > 0 else []
        known = then.input is not None and now.input is not None
        raise OutputError(
            f"{str(target)!r} belongs to another job: {', '.join(found[:_DIFFERENCES_SHOWN] + more)}",
            "the job and input that it was begun with",
            "put that back, choose another output, or begin anew with overwrite=True (--overwrite)"
            if known
            else BEGIN_ANEW,
        )


class PartsSink(Sink):
    """Writes `part-00000.parquet` and so on, and `_manifest.json`, into the directory `target`.

    Args:
        target: the directory's path.
        describe: returns the manifest of the job that is to be run, without parts.
        overwrite: whether an existing output may be replaced. It is gone as soon as the engine is up.
        resume: whether to go on with an output of the same job. One that does not exist is begun.
        rows_per_file: rows of a part at most.
        part_seconds: a part is closed when so much time has passed since the last one, even if it has fewer
            rows.
        traced: whether it is known what the input reads; otherwise nobody is told to overwrite or resume.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        describe: Callable[[], Manifest],
        *,
        overwrite: bool = False,
        resume: bool = False,
        rows_per_file: int,
        part_seconds: float,
        traced: bool = True,
    ) -> None:
        if type(rows_per_file) is not int or rows_per_file < 1:
            raise OutputError(f"rows_per_file={rows_per_file!r}", "a whole number from 1")
        if isinstance(part_seconds, bool) or not isinstance(part_seconds, (int, float)) or part_seconds <= 0:
            raise OutputError(f"part_seconds={part_seconds!r}", "a number above 0")
        self.target = Path(os.path.abspath(target))
        self.where = str(self.target)
        self._describe = describe
        self._overwrite = overwrite
        self._resume = resume
        self._rows_per_file = rows_per_file
        self._part_seconds = part_seconds
        self._traced = traced
        self._folder = Folder(self.target)
        self._manifest: Manifest | None = None
        self._writer: RowGroupWriter | None = None
        self._part = Tally()
        self._last_commit = 0.0
        self._torn = False
        self._holes: list[Unit] = []
        self._before: tuple[Part, ...] = ()

    def prepare(self, schema: pa.Schema) -> None:
        """Check the directory and its manifest, and lock it. Deletes and writes nothing yet."""
        check_types(schema)
        check_parent(self.target)
        if os.path.lexists(self.target) and not self.target.is_dir():
            raise OutputError(f"{self.where!r} exists and is not a directory", remedy="choose another output")
        self._folder.lock()
        then = self._existing()
        now = self._describe()
        if then is not None:
            check_same(self.target, then, now)
            self._folder.check_parts(then)
            now = replace(now, parts=then.parts, complete=then.complete, output_schema=then.output_schema)
        self._manifest = now
        self._holes = holes(now.parts)
        self.position = self._next().start
        self._before = tuple(part for part in now.parts if part.start >= self.position)
        # A kill can come after the last part and before the mark.
        self.complete = now.complete or (now.parts != () and now.rows == now.input_rows)

    def _existing(self) -> Manifest | None:
        """Return the manifest to go on with; None to begin anew."""
        if self._folder.untouched():
            return None
        foreign = self._folder.foreign()
        if self._overwrite and foreign is not None:
            raise OutputError(
                f"directory {self.where!r} holds {foreign!r}, which no job wrote",
                "a directory of part files only",
                "choose another output",
            )
        if self._overwrite:
            return None
        then = load_manifest(self.target)
        if self._resume and then is not None:
            return then
        if self._resume:
            raise OutputError(
                f"{self.where!r} exists and has no manifest", "a job's output", "choose another output"
            )
        if then is not None and not then.complete:
            again = "" if then.input is None else "resume=True (--resume) to go on with it, or "
            raise OutputError(
                f"{self.where!r} exists, an unfinished job with {then.rows:,} rows",
                "a new path",
                f"pass {again}overwrite=True (--overwrite)" if self._traced else BEGIN_ANEW,
            )
        raise OutputError(
            f"{self.where!r} exists",
            "a new path",
            "pass overwrite=True (--overwrite) to replace it" if self._traced else BEGIN_ANEW,
        )

    def done(self) -> Tally:
        """Return the figures of the parts that are there."""
        assert self._manifest is not None
        return self._manifest.tally()

    def missing(
        self, source: Source, columns: Sequence[str], max_rows: int, limit_rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that are in no part: those of the gaps, then those after the last part."""
        assert self._manifest is not None
        found = super().missing(source, columns, max_rows, limit_rows)
        return without(found, self.position, self._manifest.parts)

    def input_row(self, row: int) -> int:
        """Return where in the input the row of this number is: beyond the parts that `missing` leaves out."""
        for part in self._before:
            if row >= part.start:
                row += part.rows
        return row

    def units(self, total: int, replicas_share: int) -> list[Unit]:
        """Return the parts that are missing of `total` rows, for workers to make.

        Args:
            total: rows of the whole output.
            replicas_share: into how many parts at least the rows after the last part are cut, if they are that
                many; `rows_per_file` cuts them smaller.
        """
        assert self._manifest is not None
        parts = self._manifest.parts
        share = -(-(total - after(parts)[1]) // replicas_share)
        return missing_units(parts, total, max(1, min(self._rows_per_file, share)))

    def make_work(self) -> Path:
        """Return a new folder, on the output's disk, for workers to write their parts to."""
        with disk_errors(self.target):
            return self._folder.make_work()

    def adopt(self, file: Path, part: Part) -> None:
        """Make a worker's file, which is flushed to the disk, a part of the output."""
        assert self._manifest is not None
        with disk_errors(self.target):
            os.replace(file, self.target / part.name)
            sync(self.target)
            manifest = self._manifest.with_part(part)
            self._folder.save(manifest)
        self._manifest = manifest

    def open(self, schema: pa.Schema) -> None:
        """Record the job. From here on it can be resumed, and what was there before is gone."""
        assert self._manifest is not None
        now = replace(self._manifest, output_schema=describe_schema(schema))
        if self._manifest.output_schema:
            check_same(self.target, self._manifest, now)
        with disk_errors(self.target):
            self._folder.save(now)
            self._folder.clean(now)
        self._manifest = now
        self._schema = schema
        self._last_commit = time.monotonic()

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows, closing parts that are full or old."""
        # Whoever is interrupted between here and the last line may have written a row twice or not at all.
        self._torn = True
        with disk_errors(self.target):
            start = 0
            while start < batch.num_rows:
                rows = self._next().rows
                piece = batch.slice(start, rows - self._part.rows)
                start += piece.num_rows
                self._add(piece)
                late = time.monotonic() - self._last_commit >= self._part_seconds
                if (late and not self._holes) or self._part.rows == rows:
                    self._commit_part()
        self._torn = False

    def _next(self) -> Unit:
        """Return the part to write next: a gap as it is, or at most `rows_per_file` rows after the last part."""
        assert self._manifest is not None
        if self._holes:
            return self._holes[0]
        number, start = after(self._manifest.parts)
        return Unit(part_name(number), start, self._rows_per_file)

    def _add(self, piece: pa.RecordBatch) -> None:
        assert self._manifest is not None
        if self._writer is None:
            self._writer = RowGroupWriter(self._folder.temporary(self._next().name), self._schema)
        self._writer.write(piece)
        self._part.add(count(piece, self._manifest.error_column))

    def _commit_part(self, complete: bool = False) -> None:
        """Flush the part, give it its name, and only then record it."""
        assert self._manifest is not None
        manifest = replace(self._manifest, complete=complete)
        if self._writer is not None:
            unit = self._next()
            self._writer.close()
            self._folder.publish(unit.name)
            manifest = manifest.with_part(Part.of(unit.name, unit.start, self._part))
        self._folder.save(manifest)
        self._holes = holes(manifest.parts)
        self._manifest, self._writer, self._part = manifest, None, Tally()
        self._last_commit = time.monotonic()

    def commit(self) -> str:
        """Record the last part and that the job is complete, and return the path."""
        assert self._manifest is not None
        if not self._manifest.complete:
            self._torn = True
            with disk_errors(self.target):
                if self._writer is None and not self._manifest.parts:
                    # A directory without a part would have no schema.
                    self._writer = RowGroupWriter(self._folder.temporary(self._next().name), self._schema)
                self._commit_part(complete=True)
        self._folder.drop_work()
        self._folder.unlock()
        return str(self.target)

    def abort(self) -> None:
        """Keep the finished rows as a short part where that can still be done; drop the others."""
        try:
            # A gap is filled with the parts that belong there, or not at all.
            if self._writer is not None and not self._torn and not self._holes:
                with suppress(OSError, pa.ArrowException):
                    self._commit_part()
            if self._writer is not None:
                self._writer.drop()
                self._writer = None
                with suppress(OSError):
                    self._folder.temporary(self._next().name).unlink(missing_ok=True)
        finally:
            self._folder.drop_work()
            self._folder.unlock()
