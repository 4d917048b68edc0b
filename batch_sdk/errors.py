"""What can go wrong, as types.

Two families that never mix. An exception (`BatchError` and below) stops the job. A `RowError` is a value: it
ends one row, is written to that row's error column, and the job goes on. Code decides by type and kind, never
by the text of a message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple


class BatchError(Exception):
    """A job that cannot start or go on. The message says what came, what was wanted and what to do.

    Args:
        got: what was found, as a sentence without its full stop.
        wanted: what would have been right; may be empty.
        remedy: what the user can do; may be empty.

    Attributes:
        begun: whether the job had begun to write its output, so that rows may be kept.
    """

    begun = False

    def __init__(self, got: str, wanted: str = "", remedy: str = "") -> None:
        super().__init__(got, wanted, remedy)
        self.got = got
        self.wanted = wanted
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.got]
        if self.wanted:
            parts.append(f"wanted {self.wanted}")
        if self.remedy:
            parts.append(self.remedy)
        return "; ".join(parts)


@contextmanager
def output_begun() -> Iterator[None]:
    """Mark what stops a job from here on."""
    try:
        yield
    except BatchError as error:
        error.begun = True
        raise


class OptionError(BatchError):
    """An option of a job, an engine or the command line has a value that makes no sense."""


class SourceError(BatchError):
    """The input cannot be read as a table."""


class ColumnError(BatchError):
    """A column is missing, has the wrong type, or would be written twice."""


class PromptError(BatchError):
    """A template does not compile, or needs what this engine does not offer."""


class OutputError(BatchError):
    """The output cannot be written where and as asked."""


class EngineError(BatchError):
    """The engine cannot start or go on. Fatal: the rows in flight are lost and the job stops."""


class EngineDiedError(EngineError):
    """The engine died at its work. A fresh one may be fine: what was in flight may be what killed it."""


class RowErrorKind(StrEnum):
    """Why a single row has no result."""

    NULL_INPUT = "null_input"
    """The text, or a column that the template prints, is null."""
    PROMPT_ERROR = "prompt_error"
    """The template failed on this row's values, or Python cannot hold them: no UTF-8, a date beyond the year 9999."""
    TOO_LONG = "too_long"
    """The input has more tokens than the model's context takes."""
    REJECTED = "rejected"
    """The engine refused this row as invalid."""
    ABORTED = "aborted"
    """The engine began this row and gave it up."""
    INVALID_SAMPLING = "invalid_sampling"
    """A column holds a sampling parameter that is out of range."""
    INVALID_OUTPUT = "invalid_output"
    """The response is not what the schema asked for; the message has its beginning."""
    SERVER_ERROR = "server_error"
    """The server did not answer this row, or failed on it, and retries did not help."""
    ENGINE_DIED = "engine_died"
    """The engine died on this row, and again when it had nothing else to do."""


class RowError(NamedTuple):
    """The error of one row. `kind` is for programs, `message` for people."""

    kind: RowErrorKind
    message: str


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `OptionError` for the first of `given` that is not in `known`; `what` names the kind of
    option."""
    names = sorted(known)
    for name in given:
        if name not in names:
            raise OptionError(
                f"unknown {what} {name!r}{nearest(name, names)}", f"one of: {', '.join(names) or 'none'}"
            )
