"""An engine without a model: deterministic text and vectors, and every way to misbehave that a test needs."""

from __future__ import annotations

import hashlib
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from batch_sdk.engines.base import (
    EmbedRequest,
    EmbedResult,
    Engine,
    EngineInfo,
    GenerateRequest,
    GenerateResult,
    Request,
    Result,
    Task,
)
from batch_sdk.engines.dummy_json import break_json, draw_json
from batch_sdk.engines.token_rows import cut, refusals
from batch_sdk.errors import EngineDiedError, EngineError, OptionError, RowError, RowErrorKind, check_names
from batch_sdk.truncation import truncated

# 32 words: five bits of the prompt's hash choose each one.
_WORDS = (
    "amber basin cedar delta ember fjord grove harbor inlet juniper kelp lagoon meadow north oasis prairie "
    "quarry ridge summit tundra upland valley willow xenon yarrow zephyr birch canyon dune estuary fern glade"
).split()


@dataclass(frozen=True, slots=True)
class DummyOptions:
    """Options of the dummy engine.

    Attributes:
        words: words in a response, if `max_new_tokens` allows; under a JSON schema it is as long as it is.
        broken_json: share of the responses under a JSON schema that do not fit it.
        embedding_size: floats in a vector.
        max_input_tokens: longer inputs (in words) end as `too_long`; None is no limit.
        chat_template: whether it claims to have one.
        shuffle: results come back in a random order, some of those in flight at a time.
        seed: of the shuffling.
        delay_seconds: how long each `wait` takes.
        vocabulary: token ids are below this; None is any.
        fail_on: texts that contain this end as `rejected`.
        die_on: on an input that contains this text the engine dies, until it is started again.
        die_after_requests: this many requests are answered, then the engine is dead; None is never.
    """

    words: int = 8
    broken_json: float = 0.0
    embedding_size: int = 16
    max_input_tokens: int | None = None
    vocabulary: int | None = None
    chat_template: bool = True
    shuffle: bool = False
    seed: int = 0
    delay_seconds: float = 0.0
    fail_on: str | None = None
    die_on: str | None = None
    die_after_requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("words", "embedding_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise OptionError(
                    f"dummy engine option {name}={getattr(self, name)!r}", "a whole number from 1"
                )


