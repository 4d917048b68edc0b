"""The one door to `fsspec`: URLs of object stores and web servers. fsspec is imported only for a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batch_sdk.errors import BatchError

_LOCAL = ("file://", "local://")


def is_url(text: str) -> bool:
    """Whether a path names a file system. `file://` and `local://` do not count: see `plain`."""
    return "://" in text and not text.startswith(_LOCAL)


def plain(text: str) -> str:
    """Return a path without `file://` or `local://`, so that local files are local however they are written."""
    return next((text.removeprefix(sign) for sign in _LOCAL if text.startswith(sign)), text)


def file_system(url: str, error_type: type[BatchError]) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path within it.

    Raises:
        error_type: fsspec, or the package for this protocol, is not installed; or the protocol is unknown.
    """
    try:
        import fsspec
    except ImportError as error:
        raise error_type(f"{url!r} is a URL and fsspec is missing", remedy="pip install fsspec") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise error_type(
            f"{url!r} needs a package that is missing: {error}", remedy="pip install what it names"
        ) from error
    except ValueError as error:
        raise error_type(f"{url!r}: {error}", "a protocol that fsspec knows") from error
    except Exception as error:  # the boundary: a protocol's own set-up raises anything
        raise error_type(f"{url!r} cannot be used: {type(error).__name__}: {error}") from error
    return system, path


@contextmanager
def remote_errors(url: str, error_type: type[BatchError]) -> Iterator[None]:
    """Turn whatever a remote file system raises (they share no base class) into `error_type`."""
    try:
        yield
    except BatchError:
        raise
    except Exception as error:  # the boundary again: every file system has errors of its own
        raise error_type(f"{url!r} cannot be used: {type(error).__name__}: {error}") from error
