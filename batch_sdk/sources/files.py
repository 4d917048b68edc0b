"""From paths, URLs, directories and globs to a list of files: of one kind, in the order of their names."""

from __future__ import annotations

import glob
import lzma
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from batch_sdk.errors import SourceError
from batch_sdk.folder import MANIFEST, is_unfinished
from batch_sdk.kinds import KNOWN, Format, format_of
from batch_sdk.remote import file_system, is_url, plain, remote_errors

PathLike = str | os.PathLike[str]

_ASIDE = ("_", ".")
"""Names in directories that begin so are somebody's bookkeeping."""
_LOST = "lost+found"
"""What a file system keeps in its root, for the superuser alone."""
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class File:
    """One input file.

    Attributes:
        name: the path or URL, for messages.
        format: kind and compression.
        partitions: the `key=value` folders above it, below the directory or the fixed part of the glob that
            the user named; None stands for Hive's null.
        system: fsspec's file system, or None for a local file.
        path: where it is within `system`.
    """

    name: str
    format: Format
    partitions: dict[str, str | None] = field(default_factory=dict)
    system: Any = None
    path: str = ""

    @contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """Open for reading, decompressed.

        Raises:
            SourceError: from the body too, for what the storage, the compression or Arrow complains of.
        """
        with remote_errors(self.name, SourceError) if self.system is not None else nullcontext():
            try:
                with self._raw() as raw, self._decompressed(raw) as stream:
                    yield stream
            except (pa.ArrowException, OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
                wanted = f"{self.format.kind}, compressed with {self.format.codec}"
                raise SourceError(
                    f"{self.name!r} cannot be read: {error}",
                    f"a file of {wanted if self.format.codec else self.format.kind}",
                ) from error

    def _raw(self) -> pa.NativeFile:
        if self.system is None:
            return pa.OSFile(os.fsencode(self.name))
        return pa.PythonFile(self.system.open(self.path, "rb"), mode="r")

    def _decompressed(self, raw: pa.NativeFile) -> Any:
        if self.format.codec is None:
            return nullcontext(raw)
        if self.format.codec == "xz":  # the one that Arrow lacks
            return pa.PythonFile(lzma.open(raw), mode="r")
        return pa.CompressedInputStream(raw, self.format.codec)


def find_files(specs: Sequence[PathLike]) -> list[File]:
    """Return the files that these paths, URLs, directories and globs mean: spec by spec, each sorted by path.

    Files and folders whose names begin with `_` or `.` are somebody's bookkeeping and are left out of
    directories, and so are files of no known kind.

    Raises:
        SourceError: nothing there, files of an unknown kind or of several kinds, or differing partitions.
    """
    files = [file for spec in specs for file in _find(os.fspath(spec))]
    if not files:
        raise SourceError("an empty list of paths", "at least one file")
    first = files[0]
    for file in files:
        if file.format.kind != first.format.kind:
            raise SourceError(
                f"{first.name!r} is {first.format.kind} and {file.name!r} is {file.format.kind}",
                "files of one kind",
                "name them by a glob, or run one job for each kind",
            )
        if file.partitions.keys() != first.partitions.keys():
            raise SourceError(
                f"{file.name!r} lies in partitions {list(file.partitions)}",
                f"{list(first.partitions)}, as for {first.name!r}",
            )
    return files


def recorded(path: str, partitions: Mapping[str, str | None]) -> File:
    """Return a local file that was found before. Raises `SourceError` if it is gone."""
    if not os.path.isfile(path):
        raise SourceError(f"{path!r} is no longer there", "the files that the job began with")
    return replace(_file(path, ""), partitions=dict(partitions))


def _find(text: str) -> list[File]:
    if is_url(text):
        return _find_remote(text)
    text = plain(text)
    if os.path.isfile(text):
        return [_file(text, "")]
    if os.path.isdir(text):
        inner = sorted(map(Path, _inside(text)))
        _refuse_unfinished(inner)
        return _of_directory(text, [str(path) for path in inner])
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if os.path.isfile(name))
    return _of_glob(text, [str(path) for path in found])


