"""An output directory on the disk: its manifest, its parts, and who may write to it.

A part becomes part of the output at one moment, when the manifest that records it replaces the one before. A
file that is not recorded does not exist, whatever its name, and goes when the job is resumed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk.errors import OutputError
from batch_sdk.manifest import Manifest

# Readers of Parquet directories skip names that begin with an underscore or a dot.
MANIFEST = "_manifest.json"
_OURS = re.compile(
    r"part-\d{5,}\.parquet|\.part-\d{5,}\.parquet\.tmp|_manifest\.json|\._manifest\.json\.tmp|\.work-[0-9a-f]{8}"
)
_WORK = ".work-"


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a full or vanished disk into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{str(target)!r} cannot be written: {error}", "a disk with room") from error


def sync(path: Path) -> None:
    """Flush a file's or a directory's contents to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a directory, or None if it has none. Raises `OutputError` if it is damaged."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{str(path)!r} cannot be read: {error}") from error
    return Manifest.from_json(text, str(path))


def is_unfinished(folder: Path) -> bool:
    """Whether this is the output of a job that has rows to do; somebody else's files of that name are not."""
    try:
        manifest = load_manifest(folder)
    except OutputError:
        return False
    return manifest is not None and not manifest.complete


class Folder:
    """One output directory, for whoever writes to it.

    Attributes:
        path: absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._made = False
        self._work: Path | None = None

    def lock(self) -> None:
        """Make the directory and keep every other process from writing to it until `unlock` or death.

        Raises:
            OutputError: it cannot be made, or another process writes to it.
        """
        while self._lock is None:
            try:
                self._made = not self.path.is_dir()
                self.path.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # removed meanwhile by another process's `unlock`
                    self._try_lock(os.open(self.path, os.O_RDONLY))
            except OSError as error:
                raise OutputError(f"{str(self.path)!r} cannot be made: {error.strerror}") from error

    def _try_lock(self, handle: int) -> None:
        self._flock(handle)
        if self._is(handle):
            self._lock = handle
        else:  # the same, before it was locked here
            os.close(handle)

    def _is(self, handle: int) -> bool:
        """Whether the open directory is the one at `path`."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _flock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OutputError(
                f"another process writes to {str(self.path)!r}", "an output of its own for every job"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{str(self.path)!r} cannot be locked ({error.strerror}): let no other job write to it",
                stacklevel=4,
            )

    def unlock(self) -> None:
        """Let others write. A directory that `lock` made and that is still empty goes."""
        if self._lock is None:
            return
        handle, self._lock = self._lock, None
        # Before the lock goes: nobody can have begun to write to it.
        if self._made:
            with suppress(OSError):
                self.path.rmdir()
        os.close(handle)

    def locked_elsewhere(self) -> bool:
        """Whether a living process writes to the directory."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)
        return False

    def foreign(self) -> str | None:
        """Return the name of something in the directory that no job wrote, or None."""
        names = sorted(entry.name for entry in self.path.iterdir())
        return next((name for name in names if not _OURS.fullmatch(name)), None)

    def untouched(self) -> bool:
        """Whether there is nothing but what a job that was killed at its start has left: no manifest, no part."""
        return all(
            _OURS.fullmatch(entry.name) and entry.name.startswith(".") for entry in self.path.iterdir()
        )

    def make_work(self) -> Path:
        """Make a folder for the workers of this run: nobody else's files ever get there, however late."""
        self._work = self.path / f"{_WORK}{uuid.uuid4().hex[:8]}"
        self._work.mkdir()
        return self._work

    def drop_work(self) -> None:
        """Remove the workers' folders, this run's and those of runs that were killed; nothing without the lock."""
        self._work = None
        if self._lock is None:
            return
        for entry in self.path.glob(f"{_WORK}*"):
            # A worker that nobody waits for may still write to it; the next run removes what is left.
            shutil.rmtree(entry, ignore_errors=True)

    def temporary(self, name: str) -> Path:
        """Return where to write a file before it is published."""
        return self.path / f".{name}.tmp"

    def publish(self, name: str) -> None:
        """Put `temporary(name)` in its place, for good: the bytes first, then the name."""
        sync(self.temporary(name))
        os.replace(self.temporary(name), self.path / name)
        sync(self.path)

    def save(self, manifest: Manifest) -> None:
        """Replace the manifest in one step."""
        self.temporary(MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        self.publish(MANIFEST)

    def clean(self, manifest: Manifest) -> None:
        """Delete what is not recorded: parts of a job that was overwritten, and those a kill cut short."""
        recorded = {MANIFEST, *(part.name for part in manifest.parts)}
        for entry in self.path.iterdir():
            if entry.name in recorded or entry == self._work or not _OURS.fullmatch(entry.name):
                continue
            if entry.name.startswith(_WORK):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()

    def check_parts(self, manifest: Manifest) -> None:
        """Raise `OutputError` unless every recorded part is there with all its rows."""
        for part in manifest.parts:
            path = self.path / part.name
            try:
                rows = pq.read_metadata(path).num_rows
            except (OSError, pa.ArrowException) as error:
                raise OutputError(
                    f"{str(path)!r} is recorded in {MANIFEST} and cannot be read: {error}",
                    remedy="put it back, or run the job anew with overwrite=True (--overwrite)",
                ) from error
            if rows != part.rows:
                raise OutputError(
                    f"{str(path)!r} has {rows} rows",
                    f"the {part.rows} that {MANIFEST} records",
                    "run the job anew with overwrite=True (--overwrite)",
                )
