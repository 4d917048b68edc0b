"""OpenAI's protocol as data: what to send for a request, and what an answer means. Nothing is sent here.

Judged by status, `code` and `type`, never by the text of a message.
"""

from __future__ import annotations

import base64
import math
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import numpy as np
import orjson

from batch_sdk.engines.base import GenerateRequest, GenerateResult
from batch_sdk.errors import EngineError, RowError, RowErrorKind

# The SDK's (SGLang's) name -> OpenAI's, or where OpenAI has none, that of the servers' common extension.
_RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
# Left out where they say nothing: a strict server refuses names that OpenAI does not have.
_DEFAULTS = {"min_new_tokens": 0, "ignore_eos": False, "skip_special_tokens": True}
_REFUSED_STATUS = (400, 404, 413, 422)
_AGAIN_STATUS = (408, 409, 425, 429)
_BUSY_STATUS = 429
_KEY_STATUS = (401, 403)
# OpenAI's code, and llama.cpp's type. SGLang and vLLM have neither: there it is `rejected`.
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
_SHOWN_CHARACTERS = 500
_MOST_TOKENS = 2**31 - 1
# A server that asks for more does not mean it: its row would hold up the job for good.
_LONGEST_WAIT_SECONDS = 3600.0


class Again(NamedTuple):
    """A failure that another try may mend.

    `after_seconds` is how long the server wants to be left alone; `busy` says that the server, not the row, is
    the reason.
    """

    reason: str
    after_seconds: float = 0.0
    busy: bool = False


class Vectors(NamedTuple):
    """An embeddings answer: float32 [n, d], and the tokens of all n texts together (None if not said)."""

    values: np.ndarray
    tokens: int | None


def generate_body(model: str, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
    """Return the path below the base URL and the body for one row."""
    body: dict[str, Any] = {"model": model}
    for name, value in request.sampling.items():
        if name not in _DEFAULTS or value != _DEFAULTS[name]:
            body[_RENAMED.get(name, name)] = value
    if "json_schema" in body:
        # The one constraint that OpenAI has a name for; SGLang's chats know it by no other.
        schema = {"name": "response", "schema": orjson.loads(body.pop("json_schema")), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(request.prompt, str):
        body["prompt"] = request.prompt
        return "completions", body
    body["messages"] = request.prompt
    return "chat/completions", body


def judge(url: str, status: int, retry_after: str | None, raw: bytes) -> dict[str, Any] | RowError | Again:
    """Return the answer's object, why the row is refused, or why to try again.

    Args:
        url: for messages.
        status: HTTP's.
        retry_after: the header of that name.
        raw: the body.

    Raises:
        EngineError: the key is refused, or the status is nothing that one row could cause.
    """
    if status == 200:
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError:
            answer = None
        return answer if isinstance(answer, dict) else Again("200 with a body that is no JSON object")
    message, names = _error(raw)
    said = f"{status}: {message}" if message else str(status)
    if status in _KEY_STATUS:
        raise EngineError(
            f"{url} refused the request's key ({said})",
            "a valid API key",
            "pass api_key_env=NAME or api_key=...",
        )
    if status in _AGAIN_STATUS or status >= 500:
        return Again(said, _seconds(retry_after), busy=status == _BUSY_STATUS)
    if status in _REFUSED_STATUS:
        return RowError(RowErrorKind.TOO_LONG if names & _TOO_LONG else RowErrorKind.REJECTED, said)
    raise EngineError(
        f"{url} answered {said}",
        "an OpenAI-compatible server",
        "check the engine's url, e.g. http://host:30000",
    )


def _error(raw: bytes) -> tuple[str, set[Any]]:
    """Return the message and the `code` and `type` of an error's body, OpenAI's nested or SGLang's flat
    form."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw[:_SHOWN_CHARACTERS].decode("utf-8", "replace").strip(), set()
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error)[:_SHOWN_CHARACTERS], set()
    message = str(error.get("message") or error.get("detail") or "")
    return message[:_SHOWN_CHARACTERS], {str(error.get("code")), str(error.get("type"))}


def _seconds(retry_after: str | None) -> float:
    """Return what a Retry-After header asks for, an hour at most; it holds seconds or a date."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), _LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else 0.0


def generated(position: int, answer: dict[str, Any], samples: int = 1) -> GenerateResult:
    """Return a row's result from the answer to a chat or a completion.

    Args:
        position: the row's.
        answer: the server's.
        samples: how many were asked for, `n`.
    """
    try:
        choices = [_choice(choice) for choice in answer["choices"]]
    except (KeyError, IndexError, TypeError, AttributeError):
        return GenerateResult(position, None, None, None, None, _unreadable(answer, "choices of text"))
    if len(choices) < samples or not choices:
        return GenerateResult(position, None, None, None, None, _unreadable(answer, f"{samples} choices"))
    for _, reason in choices:
        if reason in ("abort", "content_filter"):
            error = RowError(RowErrorKind.ABORTED, f"the server ended the response with {reason!r}")
            return GenerateResult(position, None, None, None, None, error)
    texts, reasons = [text for text, _ in choices], [reason for _, reason in choices]
    usage = answer.get("usage")
    counts = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = _count(details, "cached_tokens")
    if samples == 1:
        return GenerateResult(position, texts[0], *counts, reasons[0], cached_tokens=cached)
    listed = [str(reason) for reason in reasons[:samples]]
    return GenerateResult(position, texts[:samples], *counts, listed, cached_tokens=cached)


def _choice(choice: dict[str, Any]) -> tuple[str, str | None]:
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    reason = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise TypeError("a choice that is no text")
    # A response that ended while the model was still thinking has null for its text.
    return text or "", reason


def _count(fields: Any, name: str) -> int | None:
    """Return a number of tokens; None where the server gives none, or something else."""
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def embedded(answer: dict[str, Any], count: int) -> Vectors | RowError:
    """Return the vectors of `count` texts, put into the order that the answer's indices say."""
    try:
        items = sorted(answer["data"], key=lambda item: item["index"])
        values = np.array([_vector(item["embedding"]) for item in items], np.float32)
        indices = [item["index"] for item in items]
    except (KeyError, TypeError, ValueError):
        return _unreadable(answer, "data")
    if indices != list(range(count)) or values.ndim != 2:
        return RowError(
            RowErrorKind.SERVER_ERROR,
            f"{len(items)} vectors for {count} texts, with indices {indices[:5]}...",
        )
    return Vectors(values, _count(answer.get("usage"), "prompt_tokens"))


def _vector(embedding: str | list[float]) -> Any:
    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else embedding


def _unreadable(answer: dict[str, Any], wanted: str) -> RowError:
    # Gateways are known to answer 200 with an error inside.
    message, _ = _error(orjson.dumps(answer))
    shown = message or orjson.dumps(answer)[:_SHOWN_CHARACTERS].decode("utf-8", "replace")
    return RowError(RowErrorKind.SERVER_ERROR, f"an answer without {wanted}: {shown}")
