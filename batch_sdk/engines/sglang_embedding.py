"""Blocks of rows to vectors with a running SGLang: by the vectorised road, or as SGLang's own requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from arctic_sglang.embedding.front import EmbeddingFailedError
from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.engines.base import EmbedRequest, EmbedResult
from batch_sdk.engines.sglang_answers import asked
from batch_sdk.engines.token_rows import cut, refusals
from batch_sdk.engines.tokenizing import text_ids
from batch_sdk.errors import RowError, RowErrorKind

# Forward steps of input between the tokenizer and the vectors: the instances hold a few each, the others wait.
_STEPS_IN_WORK = 64
_FAST_BLOCK_ROWS = 4096
_PLAIN_BLOCK_ROWS = 64


class Embedder(ABC):
    """The two roads' common part: tokenising, and which rows the model cannot take.

    Attributes:
        block_rows: rows of a request that suit it.

    Args:
        manager: SGLang's `TokenizerManager`.
        limit: tokens of the longest row that it takes; None where SGLang cuts long ones itself.
    """

    block_rows: int

    def __init__(self, manager: Any, limit: int | None) -> None:
        self._manager = manager
        self._limit = limit
        self._vocabulary: int = manager.model_config.vocab_size
        # As SGLang does for texts: this model's tokenizer leaves out the end token that it was trained with.
        self._end_token = manager.tokenizer.eos_token_id if manager.model_config.is_embedding_gemma else None
        self._size: int | None = None

    def tokenize(self, requests: Sequence[EmbedRequest]) -> list[TokenRows]:
        """The token ids of every request. May run in any thread."""
        return [self._rows(request) for request in requests]

    def _rows(self, request: EmbedRequest) -> TokenRows:
        limit = self._limit if request.truncate else None
        if request.ids is not None:
            return request.ids if limit is None else cut(request.ids, limit)
        return TokenRows.from_lists(text_ids(self._manager.tokenizer, request.texts, limit, self._end_token))

    async def embed(self, request: EmbedRequest, rows: TokenRows) -> EmbedResult:
        """The result of a request that was tokenised to `rows`."""
        errors = refusals(rows, self._limit, self._vocabulary)
        good = np.arange(rows.rows)
        if any(errors):
            good = np.flatnonzero([error is None for error in errors])
        vectors, failures = await self._vectors(rows.take(good) if len(good) < rows.rows else rows)
        for row, failure in failures.items():
            errors[int(good[row])] = failure
        if vectors is not None:
            self._size = vectors.shape[1]
        if vectors is None or len(good) < rows.rows:
            found, vectors = vectors, np.zeros((rows.rows, self._size or 1), np.float32)
            if found is not None:
                vectors[good] = found
        return EmbedResult(request.position, vectors, rows.lengths, errors)

    @abstractmethod
    async def _vectors(self, rows: TokenRows) -> tuple[np.ndarray | None, dict[int, RowError]]:
        """Vectors float32 `[rows, d]`, None if there are none, and why some of the rows have none."""


class FastEmbedder(Embedder):
    """The vectorised road: token rows go to the front door as arrays, and come back as one.

    Attributes:
        window_tokens: of the requests that are at the front door at once.
    """

    block_rows = _FAST_BLOCK_ROWS

    def __init__(self, manager: Any) -> None:
        from arctic_sglang.embedding.manager import service_of

        front = manager.arctic_front
        super().__init__(manager, front.max_tokens)
        self._tokenizing = service_of(manager).tokenizing
        self._cuts: bool = manager.server_args.allow_auto_truncate
        self.window_tokens: int = _STEPS_IN_WORK * front.step_tokens

    @property
    def limit(self) -> int | None:
        """Tokens of the longest row that does not end as an error."""
        return None if self._cuts else self._limit

    def _rows(self, request: EmbedRequest) -> TokenRows:
        if self._cuts:
            request = request._replace(truncate=True)
        if request.ids is not None:
            return super()._rows(request)
        rows = self._tokenizing(request.texts)
        return self._tokenizing.truncated(rows, self._limit) if request.truncate else rows

    async def _vectors(self, rows: TokenRows) -> tuple[np.ndarray | None, dict[int, RowError]]:
        from arctic_sglang.embedding.manager import embed

        if not rows.rows:
            return None, {}
        try:
            return await embed(self._manager, rows), {}
        except EmbeddingFailedError as error:
            return None, dict.fromkeys(range(rows.rows), RowError(RowErrorKind.ABORTED, str(error)))


class PlainEmbedder(Embedder):
    """SGLang's own road: a request object for every row."""

    block_rows = _PLAIN_BLOCK_ROWS

    async def _vectors(self, rows: TokenRows) -> tuple[np.ndarray | None, dict[int, RowError]]:
        ids = rows.to_lists()
        answers: Any = await asked(self._encode(ids)) if ids else []
        if isinstance(answers, RowError):
            # One row spoiled the block: ask for each alone, so that only that one fails.
            answers = [await asked(self._encode([row])) for row in ids]
            answers = [answer if isinstance(answer, RowError) else answer[0] for answer in answers]
        failures = {row: answer for row, answer in enumerate(answers) if isinstance(answer, RowError)}
        found = [row for row in range(len(answers)) if row not in failures]
        if not found:
            return None, failures
        vectors = np.zeros((len(answers), len(answers[found[0]]["embedding"])), np.float32)
        for row in found:
            vectors[row] = answers[row]["embedding"]
        return vectors, failures

    async def _encode(self, ids: list[list[int]]) -> Any:
        from arctic_sglang.compat import vendor

        # Token ids rather than texts: Engine.async_encode tokenises again, and refuses an empty text.
        request = vendor.EmbeddingReqInput(input_ids=ids)
        return await anext(self._manager.generate_request(request, None))
