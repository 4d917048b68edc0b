"""Where one output file goes: written under another name beside its own, and renamed at the end."""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_sdk.errors import OutputError
from batch_sdk.folder import disk_errors, sync
from batch_sdk.remote import file_system, remote_errors


class Place(ABC):
    """A file that appears whole or not at all.

    Attributes:
        name: its path or URL.
    """

    name: str

    @abstractmethod
    def prepare(self) -> None:
        """Raise `OutputError` if the name is taken, or nothing can be written there."""

    @abstractmethod
    def open(self) -> pa.NativeFile:
        """Begin to write under a name of its own; whoever writes also closes."""

    @abstractmethod
    def commit(self) -> None:
        """Give what was written and closed its name."""

    @abstractmethod
    def abort(self) -> None:
        """Remove what was written; nothing after `commit`, and on a place that was never opened."""

    @abstractmethod
    def errors(self) -> Any:
        """Return a context that turns the storage's errors into `OutputError`."""

    def _refuse_taken(self, taken: bool, overwrite: bool) -> None:
        if taken and not overwrite:
            raise OutputError(
                f"{self.name!r} exists", "a new path", "pass overwrite=True (--overwrite) to replace it"
            )


def _staging_name(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"


class LocalPlace(Place):
    """A file on this machine, flushed to the disk before it gets its name."""

    def __init__(self, target: Path, overwrite: bool) -> None:
        self.name = str(target)
        self._target = target
        self._overwrite = overwrite
        self._staging = target.with_name(_staging_name(target.name))

    def _check_free(self) -> None:
        self._refuse_taken(os.path.lexists(self._target), self._overwrite)
        if os.path.lexists(self._target) and not self._target.is_file():
            raise OutputError(f"{self.name!r} exists and is not a file", remedy="choose another output")

    def prepare(self) -> None:
        """Check that the name is free and its folder can be written; make the folder."""
        self._check_free()
        folder = self._target.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{str(folder)!r} cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{str(folder)!r} is not writable", "a directory that is")

    def open(self) -> pa.NativeFile:
        """Open the hidden file beside the target."""
        return pa.OSFile(str(self._staging), "wb")

    def commit(self) -> None:
        """Flush, rename, and flush the folder."""
        self._check_free()
        sync(self._staging)
        os.replace(self._staging, self._target)
        sync(self._target.parent)

    def abort(self) -> None:
        """Delete the hidden file."""
        self._staging.unlink(missing_ok=True)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a full or vanished disk into an `OutputError`."""
        with disk_errors(self._target):
            yield


class UrlPlace(Place):
    """A file behind fsspec. How lasting it is when `commit` returns is the storage's own promise."""

    def __init__(self, url: str, overwrite: bool) -> None:
        self.name = url
        self._overwrite = overwrite
        self._system, self._target = file_system(url, OutputError)
        folder, sign, name = self._target.rpartition("/")
        self._staging = f"{folder}{sign}{_staging_name(name)}"
        self._opened = False

    def prepare(self) -> None:
        """Check that the name is free, and write and delete an empty file, which is the only way to know."""
        self._check_free()
        with self.errors():
            with self._system.open(self._staging, "wb"):
                pass
            self._system.rm_file(self._staging)

    def _check_free(self) -> None:
        with self.errors():
            # A cached listing would not show what others have written since.
            self._system.invalidate_cache()
            self._refuse_taken(self._system.exists(self._target), self._overwrite)
            if self._system.isdir(self._target):
                raise OutputError(f"{self.name!r} exists and is not a file", remedy="choose another output")

    def open(self) -> pa.NativeFile:
        """Open the hidden file beside the target."""
        file = self._system.open(self._staging, "wb")
        self._opened = True
        return pa.PythonFile(file, mode="w")

    def commit(self) -> None:
        """Move it to its name, over an old file: on object stores that is a copy within the store."""
        self._check_free()
        self._system.mv(self._staging, self._target)
        self._opened = False

    def abort(self) -> None:
        """Delete the hidden file."""
        if not self._opened:
            return
        self._opened = False
        # Whatever made the job stop says more than a storage that also fails to delete.
        with suppress(OutputError), self.errors():
            self._system.rm_file(self._staging)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn whatever the storage raises into an `OutputError`."""
        with remote_errors(self.name, OutputError):
            yield
