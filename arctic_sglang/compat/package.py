"""Opens an SGLang that is not installed: a wheel, or a folder with the package in it."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoSGLangError(ValueError):
    """A path that was given holds no SGLang; the message says what is wanted."""


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of the package `sglang` at `path`, to be read within the context; nothing is imported.

    Args:
        path: a wheel of SGLang, a folder that holds the package `sglang`, or that package's own folder.

    Raises:
        NoSGLangError: there is no SGLang at `path`.
    """
    if path.is_dir():
        yield _package(path, path)
        return
    if not zipfile.is_zipfile(path):
        what = "is neither a folder nor a wheel" if path.exists() else "does not exist"
        raise NoSGLangError(_text(path, what))
    with tempfile.TemporaryDirectory(prefix="arctic-sglang-") as folder, zipfile.ZipFile(path) as wheel:
        # sources alone: a wheel's binaries are most of its size
        wanted = [name for name in wheel.namelist() if name.endswith((".py", ".dist-info/METADATA"))]
        wheel.extractall(folder, wanted)
        yield _package(Path(folder), path)


def _package(folder: Path, given: Path) -> Path:
    for candidate in (folder / "sglang", folder):
        if (candidate / "srt" / "server_args.py").is_file():
            return candidate
    raise NoSGLangError(_text(given, "holds no package sglang with srt/server_args.py in it"))


def _text(path: Path, what: str) -> str:
    return (
        f"{path} {what}; wanted: a wheel of SGLang (pip download --no-deps sglang==VERSION), "
        "or a folder that holds the package sglang"
    )
