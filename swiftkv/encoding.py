"""Rows of text, chats or pairs, and their tokens with a mark on those that count.

In a text every token counts; in a chat what the assistant says, and the end-of-turn token after it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swiftkv.errors import SwiftKVError

BATCH_ROWS = 256
_SUFFIXES = (".parquet", ".jsonl")

Message = dict[str, str]


class Kind(StrEnum):
    """What a row is, by its columns."""

    TEXT = "text"  # a column of text
    CHAT = "messages"  # a list of {role, content}
    PAIR = "prompt, response"  # two columns, a user's message and an assistant's


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row.

    Attributes:
        ids: token ids, int32.
        counted: which of them count, bool, of the same length.
    """

    ids: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True, slots=True)
class Rows:
    """A table on disk: Parquet or JSON lines.

    Attributes:
        files: in the order in which they are read.
        kind: what a row is.
        columns: the columns that are read.
        limit: only the first so many rows.
    """

    files: tuple[Path, ...]
    kind: Kind
    columns: tuple[str, ...]
    limit: int | None = None

    @classmethod
    def open(cls, data: str | Path, column: str | None = None, *, limit: int | None = None) -> "Rows":
        """Finds the files and, from the columns of the first, what a row is.

        Args:
            data: a file, a folder or a glob of .parquet or .jsonl files.
            column: the column of the text; default: what the columns say.
            limit: only the first so many rows.

        Raises:
            SwiftKVError: no such files, or no column that is known.
        """
        files = _files(data)
        found = _columns(files[0])
        if column is not None and column in found:
            return cls(files, Kind.TEXT, (column,), limit)
        if column is None:
            for kind in (Kind.CHAT, Kind.PAIR, Kind.TEXT):
                columns = tuple(kind.value.split(", "))
                if set(columns) <= set(found):
                    return cls(files, kind, columns, limit)
        wanted = column or "messages, or prompt and response, or text (--column names another)"
        raise SwiftKVError(f"{files[0]} has the columns {', '.join(found) or '(none)'}; wanted {wanted}")

    def __iter__(self) -> Iterator[Any]:
        """Yields a text or a list of messages for each row; None for one that is empty."""
        rows = chain.from_iterable(map(self._read, self.files))
        for number, row in enumerate(islice(rows, self.limit)):
            values = [row.get(column) for column in self.columns]
            if any(value is None or value in ("", []) for value in values):
                yield None
            elif self.kind is Kind.CHAT:
                messages = _messages(values[0], number)
                _check_text((message["content"] for message in messages), number)
                yield messages
            elif any(not isinstance(value, str) for value in values):
                raise SwiftKVError(f"row {number} (from 0): {', '.join(self.columns)} must be text")
            else:
                _check_text(values, number)
                if self.kind is Kind.TEXT:
                    yield values[0]
                else:
                    yield [{"role": role, "content": text} for role, text in zip(_ROLES, values, strict=True)]

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        if path.suffix == ".jsonl":
            yield from _json_lines(path)
            return
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(self.columns)):
                    yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise SwiftKVError(f"{path}: {error}") from error


_ROLES = ("user", "assistant")