def _inside(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the files below a folder, also those behind links, but for links to a folder that is met anyway."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        if above and os.path.basename(folder) == _LOST:
            warnings.warn(f"{folder!r} cannot be read ({error.strerror}) and is left out", stacklevel=2)
            return
        raise SourceError(
            f"{folder!r} cannot be read: {error.strerror}",
            "a directory that can be read with all below it",
            "name the files that are wanted by a glob",
        ) from error
    for entry in found:
        if entry.is_dir() and not entry.name.startswith(_ASIDE):
            if not (entry.is_symlink() and _met(entry.path, (*above, real))):
                yield from _inside(entry.path, (*above, real))
        elif entry.is_file():
            yield entry.path


def _met(link: str, above: tuple[str, ...]) -> bool:
    """Whether a link's folder is found below one of these by itself: its rows would come twice."""
    real = Path(os.path.realpath(link))
    inner = [real.relative_to(folder).parts for folder in above if real.is_relative_to(folder)]
    return any(not any(part.startswith(_ASIDE) for part in parts) for parts in inner)


def _refuse_unfinished(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.name == MANIFEST and is_unfinished(path.parent):
            raise SourceError(
                f"{str(path.parent)!r} is the output of a job that has not finished",
                "a finished one",
                "resume it first, or name its files (a glob) to read those that are there",
            )


def _find_remote(url: str) -> list[File]:
    system, path = file_system(url, SourceError)
    with remote_errors(url, SourceError):
        if system.isfile(path):
            return [_file(url, "", system, path)]
        if system.isdir(path):
            return _of_directory(path, _sorted(system.find(path)), system)
        found = [name for name in system.glob(path) if system.isfile(name)] if glob.has_magic(path) else []
    return _of_glob(path, _sorted(found), system, url)


def _sorted(names: Sequence[str]) -> list[str]:
    # As for local files: folder by folder, whatever sorts before a slash.
    return sorted(names, key=lambda name: PurePosixPath(name).parts)


def _of_directory(folder: str, names: Sequence[str], system: Any = None) -> list[File]:
    base = len(PurePosixPath(folder).parts)
    files = []
    for name in names:
        inner = PurePosixPath(name).parts[base:]
        if not any(part.startswith(_ASIDE) for part in inner) and format_of(name) is not None:
            files.append(_file(name, folder, system, name))
    if not files:
        raise SourceError(f"no table in directory {folder!r}", f"files that end in {KNOWN}")
    return files


def _of_glob(pattern: str, names: Sequence[str], system: Any = None, url: str = "") -> list[File]:
    fixed: list[str] = []
    for part in PurePosixPath(pattern).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    if system is not None and "/." not in pattern:
        # fsspec's globs match hidden names, those of the shell and of Python do not.
        names = [name for name in names if not _hidden(PurePosixPath(name).parts[len(fixed) :])]
    if not names:
        raise SourceError(f"no file matches {url or pattern!r}", "a file, a directory of files, or a glob")
    return [_file(name, str(PurePosixPath(*fixed)), system, name) for name in names]


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _file(name: str, base: str, system: Any = None, path: str = "") -> File:
    """Make the `File` of one name; `base` is the folder below which partitions count, "" if none do."""
    shown = name if system is None else system.unstrip_protocol(path)
    found = format_of(shown)
    if found is None:
        raise SourceError(f"{shown!r} is of no known kind", f"a name that ends in {KNOWN}")
    partitions = _partitions(PurePosixPath(name).parts[len(PurePosixPath(base).parts) : -1]) if base else {}
    return File(shown, found, partitions, system, path)


def _partitions(folders: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for folder in folders:
        key, sign, value = folder.partition("=")
        if sign and key:
            found[unquote(key)] = None if value == _HIVE_NULL else unquote(value)
    return found
