"""The error rows of a finished output, computed again: only they change, and every part changes in one step."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_sdk.chunks import Tally
from batch_sdk.errors import OutputError
from batch_sdk.folder import Folder, disk_errors, load_manifest
from batch_sdk.manifest import Manifest, Part, describe_schema
from batch_sdk.sinks.base import Sink
from batch_sdk.sinks.parquet import RowGroupWriter
from batch_sdk.sinks.parts import check_same, count
from batch_sdk.sources.base import Source

_READ_ROWS = 8192


@dataclass(frozen=True)
class _Broken:
    """A part and the rows of it, counted from its first, that have an error."""

    part: Part
    rows: np.ndarray


class PatchSink(Sink):
    """Takes new results for the error rows of the output in the directory `target`.

    Args:
        target: the directory's path.
        describe: see `PartsSink`.
    """

    def __init__(self, target: str | os.PathLike[str], describe: Callable[[], Manifest]) -> None:
        self.target = Path(os.path.abspath(target))
        self.where = str(self.target)
        self._describe = describe
        self._folder = Folder(self.target)
        self._manifest: Manifest | None = None
        self._broken: list[_Broken] = []
        self._rows = np.zeros(0, np.int64)
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0

    def prepare(self, schema: pa.Schema) -> None:
        """Find the error rows."""
        if load_manifest(self.target) is None:
            raise OutputError(f"{self.where!r} is no output of a batch job", "a directory with a manifest")
        self._folder.lock()
        then = load_manifest(self.target)
        assert then is not None
        if not then.complete:
            raise OutputError(
                f"{self.where!r} is unfinished: {then.rows:,} rows",
                "all rows",
                "resume it without errors first",
            )
        check_same(self.target, then, self._describe())
        self._folder.check_parts(then)
        for part in then.parts:
            if part.errors:
                # Counted from the file, not from the record: a kill can come between the two.
                fresh, rows = self._read(part, then.error_column)
                then = then.with_part(fresh)
                if len(rows):
                    self._broken.append(_Broken(fresh, rows))
        self._manifest = then
        self.complete = not self._broken
        self._rows = np.concatenate(
            [self._rows, *(broken.part.start + broken.rows for broken in self._broken)]
        )

    def _read(self, part: Part, error_column: str) -> tuple[Part, np.ndarray]:
        prefix = error_column.removesuffix("error")
        known = pq.read_schema(self.target / part.name).names
        tokens = [f"{prefix}{name}_tokens" for name in ("prompt", "completion")]
        names = [error_column, *(name for name in tokens if name in known)]
        total = Tally()
        bad: list[np.ndarray] = []
        with pq.ParquetFile(self.target / part.name) as file:
            for found in file.iter_batches(columns=names, batch_size=_READ_ROWS):
                batch = found.select(names)
                bad.append(total.rows + np.flatnonzero(np.asarray(batch.column(error_column).is_valid())))
                total.add(count(batch, error_column))
        return Part.of(part.name, part.start, total), np.concatenate(bad)

    def done(self) -> Tally:
        """Return the figures of the rows that have no error."""
        assert self._manifest is not None
        tally = self._manifest.tally()
        return replace(tally, rows=tally.rows - tally.errors.total(), errors=Counter())

    def missing(
        self, source: Source, columns: Sequence[str], max_rows: int, limit_rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the input rows whose output is an error, in one pass over the input between them."""
        rows = map(int, self._rows)
        wanted = next(rows)
        position = self._broken[0].part.start
        for batch in source.batches_from(columns, max_rows, position):
            end = position + batch.num_rows
            while wanted < end:
                # Row by row: slices work for every type, a filter does not. A copy, for a slice keeps its whole batch.
                yield pa.concat_batches([batch.slice(wanted - position, 1)])
                following = next(rows, None)
                if following is None:
                    return
                wanted = following
            position = end

    def input_row(self, row: int) -> int:
        """Return where in the input the error row of this number is."""
        return int(self._rows[row])

    def open(self, schema: pa.Schema) -> None:
        """Check that the new results have the types of the old ones."""
        assert self._manifest is not None
        check_same(
            self.target, self._manifest, replace(self._manifest, output_schema=describe_schema(schema))
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Hold results until all of a part's are there, then put that part in its place."""
        start = 0
        while start < batch.num_rows:
            broken = self._broken[0]
            piece = batch.slice(start, len(broken.rows) - self._held_rows)
            start += piece.num_rows
            self._held.append(piece)
            self._held_rows += piece.num_rows
            if self._held_rows == len(broken.rows):
                with disk_errors(self.target):
                    self._rewrite(broken, pa.Table.from_batches(self._held).combine_chunks())
                self._broken.pop(0)
                self._held, self._held_rows = [], 0

    def _rewrite(self, broken: _Broken, results: pa.Table) -> None:
        assert self._manifest is not None
        name, total = broken.part.name, Tally()
        with pq.ParquetFile(self.target / name) as file:
            writer = RowGroupWriter(self._folder.temporary(name), file.schema_arrow)
            used = 0
            for batch in file.iter_batches(batch_size=_READ_ROWS):
                end = int(np.searchsorted(broken.rows, total.rows + batch.num_rows))
                mended = self._mend(
                    batch, broken.rows[used:end] - total.rows, results.slice(used, end - used)
                )
                used = end
                writer.write(mended)
                total.add(count(mended, self._manifest.error_column))
            writer.close()
        self._folder.publish(name)
        self._manifest = self._manifest.with_part(Part.of(name, broken.part.start, total))
        self._folder.save(self._manifest)

    def _mend(self, batch: pa.RecordBatch, rows: np.ndarray, results: pa.Table) -> pa.RecordBatch:
        """Return the batch with `results` at `rows`. Columns that were passed through stay as they are."""
        if not len(rows):
            return batch
        assert self._manifest is not None
        order = np.arange(batch.num_rows)
        order[rows] = batch.num_rows + np.arange(len(rows))
        columns = []
        for name in batch.schema.names:
            old = batch.column(name)
            if name not in self._manifest.kept:
                new = results.column(name).combine_chunks()
                old = pc.take(pa.concat_arrays([old, new]), pa.array(order))
            columns.append(old)
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)

    def commit(self) -> str:
        """Record the figures and return the path."""
        assert self._manifest is not None
        with disk_errors(self.target):
            self._folder.save(self._manifest)
            self._folder.clean(self._manifest)
        self._folder.unlock()
        return str(self.target)

    def abort(self) -> None:
        """Leave the parts that are not done yet as they were."""
        self._folder.unlock()
