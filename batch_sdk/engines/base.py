"""The contract between a job and whatever computes its rows.

An engine takes requests, works on as many at once as it likes, and hands results back in any order. It knows
nothing of tables. Rows that it cannot do come back with a `RowError`; when it cannot go on at all, it raises
`EngineError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.errors import RowError
from batch_sdk.truncation import OnTooLong

if TYPE_CHECKING:
    from arctic_sglang.embedding.checkpoint import PoolingSpec

Task = Literal["generate", "embed"]
Message = dict[str, str]
"""`{"role": "system" | "user" | ..., "content": text}`."""
Prompt = str | list[Message]
"""Text that goes to the model as it is, or messages that the engine puts through the model's chat
template."""


class GenerateRequest(NamedTuple):
    """One row to generate for. `sampling` is shared between requests: engines must not change it.

    `sampling` has SGLang's names; with `n` over 1 the one result holds n samples. `logprobs` asks for the
    chosen tokens. `on_too_long` says what becomes of a prompt that leaves no room for `max_new_tokens`.
    """

    position: int
    prompt: Prompt
    sampling: dict[str, Any]
    logprobs: bool = False
    on_too_long: OnTooLong = "error"

    @property
    def rows(self) -> int:
        """Rows in this request: always 1."""
        return 1


class GenerateResult(NamedTuple):
    """One finished row: either `text` and `finish_reason`, or `error`. Token counts are None where
    unknown.

    With `n` over 1, `text`, `finish_reason`, `logprobs` and `token_ids` are lists of n, and
    `completion_tokens` is the sum. `logprobs` and `token_ids` are the chosen tokens', where they were asked
    for. `prompt_truncated` is the number of prompt tokens that were cut; `prompt_tokens` counts the rest.
    `cached_tokens` is how many of those were in the engine's prefix cache, None where it does not say. A chunk
    replaces `text` by its typed value.
    """

    position: int
    text: Any
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | list[str] | None
    error: RowError | None = None
    logprobs: list[Any] | None = None
    token_ids: list[Any] | None = None
    prompt_truncated: int | None = None
    cached_tokens: int | None = None


class EmbedRequest(NamedTuple):
    """A block of rows to embed. `position` identifies the block: it is unique among those in flight.

    With `truncate` a text over the model's window loses its end, as in sentence-transformers, rather than
    come back as `too_long`. Where `ids` is given, the rows are its token ids and `texts` is empty: the model gets
    them as they are, and `truncate` drops the last of them.
    """

    position: int
    texts: list[str]
    truncate: bool = False
    ids: TokenRows | None = None

    @property
    def rows(self) -> int:
        """Rows in this block."""
        return len(self.texts) if self.ids is None else self.ids.rows

    def slice(self, first: int, last: int) -> EmbedRequest:
        """Return rows `first` to `last`, exclusive, as a block at their own position."""
        ids = None if self.ids is None else self.ids.slice(first, last)
        return EmbedRequest(self.position + first, self.texts[first:last], self.truncate, ids)


class EmbedResult(NamedTuple):
    """A finished block of n rows.

    `vectors` is float32 [n, d] and owned by the receiver; `prompt_tokens` is an int array [n], with -1 where a
    row's count is unknown; `errors` has n entries. Where `errors[i]` is set, `vectors[i]` and
    `prompt_tokens[i]` mean nothing. `uncounted_tokens` is the sum over the rows whose own count is unknown.
    """

    position: int
    vectors: np.ndarray
    prompt_tokens: np.ndarray
    errors: list[RowError | None]
    uncounted_tokens: int = 0


Request = GenerateRequest | EmbedRequest
Result = GenerateResult | EmbedResult


class Lack(NamedTuple):
    """An option of jobs that an engine has no way to follow: whose, what would be needed, what to do."""

    engine: str
    wanted: str
    remedy: str


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine says of its model.

    Attributes:
        model: path or name.
        max_input_tokens: longest input in tokens; None if there is no known limit.
        has_chat_template: whether prompts may be lists of messages.
        embedding_size: floats in a vector; None for a generating engine.
        unit_vectors: whether the model's vectors are of length 1.
        checkpoint: what an embedding model's sentence-transformers files say; None where the engine does not read
            them, or there are none.
        block_rows: rows of an `EmbedRequest` that suit it best.
        lacks: option of a job -> why the engine cannot follow it; a job that asks for it is refused.
    """

    model: str
    max_input_tokens: int | None = None
    has_chat_template: bool = False
    embedding_size: int | None = None
    unit_vectors: bool = False
    checkpoint: PoolingSpec | None = None
    block_rows: int = 64
    lacks: Mapping[str, Lack] = field(default_factory=dict)


class Engine(ABC):
    """Computes rows. Use as a context manager, or call `start` and `close`.

    One thread drives an engine. A started engine can serve many jobs, one after another.

    Args:
        model: path or hub name.
        task: "generate" or "embed".
        options: the engine's own, as the user gave them; a job's manifest records them as `engine_options`.
    """

    def __init__(self, *, model: str, task: Task, options: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.task = task
        self.engine_options = dict(options or {})

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Facts about the model; only after `start`."""

    @property
    def max_input_tokens(self) -> int | None:
        """Longest input in tokens, or None."""
        return self.info.max_input_tokens

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether `start` has succeeded and `close` has not been called."""

    @abstractmethod
    def start(self) -> None:
        """Load the model; returns when it can take requests. Raises `EngineError`, leaving no process
        behind."""

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests without waiting for their results. Raises `EngineError` when the engine is dead."""

    @abstractmethod
    def wait(self) -> list[Result]:
        """Block until at least one request in flight has finished, and return all that have, in any order.

        Raises:
            EngineError: the engine is dead, or nothing is in flight.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Drop all requests in flight: `wait` never returns their results. The engine stays usable if it
        can."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; no process is left behind. May be called twice, and on an engine that died."""

    def __enter__(self) -> Self:
        if not self.started:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
