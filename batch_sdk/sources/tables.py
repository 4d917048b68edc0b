"""What the sources of all kinds of files share: one schema, file after file, partitions as columns."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_sdk.errors import SourceError
from batch_sdk.sources.base import Source
from batch_sdk.sources.files import File
from batch_sdk.sources.views import plain_array, plain_schema

_WHOLE = re.compile(r"-?\d{1,18}")


class FileSource(Source):
    """Files of one kind with one schema, read one after another.

    A kind of file says how to find a schema (`_inspect`) and how to read one file (`_read`).

    Args:
        files: at least one; from `find_files`, so that they share their kind and their partitions' names.
    """

    def __init__(self, files: Sequence[File]) -> None:
        self._files = tuple(files)
        self.paths = tuple(Path(file.name) for file in files if file.system is None)
        self.urls = tuple(file.name for file in files if file.system is not None)
        self._stored = self._inspect()
        self._partitions = [self._partition(key) for key in files[0].partitions]
        for field in self._partitions:
            if field.name in self._stored.names:
                raise SourceError(
                    f"column {field.name!r} is both in {files[0].name!r} and a folder of its path",
                    "one of them",
                    "name the files by a glob below that folder",
                )
        self._schema = plain_schema(pa.schema([*self._stored, *self._partitions]))

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: paths are absolute, for a process in another folder."""
        files = [
            file if file.system is not None else replace(file, name=os.path.abspath(file.name))
            for file in self._files
        ]
        paths = tuple(Path(os.path.abspath(path)) for path in self.paths)
        return {**self.__dict__, "_files": tuple(files), "paths": paths}

    def _partition(self, key: str) -> pa.Field:
        values = [file.partitions[key] for file in self._files]
        whole = any(values) and all(value is None or _WHOLE.fullmatch(value) for value in values)
        return pa.field(key, pa.int64() if whole else pa.string())

    def fingerprint(self) -> dict[str, Any] | None:
        """Return the files, with their partitions: a path alone does not say which of its folders count."""
        found = super().fingerprint()
        if found is not None and self._partitions:
            for known, file in zip(found["files"], self._files, strict=True):
                known["partitions"] = file.partitions
        return found

    @abstractmethod
    def _inspect(self) -> pa.Schema:
        """Return the files' common schema. Called once, by the constructor."""

    @abstractmethod
    def _read(self, file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield one file's rows as batches of these stored columns (at least one), in any order of
        columns."""

    @property
    def schema(self) -> pa.Schema:
        """The files' columns, then those of their partitions."""
        return self._schema

    @property
    def num_rows(self) -> int | None:
        """Unknown unless the kind's files say it."""
        return None

    def batches(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the files' rows one file after another; only these columns are read, where the kind can."""
        for file in self._files:
            yield from self._arranged(file, columns, self._read(file, self._stored_of(columns), max_rows))

    def _stored_of(self, columns: Sequence[str]) -> list[str]:
        # Rows have to come from somewhere, even if only partitions are wanted.
        return [name for name in columns if name in self._stored.names] or self._stored.names[:1]

    def _arranged(
        self, file: File, columns: Sequence[str], batches: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """Put a file's batches into the order of `columns`, partitions included."""
        schema = pa.schema([self._schema.field(name) for name in columns])
        for batch in batches:
            arrays = [self._column(file, batch, field) for field in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    @staticmethod
    def _column(file: File, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        if field.name not in file.partitions:
            return plain_array(batch.column(field.name))
        value = file.partitions[field.name]
        if value is None:
            return pa.nulls(batch.num_rows, field.type)
        return pa.repeat(pa.scalar(int(value) if field.type == pa.int64() else value), batch.num_rows)


def check_same(file: File, schema: pa.Schema, first: File, wanted: pa.Schema) -> pa.Schema:
    """Return the schema of both: a column may have nulls if it may in one of them.

    Args:
        file: one of the source's files.
        schema: its schema.
        first: the first file.
        wanted: the schema of the files before.

    Raises:
        SourceError: the file has not the columns and types of the first file, in any order.
    """
    names, there = set(schema.names), set(wanted.names)
    if names != there:
        wrong = sorted(names ^ there)[0]
        raise SourceError(
            f"{file.name!r} {'has' if wrong in names else 'lacks'} column {wrong!r}",
            f"the columns of {first.name!r}",
        )
    fields = []
    for field in wanted:
        # By index: field(name) is None where two columns share the name, which is refused later.
        here = schema.field(schema.names.index(field.name))
        if here.type != field.type:
            raise SourceError(
                f"column {field.name!r} of {file.name!r} has type {here.type}",
                f"{field.type}, as in {first.name!r}",
            )
        fields.append(field.with_nullable(field.nullable or here.nullable))
    return pa.schema(fields, wanted.metadata)
