"""OpenAI's `POST /v1/embeddings`: bytes of a request to a call, vectors to bytes of an answer. No server in here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pybase64

from arctic_sglang.embedding.tokens import InputError

# Fields with which SGLang's own handler does something that this road does not do.
_OTHERS = ("lora_path", "embed_overrides", "embed_override_token_id", "priority", "rid")
_TRUNCATE = {None: False, False: False, True: True, "NONE": False, "END": True}
# Components of one piece of an answer: about a millisecond of the event loop's time.
_PIECE_FLOATS = 1 << 16
_PIECE_FLOATS_BASE64 = 1 << 20


@dataclass(slots=True)
class EmbeddingCall:
    """A request that takes this road.

    Attributes:
        texts: or None.
        ids: rows of token ids, or None.
        model: as the request names it.
        base64: the form of the vectors in the answer; else numbers.
        dimensions: components to keep; None: all.
        truncate: cut what is too long.
        prompt_name: the checkpoint's prompt to put before each text.
    """

    texts: list[str] | None
    ids: list[list[int]] | None
    model: str | None
    base64: bool = False
    dimensions: int | None = None
    truncate: bool = False
    prompt_name: str | None = None


def parse(body: bytes) -> EmbeddingCall | None:
    """What a request's body asks for; None leaves the request to SGLang's own handler and its errors.

    Raises:
        InputError: the request is one for this road, and something in it is wrong.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    get = fields.get
    model = get("model")
    texts, ids = _inputs(get("input"))
    if (
        (texts is None and ids is None)
        or any(get(name) is not None for name in _OTHERS)
        or _names_adapter(model)
    ):
        for name in ("truncate", "prompt_name"):
            if get(name) is not None:
                msg = f"{name} is for plain texts without {', '.join(_OTHERS)} or an adapter in the model's name"
                raise InputError(msg)
        return None
    call = EmbeddingCall(texts, ids, model)
    call.base64 = _choice(
        "encoding_format", get("encoding_format"), {None: False, "float": False, "base64": True}
    )
    call.truncate = _choice("truncate", get("truncate"), _TRUNCATE)
    call.dimensions = get("dimensions")
    if call.dimensions is not None and type(call.dimensions) is not int:
        msg = f"dimensions is {call.dimensions!r}; an integer is wanted"
        raise InputError(msg)
    call.prompt_name = get("prompt_name")
    if call.prompt_name is not None and not (isinstance(call.prompt_name, str) and texts is not None):
        msg = "prompt_name is the name of a prompt that is put before texts; send texts, not token ids"
        raise InputError(msg)
    return call


def answer(vectors: np.ndarray, tokens: int, model: str, *, base64: bool) -> Iterator[bytes]:
    """The body of an answer in pieces of about a millisecond's work each; nearly always one.

    Args:
        vectors: float32 `[rows, width]`.
        tokens: of the prompts.
        model: name of the model that answers.
        base64: vectors as base64 of little-endian float32 instead of lists of numbers.
    """
    vectors = np.ascontiguousarray(vectors, "<f4")
    step = max(1, (_PIECE_FLOATS_BASE64 if base64 else _PIECE_FLOATS) // max(1, vectors.shape[1]))
    piece = _piece_base64 if base64 else _piece_floats
    usage = orjson.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    head, tail = b'{"object":"list","data":[', b"]," + usage[1:]
    for first in range(0, max(1, len(vectors)), step):
        last = first + step >= len(vectors)
        yield head + piece(vectors[first : first + step], first) + (tail if last else b",")
        head = b""


def error(message: str, *, status: int = 400) -> bytes:
    """An error's body in the shape of SGLang's own."""
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    return orjson.dumps({"object": "error", "message": message, "type": kind, "param": None, "code": status})


def _inputs(given: Any) -> tuple[list[str] | None, list[list[int]] | None]:
    """`input` as texts or as rows of ids; neither where it is neither."""
    if isinstance(given, str):
        if not given or given.isspace():
            msg = "Input cannot be empty or whitespace only"
            raise InputError(msg)
        return [given], None
    if not isinstance(given, list):
        return None, None
    if not given:
        msg = "Input cannot be empty"
        raise InputError(msg)
    kinds = set(map(type, given))
    if kinds == {str}:
        for index, text in enumerate(given):
            if not text or text.isspace():
                msg = f"Input at index {index} cannot be empty or whitespace only"
                raise InputError(msg)
        return given, None
    if kinds == {int}:
        return None, [given]
    if kinds == {list}:
        return None, given
    return None, None


def _names_adapter(model: Any) -> bool:
    """Whether SGLang would find a LoRA adapter in it (`base:adapter`), or would refuse it."""
    return model is not None and (not isinstance(model, str) or ":" in model)


def _choice(name: str, given: Any, choices: dict[Any, bool]) -> bool:
    for choice, value in choices.items():
        if type(choice) is type(given) and choice == given:
            return value
    known = ", ".join(str(orjson.dumps(c), "ascii") for c in choices if c is not None)
    msg = f"{name} is {given!r}; it must be one of {known}"
    raise InputError(msg)


def _piece_base64(vectors: np.ndarray, first: int) -> bytes:
    encode = pybase64.b64encode
    return b",".join(
        [
            b'{"object":"embedding","index":%d,"embedding":"%b"}' % (index, encode(vector))
            for index, vector in enumerate(vectors, first)
        ]
    )


def _piece_floats(vectors: np.ndarray, first: int) -> bytes:
    rows = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors, first)
    ]
    return orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
