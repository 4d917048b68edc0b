"""Chats as prompts: a list of message templates, or a column that holds the messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from batch_sdk.engines.base import Message
from batch_sdk.errors import ColumnError, OptionError, RowError, RowErrorKind, check_names, nearest
from batch_sdk.prompts import RowTemplates, Template
from batch_sdk.schema import is_text

_ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = ("role", "content")
_WANTED = 'a list of {"role": ..., "content": ...}, or the name of a column'

Messages = Sequence[Mapping[str, str]] | str


def check_messages(messages: Any) -> tuple[Message, ...] | str:
    """Return a job's `messages` in their one form: a column's name, or a tuple of messages.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(messages, str) and messages:
        return messages
    if not isinstance(messages, Sequence) or not messages or isinstance(messages, str):
        raise OptionError(f"messages={messages!r}", _WANTED)
    for index, message in enumerate(messages):
        good = isinstance(message, Mapping) and set(message) == set(_KEYS)
        if not good or not all(isinstance(message[key], str) for key in _KEYS):
            raise OptionError(f"messages[{index}]={message!r}", '{"role": ..., "content": ...}, both strings')
        check_names([message["role"]], _ROLES, f"role of messages[{index}]")
    return tuple({key: message[key] for key in _KEYS} for message in messages)


class MessageTemplates:
    """Fills in a list of message templates.

    Raises:
        PromptError, ColumnError: see `Template`.
    """

    def __init__(self, messages: Sequence[Message], available: Sequence[str]) -> None:
        self._roles = [message["role"] for message in messages]
        templates = [Template(m["content"], f"messages[{index}]") for index, m in enumerate(messages)]
        self._templates = RowTemplates(templates, available)
        self.columns = self._templates.columns

    def build(self, row: dict[str, Any], chat: bool) -> list[Message] | RowError:
        """Return the row's messages, or why it has none. `chat` is always True: plans see to it."""
        texts = self._templates.render(row)
        if isinstance(texts, RowError):
            return texts
        return [{"role": r, "content": text} for r, text in zip(self._roles, texts, strict=True)]


class MessageColumn:
    """Takes the messages from a column of lists of structs of `role` and `content`.

    Raises:
        ColumnError: the column is missing or has another type.
    """

    def __init__(self, name: str, schema: pa.Schema) -> None:
        if name not in schema.names:
            raise ColumnError(
                f"messages names column {name!r}, which the input lacks{nearest(name, schema.names)}",
                f"one of: {', '.join(schema.names)}",
            )
        kind = schema.field(name).type
        if not _holds_messages(kind):
            raise ColumnError(
                f"messages names column {name!r} of type {kind}",
                "a list of structs of the two strings role and content",
            )
        self._name = name
        self.columns = (name,)

    def build(self, row: dict[str, Any], chat: bool) -> list[Message] | RowError:
        """Return the row's messages, or why it has none. `chat` is always True: plans see to it."""
        messages: list[Message] | None = row[self._name]
        if messages is None:
            return RowError(RowErrorKind.NULL_INPUT, f"column {self._name!r} is null")
        if not messages:
            return RowError(RowErrorKind.PROMPT_ERROR, f"column {self._name!r} has no messages")
        for index, message in enumerate(messages):
            if message is None or message["role"] is None or message["content"] is None:
                return RowError(RowErrorKind.NULL_INPUT, f"column {self._name!r}: message {index} has a null")
        return messages


def _holds_messages(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    if not any(is_list(kind) for is_list in lists):
        return False
    inner = kind.value_type
    if not pa.types.is_struct(inner) or {field.name for field in inner} != set(_KEYS):
        return False
    return all(is_text(field.type) for field in inner)