class DummyEngine(Engine):
    """Answers at once, from a hash of the input. A token is a word.

    Of the grammars it knows JSON schemas; it pays no attention to the others.

    Tests read `peak_rows_in_flight`, and `peak_span_rows`: the largest distance from the oldest row in flight
    to the newest one submitted, plus one.
    """

    def __init__(self, *, model: str, task: Task, options: dict[str, Any]) -> None:
        super().__init__(model=model, task=task, options=options)
        check_names(options, [f.name for f in fields(DummyOptions)], "option of the dummy engine")
        self.options = DummyOptions(**options)
        self.answered = 0
        self.peak_rows_in_flight = 0
        self.peak_span_rows = 0
        self.closed = False
        self._started = False
        self._random = random.Random(self.options.seed)
        self._in_flight: dict[int, Request] = {}
        self._rows_in_flight = 0

    @property
    def started(self) -> bool:
        """Whether it was started and not closed."""
        return self._started

    @property
    def info(self) -> EngineInfo:
        """Facts from the options."""
        embeds = self.task == "embed"
        return EngineInfo(
            model=self.model,
            max_input_tokens=self.options.max_input_tokens,
            has_chat_template=self.options.chat_template,
            embedding_size=self.options.embedding_size if embeds else None,
            unit_vectors=embeds,
        )

    def start(self) -> None:
        """Nothing to load."""
        self._started, self.closed = True, False

    def submit(self, requests: Sequence[Request]) -> None:
        """Remember the requests."""
        if not self._started:
            raise EngineError("submit() on an engine that is not started", "start() first")
        for request in requests:
            if request.position in self._in_flight:
                raise EngineError(f"position {request.position} was submitted twice", "each position once")
            self._in_flight[request.position] = request
            self._rows_in_flight += request.rows
        self.peak_rows_in_flight = max(self.peak_rows_in_flight, self._rows_in_flight)
        if requests:
            newest = requests[-1].position + requests[-1].rows
            # Without shuffling the first key is the oldest; looking for the minimum each time would be
            # quadratic.
            oldest = min(self._in_flight) if self.options.shuffle else next(iter(self._in_flight))
            self.peak_span_rows = max(self.peak_span_rows, newest - oldest)

    def wait(self) -> list[Result]:
        """Answer all requests in flight, or with `shuffle` a random part of them in a random order."""
        if not self._in_flight:
            raise EngineError("wait() with nothing in flight", "submit() first")
        if self.options.delay_seconds:
            time.sleep(self.options.delay_seconds)
        die_on = self.options.die_on
        if die_on is not None and any(die_on in _text(request) for request in self._in_flight.values()):
            raise EngineDiedError(f"the dummy engine died on {die_on!r}, as it was told to")
        positions = list(self._in_flight)
        if self.options.shuffle:
            self._random.shuffle(positions)
            positions = positions[: self._random.randint(1, len(positions))]
        limit = self.options.die_after_requests
        if limit is not None:
            if self.answered >= limit:
                raise EngineDiedError(f"the dummy engine died after {limit} requests, as it was told to")
            positions = positions[: limit - self.answered]
        self.answered += len(positions)
        results: list[Result] = []
        for position in positions:
            request = self._in_flight.pop(position)
            self._rows_in_flight -= request.rows
            results.append(
                self._embed(request) if isinstance(request, EmbedRequest) else self._generate(request)
            )
        return results

    def abandon(self) -> None:
        """Forget what is in flight."""
        self._in_flight.clear()
        self._rows_in_flight = 0

    def close(self) -> None:
        """Forget everything."""
        self.abandon()
        self._started, self.closed = False, True

    def _refusal(self, text: str, tokens: int) -> RowError | None:
        limit, fail_on = self.options.max_input_tokens, self.options.fail_on
        if fail_on is not None and fail_on in text:
            return RowError(RowErrorKind.REJECTED, f"the input contains {fail_on!r}")
        if limit is not None and tokens > limit:
            return RowError(RowErrorKind.TOO_LONG, f"the input has {tokens} tokens, the model takes {limit}")
        return None

    def _generate(self, request: GenerateRequest) -> GenerateResult:
        prompt = request.prompt
        if not isinstance(prompt, str):
            prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        tokens = prompt.split()
        limit = self.options.max_input_tokens
        cut = 0
        if limit is not None and request.on_too_long != "error" and len(tokens) > limit:
            left = truncated(tokens, limit, request.on_too_long)
            cut, tokens, prompt = len(tokens) - limit, list(left), " ".join(left)
        error = self._refusal(prompt, len(tokens))
        if error is not None:
            return GenerateResult(request.position, None, None, None, None, error)
        n = request.sampling.get("n", 1)
        samples = [self._sample(prompt, index, request) for index in range(n)]
        text, count, reason, logprobs, ids = samples[0]
        if n > 1:
            text, counts, reason, logprobs, ids = map(list, zip(*samples, strict=True))
            count = sum(counts)
        return GenerateResult(request.position, text, len(tokens), count, reason, None, logprobs, ids, cut)

    def _sample(self, prompt: str, index: int, request: GenerateRequest) -> tuple[Any, Any, Any, Any, Any]:
        seed = (prompt if index == 0 else f"{prompt}\0{index}").encode()
        sampling = request.sampling
        allowed: int = sampling.get("max_new_tokens", self.options.words)
        if "json_schema" in sampling:
            words, reason = self._json_words(sampling["json_schema"], seed, allowed)
        else:
            digest = hashlib.shake_128(seed).digest(min(self.options.words, allowed))
            words = [_WORDS[byte & 31] for byte in digest]
            reason = "length" if allowed < self.options.words else "stop"
        text = " ".join(words)
        if not request.logprobs:
            return text, len(words), reason, None, None
        ids = [zlib.crc32(word.encode()) & 0x7FFF for word in words]
        return text, len(words), reason, [-(number % 97) / 16 for number in ids], ids

    def _json_words(self, schema: str, seed: bytes, allowed: int) -> tuple[list[str], str]:
        draws = random.Random(hashlib.shake_128(seed).digest(16))
        text = draw_json(schema, draws, _WORDS)
        if draws.random() < self.options.broken_json:
            text = break_json(text, draws)
        words = text.split(" ")
        return words[:allowed], "length" if allowed < len(words) else "stop"

    def _embed(self, request: EmbedRequest) -> EmbedResult:
        limit = self.options.max_input_tokens
        if request.ids is not None:
            rows = request.ids if limit is None or not request.truncate else cut(request.ids, limit)
            keys = [np.array(ids, np.int32).tobytes() for ids in rows.to_lists()]
            errors = refusals(rows, limit, self.options.vocabulary)
            return EmbedResult(request.position, self._vectors(keys), rows.lengths, errors)
        texts = request.texts
        if request.truncate and limit is not None:
            texts = [" ".join(text.split()[:limit]) for text in texts]
        tokens = np.array([len(text.split()) for text in texts], dtype=np.int32)
        errors = [self._refusal(text, int(count)) for text, count in zip(texts, tokens, strict=True)]
        vectors = self._vectors([text.encode() for text in texts])
        return EmbedResult(request.position, vectors, tokens, errors)

    def _vectors(self, keys: Sequence[bytes]) -> np.ndarray:
        size = self.options.embedding_size
        raw = b"".join([hashlib.shake_128(key).digest(2 * size) for key in keys])
        vectors = np.frombuffer(raw, dtype="<i2").reshape(len(keys), size).astype(np.float32) + 0.5
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _text(request: Request) -> str:
    if isinstance(request, EmbedRequest):
        return str(request.texts if request.ids is None else request.ids.to_lists())
    return str(request.prompt)