class Encoder:
    """Tokenises rows.

    Args:
        tokenizer: a transformers tokenizer, with a chat template where there are chats.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)

    def encode(self, rows: Iterable[Any]) -> Iterator[list[Encoded] | None]:
        """Tokenises texts and lists of messages, a batch at a time.

        Yields:
            For each row what it gives: one, or several where the chat template writes a conversation's earlier
            turns differently once there are later ones; None for an empty row.

        Raises:
            SwiftKVError: the tokenizer has no chat template, or the template refuses a conversation.
        """
        rows = iter(rows)
        while batch := list(islice(rows, BATCH_ROWS)):
            texts = iter(self._ids([row for row in batch if isinstance(row, str)], special=True))
            turns = iter(self._turns([row for row in batch if isinstance(row, list)]))
            for row in batch:
                if row is None:
                    yield None
                elif isinstance(row, str):
                    ids = next(texts)
                    yield [Encoded(ids, np.ones(len(ids), bool))]
                else:
                    yield _join(next(turns))

    def prompt(self, messages: Sequence[Message]) -> np.ndarray | None:
        """Token ids of a conversation up to its last assistant message; None where there is none."""
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        return self._ids([self._render(messages[:last], generate=True)])[0] if last else None

    def _turns(self, chats: list[list[Message]]) -> list[list["Turn"]]:
        where = [
            (chat, index)
            for chat in chats
            for index, message in enumerate(chat)
            if message["role"] == "assistant"
        ]
        before = self._ids([self._render(chat[:index], generate=True) for chat, index in where])
        after = self._ids([self._render(chat[: index + 1]) for chat, index in where])
        turns = iter(
            Turn(ids, _common(prompt, ids), self._end(ids)) for prompt, ids in zip(before, after, strict=True)
        )
        return [[next(turns) for message in chat if message["role"] == "assistant"] for chat in chats]

    def _end(self, ids: np.ndarray) -> int:
        """Where a turn's last token ends: templates put white space after it, which no one generates."""
        end = len(ids)
        while end and ids[end - 1] not in self._special and self._tokenizer.decode(ids[end - 1 :]).isspace():
            end -= 1
        return end if end and ids[end - 1] in self._special else len(ids)

    def _render(self, messages: Sequence[Message], *, generate: bool = False) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise SwiftKVError("the rows are chats and the tokenizer has no chat template")
        if not messages:  # many templates refuse an empty conversation
            return ""
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # a template is a program of its own and raises what it likes
            raise SwiftKVError(f"the chat template refuses a conversation: {error}") from error

    def _ids(self, texts: list[str], *, special: bool = False) -> list[np.ndarray]:
        if not texts:
            return []
        # rows that are too long are cut later and counted; the tokenizer would warn of each
        found = self._tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        return [np.asarray(ids, np.int32) for ids in found]


class Turn(NamedTuple):
    """An assistant message: ids of the conversation up to its end, and from where to where they count."""

    ids: np.ndarray
    start: int
    end: int


def _join(turns: list[Turn]) -> list[Encoded]:
    """Marks each turn in a longer conversation that begins with it token for token, or gives it a row."""
    rows: list[Encoded] = []
    for ids, start, end in reversed(turns):
        row = next((row for row in rows if _common(ids, row.ids) >= end), None)
        if row is None:
            row = Encoded(ids, np.zeros(len(ids), bool))
            rows.append(row)
        row.counted[start:end] = True
    return rows[::-1]


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common prefix."""
    size = min(len(first), len(second))
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if len(differ) else size


def _check_text(texts: Iterable[str], number: int) -> None:
    """Halves of a character, which JSON can write (a cut emoji), no tokenizer takes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise SwiftKVError(
                f"row {number} (from 0): {half!r} is half of a character; replace it or leave the row out"
            ) from error


def _messages(value: Any, number: int) -> list[Message]:
    known = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    if not known:
        raise SwiftKVError(f"row {number} (from 0): messages must be a list of {{role, content}}, both text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _files(data: str | Path) -> tuple[Path, ...]:
    path = Path(data)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES]
    elif path.is_file():
        files = [path]
    else:
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(anchor))
        files = sorted(anchor.glob(pattern)) if pattern != "." else []
    files = [file for file in files if file.is_file()]
    if not files or any(file.suffix not in _SUFFIXES for file in files):
        raise SwiftKVError(f"no .parquet or .jsonl files at {data}")
    return tuple(files)


def _columns(path: Path) -> list[str]:
    if path.suffix == ".jsonl":
        return list(next(_json_lines(path), {}))
    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise SwiftKVError(f"{path}: {error}") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise SwiftKVError(f"{path}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise SwiftKVError(f"{path}, line {number}: a row must be an object")
            yield row
