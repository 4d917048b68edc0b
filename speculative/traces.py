"""Recorded traffic: prompts and what a model answered, as token ids. One JSON object per line."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from speculative.base import Int32

WANTED = (
    '{"prompt": ..., "response": ...} or {"messages": [...], "response": ...}, where prompt and response are texts '
    "(with --tokenizer) or lists of token ids"
)
"""What a line has to be, for messages of errors."""

_MOST_ID = 2**31 - 1


class TraceError(ValueError):
    """A line, or a file, that cannot be used."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer of transformers."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to ids."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        """Messages to text."""
        ...


@dataclass(frozen=True, slots=True)
class Trace:
    """A request: int32 [tokens] each; the response has at least one."""

    prompt: Int32
    response: Int32


def read(path: str | Path, tokenizer: Tokenizer | None = None, most: int | None = None) -> list[Trace]:
    """Reads a file of traces. Empty responses are left out: nothing was decoded for them.

    Args:
        path: JSON lines.
        tokenizer: for texts.
        most: stop after so many.

    Raises:
        TraceError: a line is something else, or there is none, with the file and the number of the line.
    """
    traces: list[Trace] = []
    for place, row in _rows(path):
        trace = _trace(row, place, tokenizer)
        if len(trace.response):
            traces.append(trace)
        if most is not None and len(traces) == most:
            break
    if not traces:
        msg = f"{path} has no trace with a response; wanted are lines like {WANTED}"
        raise TraceError(msg)
    return traces


def _rows(path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    msg = f"{place} is not JSON ({error}); wanted is {WANTED}"
                    raise TraceError(msg) from error
                if not isinstance(row, dict):
                    msg = f"{place} is {type(row).__name__}, not an object; wanted is {WANTED}"
                    raise TraceError(msg)
                yield place, row
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise TraceError(msg) from error


def _trace(row: Mapping[str, Any], place: str, tokenizer: Tokenizer | None) -> Trace:
    if "response" not in row or ("prompt" in row) == ("messages" in row):
        msg = f"{place} has the keys {sorted(row)[:8]}; wanted is {WANTED}"
        raise TraceError(msg)
    response = _ids(_answer(row["response"]), f"{place}, response", tokenizer, special=False)
    if "prompt" in row:
        return Trace(_ids(row["prompt"], f"{place}, prompt", tokenizer, special=True), response)
    return Trace(_messages(row["messages"], f"{place}, messages", tokenizer), response)


def _answer(told: object) -> object:
    """The text within an answer of OpenAI's API; anything else as it is."""
    match told:
        case {"choices": [{"message": {"content": str(text)}}, *_]} | {"choices": [{"text": str(text)}, *_]}:
            return text
    return told


def _ids(told: object, place: str, tokenizer: Tokenizer | None, *, special: bool) -> Int32:
    if isinstance(told, str):
        ids = _with(tokenizer, place).encode(told, add_special_tokens=special)
        return np.array(ids, np.int32)
    if isinstance(told, list) and all(type(one) is int and 0 <= one <= _MOST_ID for one in told):
        return np.array(told, np.int32)
    msg = f"{place} is {str(told)[:60]!r}; wanted is a text (with --tokenizer) or a list of token ids"
    raise TraceError(msg)


def _messages(told: object, place: str, tokenizer: Tokenizer | None) -> Int32:
    render: Callable[..., str] = _with(tokenizer, place).apply_chat_template
    try:
        text = render(told, add_generation_prompt=True, tokenize=False)
    # A chat template is a program of the model's, which may raise anything.
    except Exception as error:
        msg = f"{place}: the tokenizer's chat template does not take them ({type(error).__name__}: {error})"
        raise TraceError(msg) from error
    # The template writes the special tokens itself.
    return _ids(text, place, tokenizer, special=False)


def _with(tokenizer: Tokenizer | None, place: str) -> Tokenizer:
    if tokenizer is None:
        msg = f"{place} is text: name the model's tokenizer with --tokenizer, or give lists of token ids"
        raise TraceError(msg)
    return tokenizer
