"""Lines of an OpenAI batch input file, read strictly: what is not understood is refused by name."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from batch_sdk.engines.base import Message, Prompt, Task
from batch_sdk.errors import OptionError
from batch_sdk.sampling import SamplingParams

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
TASKS: dict[str, Task] = {CHAT: "generate", COMPLETIONS: "generate", EMBEDDINGS: "embed"}
"""URL -> what the engine has to do."""

_COMPLETION_TOKENS = 16
"""What the API gives a request to /v1/completions that sets no `max_tokens`."""
_LINE_FIELDS = ("custom_id", "method", "url", "body")
# The API's name -> ours. The second row is what vLLM and SGLang add to the API.
_SAMPLING = {
    **{name: name for name in ("temperature", "top_p", "stop", "seed")},
    **{name: name for name in ("frequency_penalty", "presence_penalty")},
    **{name: name for name in ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos")},
    "skip_special_tokens": "skip_special_tokens",
    "min_tokens": "min_new_tokens",
}
_LENGTHS = {CHAT: ("max_completion_tokens", "max_tokens"), COMPLETIONS: ("max_tokens",)}
# Fields that change nothing here: names for the provider's own books. The model is the one that runs.
_IDLE = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Fields that are fine as long as they ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "encoding_format": ("float",),
    "suffix": ("",),
}
_NEUTRAL_OF: dict[str, tuple[str, ...]] = {
    CHAT: ("n", "stream", "logprobs", "logit_bias", "tools", "response_format"),
    COMPLETIONS: ("n", "best_of", "stream", "echo", "logit_bias", "suffix"),
    EMBEDDINGS: ("encoding_format",),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Call(NamedTuple):
    """One good line.

    Attributes:
        custom_id: the line's own.
        url: a key of `TASKS`.
        prompt: text or messages; None for embeddings.
        sampling: under SGLang's names; empty for embeddings.
        texts: what to embed; empty for the others.
    """

    custom_id: str
    url: str
    prompt: Prompt | None
    sampling: dict[str, Any]
    texts: list[str]


class Refusal(NamedTuple):
    """A line that cannot run: its `custom_id` if it has one, why, and the field at fault if it is one."""

    custom_id: str | None
    message: str
    param: str | None = None


class _Bad(Exception):
    """Why a body cannot run; becomes a `Refusal`."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def parse(line: bytes, default_max_tokens: int) -> Call | Refusal:
    """Read one line.

    Args:
        line: not blank.
        default_max_tokens: for a chat that sets no limit of its own.
    """
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return Refusal(None, f"the line is not JSON: {error}")
    if not isinstance(entry, dict):
        return Refusal(None, "the line is not a JSON object")
    custom_id = entry.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return Refusal(None, f"custom_id={custom_id!r}, wanted a string", "custom_id")
    try:
        return _call(custom_id, entry, default_max_tokens)
    except _Bad as error:
        return Refusal(custom_id, str(error), error.param)
    except OptionError as error:
        return Refusal(custom_id, str(error))


def _call(custom_id: str, entry: dict[str, Any], default_max_tokens: int) -> Call:
    unknown = [name for name in entry if name not in _LINE_FIELDS]
    if unknown:
        raise _Bad(f"unknown fields beside the body: {', '.join(sorted(unknown))}", unknown[0])
    url, body = entry.get("url"), entry.get("body")
    if entry.get("method") != "POST":
        raise _Bad(f"method={entry.get('method')!r}, wanted 'POST'", "method")
    if not isinstance(url, str) or url not in TASKS:
        raise _Bad(f"url={url!r}, wanted one of: {', '.join(TASKS)}", "url")
    if not isinstance(body, dict):
        raise _Bad("the body is not a JSON object", "body")
    # In this API a null is as good as no field.
    fields = {name: value for name, value in body.items() if value is not None and name not in _IDLE}
    if url == EMBEDDINGS:
        texts = _texts(fields.pop("input", None))
        _refuse_rest(fields, url)
        return Call(custom_id, url, None, {}, texts)
    prompt: Prompt = (
        _messages(fields.pop("messages", None)) if url == CHAT else _prompt(fields.pop("prompt", None))
    )
    sampling = _sampling(fields, url, default_max_tokens)
    _refuse_rest(fields, url)
    return Call(custom_id, url, prompt, sampling, [])


def _refuse_rest(fields: dict[str, Any], url: str) -> None:
    """Refuse what is left of a body, all names at once."""
    for name in _NEUTRAL_OF[url]:
        # Compared with the type too: True == 1.
        neutral = [repr(value) for value in _NEUTRAL[name]]
        if name in fields:
            value = fields.pop(name)
            if repr(value) not in neutral:
                raise _Bad(f"{name}={value!r} is not supported, only {neutral[0]}", name)
    if fields:
        raise _Bad(f"fields of the body that are not supported: {', '.join(sorted(fields))}", min(fields))


def _sampling(fields: dict[str, Any], url: str, default_max_tokens: int) -> dict[str, Any]:
    options = {ours: fields.pop(name) for name, ours in _SAMPLING.items() if name in fields}
    stops = options.get("stop")
    for stop in stops if isinstance(stops, list) else [stops]:
        if isinstance(stop, str):
            _unicode(stop, "stop")
    limits = [fields.pop(name) for name in _LENGTHS[url] if name in fields]
    if len(limits) > 1:
        raise _Bad("max_tokens together with max_completion_tokens, wanted one of them", "max_tokens")
    default = default_max_tokens if url == CHAT else _COMPLETION_TOKENS
    options["max_new_tokens"] = limits[0] if limits else default
    return SamplingParams.from_mapping(options).to_request()


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _Bad("messages is not a list with at least one message", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise _Bad(f"{where} is not an object", where)
    unknown = sorted(
        name for name in message if name not in ("role", "content") and message[name] is not None
    )
    if unknown:
        raise _Bad(f"fields of {where} that are not supported: {', '.join(unknown)}", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _Bad(f"{where}.role={role!r}, wanted one of: {', '.join(_ROLES)}", where)
    return {"role": _ROLES[role], "content": _content(message.get("content"), where)}


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return _unicode(content, where)
    if not isinstance(content, list) or not content:
        raise _Bad(f"{where}.content is neither a string nor a list of text parts", where)
    for part in content:
        good = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not good:
            raise _Bad(f"{where}.content has a part that is not text", where)
    return _unicode("".join(part["text"] for part in content), where)


def _unicode(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Bad(f"{where} has half of a surrogate pair, which is no character", where) from error
    return text


def _prompt(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise _Bad("prompt is not a string; several prompts and token ids are not supported", "prompt")
    return _unicode(value, "prompt")


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _Bad("input is neither a string nor a list of strings; token ids are not supported", "input")
    return [_unicode(text, "input") for text in texts]
