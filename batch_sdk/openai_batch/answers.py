"""Lines of an OpenAI batch output file."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from batch_sdk.engines.base import EmbedResult, GenerateResult
from batch_sdk.errors import RowError, RowErrorKind
from batch_sdk.openai_batch.requests import CHAT, Call, Refusal

_SERVER_ERRORS = (RowErrorKind.ABORTED, RowErrorKind.SERVER_ERROR, RowErrorKind.ENGINE_DIED)


class Answers:
    """Writes answers of one job.

    Args:
        model: the name that answers give to the model.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._created = int(time.time())

    def refused(self, number: int, refusal: Refusal) -> str:
        """Return the line for a request that made no sense; `number` is its line, which names it at need."""
        custom_id = refusal.custom_id if refusal.custom_id is not None else f"line-{number}"
        return _error(number, custom_id, 400, "invalid_request", refusal.message, refusal.param)

    def failed(self, number: int, call: Call, error: RowError) -> str:
        """Return the line for a request that the engine could not do."""
        status = 500 if error.kind in _SERVER_ERRORS else 400
        return _error(number, call.custom_id, status, error.kind.value, error.message, None)

    def generated(self, number: int, call: Call, result: GenerateResult) -> str:
        """Return the line for a text."""
        chat = call.url == CHAT
        text: dict[str, Any] = {"text": result.text}
        if chat:
            text = {"message": {"role": "assistant", "content": result.text}}
        choice = {"index": 0, **text, "logprobs": None, "finish_reason": result.finish_reason}
        prompt, completion = result.prompt_tokens or 0, result.completion_tokens or 0
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{_key(number, call.custom_id)}",
            "object": "chat.completion" if chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }
        return _line(number, call.custom_id, 200, body, None)

    def embedded(self, number: int, call: Call, result: EmbedResult) -> str:
        """Return the line for vectors; none of them has an error."""
        tokens = prompt_tokens(result)
        data = [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(result.vectors)
        ]
        body = {
            "object": "list",
            "data": data,
            "model": self._model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return _line(number, call.custom_id, 200, body, None)


def prompt_tokens(result: EmbedResult) -> int:
    """Return the tokens of all texts of a request, whether the engine counts them one by one or together."""
    return int(result.prompt_tokens.clip(0).sum()) + result.uncounted_tokens


def _key(number: int, custom_id: str) -> str:
    """The same request of the same file has the same key in every run."""
    return hashlib.sha256(f"{number} {custom_id}".encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _error(number: int, custom_id: str, status: int, code: str, message: str, param: str | None) -> str:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return _line(number, custom_id, status, body, {"code": code, "message": message})


def _line(
    number: int, custom_id: str, status: int, body: dict[str, Any], error: dict[str, str] | None
) -> str:
    key = _key(number, custom_id)
    answer = {
        "id": f"batch_req_{key}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{key}", "body": body},
        "error": error,
    }
    text = json.dumps(answer, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, from the request: escaped, it can be written
        return json.dumps(answer)
    return text
