"""A chunk: some consecutive input rows, what the engine said of them so far, and the output batch they
become.

The flow decides when rows are submitted; a chunk knows how to turn its rows into requests and results into
columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from batch_sdk.answers import Answers, failed
from batch_sdk.embed_inputs import Rows, Unreadable, any_unreadable, column_values, embed_inputs
from batch_sdk.engines.base import (
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    GenerateResult,
    Prompt,
    Request,
    Result,
)
from batch_sdk.errors import EngineError, RowError
from batch_sdk.row_sampling import RowSampling
from batch_sdk.schema import error_array
from batch_sdk.truncation import OnTooLong
from batch_sdk.vectors import VectorType, unit_length, vector_arrays

BuildPrompt = Callable[[dict[str, Any]], Prompt | RowError]


@dataclass
class Tally:
    """What a job has finished so far; counts are rows and tokens.

    `cached_tokens` is how many of the prompt tokens the engine had in its prefix cache, None as long as it does not
    say. It is of this run alone: the output has no column for it, so that nobody knows it of earlier rows.
    """

    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cached_tokens: int | None = None

    def fail(self, error: RowError) -> None:
        """Count one row that ended in an error."""
        self.rows += 1
        self.errors[error.kind.value] += 1

    def cache(self, tokens: int) -> None:
        """Count prompt tokens that were in the engine's prefix cache."""
        self.cached_tokens = (self.cached_tokens or 0) + tokens

    def add(self, other: Tally) -> None:
        """Count another tally's rows in."""
        self.rows += other.rows
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.errors.update(other.errors)
        if other.cached_tokens is not None:
            self.cache(other.cached_tokens)


class Chunk(ABC):
    """Consecutive rows of the input.

    Attributes:
        position: the first row's position in the input.
        rows: how many.
        taken: how many, from the first on, have been handed out by `take`.
        frontier: how many, from the first on, are finished without a gap.
    """

    def __init__(self, position: int, batch: pa.RecordBatch, kept: Sequence[str], tally: Tally) -> None:
        self.position = position
        self.rows: int = batch.num_rows
        self.taken = 0
        self.frontier = 0
        self._kept = [batch.column(name) for name in kept]
        self._tally = tally
        self._done = bytearray(self.rows)

    @property
    def finished(self) -> bool:
        """Whether every row has its result or error."""
        return self.frontier == self.rows

    @abstractmethod
    def take(self, room: int) -> list[Request]:
        """Return requests for at most the next `room` rows. Rows that need no engine are finished on the
        spot."""

    @abstractmethod
    def accept(self, result: Result) -> None:
        """Store the result of a request that `take` returned. Raises `EngineError` for any other."""

    @abstractmethod
    def to_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Return the output of a finished chunk."""

    def _finish(self, rows: slice | np.ndarray | Sequence[int]) -> None:
        marks = np.frombuffer(self._done, np.uint8)
        marks[rows if isinstance(rows, slice) else np.asarray(rows, np.intp)] = 1
        # find() runs in C: the frontier moves over thousands of rows at no cost.
        gap = self._done.find(0, self.frontier)
        self.frontier = self.rows if gap < 0 else gap


class GenerateChunk(Chunk):
    """Rows that become one generated text each."""

    def __init__(
        self,
        position: int,
        batch: pa.RecordBatch,
        kept: Sequence[str],
        tally: Tally,
        *,
        columns: Sequence[str],
        build: BuildPrompt,
        sampling: RowSampling,
        answers: Answers,
        logprobs: bool,
        on_too_long: OnTooLong,
    ) -> None:
        super().__init__(position, batch, kept, tally)
        self._names = list(columns)
        self._answers = answers
        self._logprobs = logprobs
        self._on_too_long = on_too_long
        self._sampling = sampling.rows([column_values(batch.column(name)) for name in sampling.columns])
        self._columns = [column_values(batch.column(name)) for name in columns]
        self._clean = not any(map(any_unreadable, self._columns))
        self._build = build
        self._results: list[GenerateResult | None] = [None] * self.rows

    def _prompt(self, row: int) -> Prompt | RowError:
        values = [column[row] for column in self._columns]
        if not self._clean:
            for name, value in zip(self._names, values, strict=True):
                if isinstance(value, Unreadable):
                    return value.error._replace(message=f"column {name!r}: {value.reason}")
        return self._build(dict(zip(self._names, values, strict=True)))

    def take(self, room: int) -> list[Request]:
        """Render the next prompts."""
        requests: list[Request] = []
        refused: list[int] = []
        end = min(self.rows, self.taken + room)
        for row in range(self.taken, end):
            position, prompt, sampling = self.position + row, self._prompt(row), self._sampling(row)
            if isinstance(prompt, RowError) or isinstance(sampling, RowError):
                error = prompt if isinstance(prompt, RowError) else sampling
                self._results[row] = failed(position, error)
                self._tally.fail(error)
                refused.append(row)
            else:
                requests.append(
                    GenerateRequest(position, prompt, sampling, self._logprobs, self._on_too_long)
                )
        self.taken = end
        self._finish(refused)
        return requests

    def accept(self, result: Result) -> None:
        """Store one row."""
        row = result.position - self.position
        if not isinstance(result, GenerateResult) or row >= self.taken or self._results[row] is not None:
            raise EngineError(
                f"the engine returned a result for row {result.position} that it was not asked for"
            )
        result = self._answers.typed(result)
        self._results[row] = result
        if result.error is not None:
            self._tally.fail(result.error)
        else:
            self._tally.rows += 1
            self._tally.prompt_tokens += result.prompt_tokens or 0
            self._tally.completion_tokens += result.completion_tokens or 0
            if result.cached_tokens is not None:
                self._tally.cache(result.cached_tokens)
        self._done[row] = 1
        if row == self.frontier:
            self._finish(())

    def to_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Append the columns of the job's `Answers`."""
        results = [result for result in self._results if result is not None]
        assert len(results) == self.rows, "to_batch() on a chunk that is not finished"
        return pa.RecordBatch.from_arrays([*self._kept, *self._answers.arrays(results)], schema=schema)


class EmbedChunk(Chunk):
    """Rows that become one vector each, sent in blocks. No step looks at rows one by one unless one of them fails."""

    def __init__(
        self,
        position: int,
        batch: pa.RecordBatch,
        kept: Sequence[str],
        tally: Tally,
        *,
        column: str,
        size: int,
        dimensions: int,
        block_rows: int,
        normalize: bool,
        truncate: bool,
        prompt: str,
        embedding_type: VectorType,
    ) -> None:
        super().__init__(position, batch, kept, tally)
        self._truncate = truncate
        self._prompt = prompt
        self._embedding_type = embedding_type
        self._inputs = embed_inputs(batch.column(column))
        self._block_rows = block_rows
        self._normalize = normalize
        self._blocks: dict[int, Rows] = {}
        self._size = size
        self._dimensions = dimensions
        self._vectors: np.ndarray | None = None
        self._tokens = np.zeros(self.rows, np.int32)
        self._errors: list[RowError | None] = [None] * self.rows

    def take(self, room: int) -> list[Request]:
        """Cut the next rows into blocks. Waits for room for a whole block rather than send crumbs."""
        requests: list[Request] = []
        while self.taken < self.rows:
            count = min(self._block_rows, self.rows - self.taken)
            if count > room:
                break
            block = self._inputs.block(self.taken, self.taken + count)
            for row, error in block.refused.items():
                self._fail(row, error)
            self._finish(list(block.refused))
            if len(block.refused) < count:
                first = self.position + block.first
                self._blocks[first] = block.rows
                texts = [self._prompt + text for text in block.texts] if self._prompt else block.texts
                requests.append(EmbedRequest(first, texts, self._truncate, block.ids))
            self.taken += count
            room -= count
        return requests

    def _fail(self, row: int, error: RowError) -> None:
        self._errors[row] = error
        self._tally.fail(error)

    def accept(self, result: Result) -> None:
        """Store one block."""
        rows = self._blocks.pop(result.position, None)
        if not isinstance(result, EmbedResult) or rows is None:
            raise EngineError(
                f"the engine returned a block at row {result.position} that it was not asked for"
            )
        count = len(self._tokens[rows])
        wanted = (count, self._size)
        if result.vectors.shape != wanted or len(result.errors) != count:
            raise EngineError(f"the engine returned vectors of shape {result.vectors.shape}", f"{wanted}")
        vectors = result.vectors[:, : self._dimensions]
        self._store(rows, unit_length(vectors) if self._normalize else vectors)
        self._tokens[rows] = result.prompt_tokens
        if any(result.errors):
            good = self._fail_some(rows, result.errors)
        else:
            good = np.ones(count, bool)
        self._tally.rows += int(good.sum())
        self._tally.prompt_tokens += int(self._tokens[rows][good].clip(0).sum()) + result.uncounted_tokens
        self._finish(rows)

    def _store(self, rows: Rows, vectors: np.ndarray) -> None:
        if len(vectors) == self.rows:
            # The engine's own array, if whole, becomes the column: vectors are most of the bytes of a job.
            self._vectors = np.ascontiguousarray(vectors, np.float32)
            return
        if self._vectors is None:
            self._vectors = np.zeros((self.rows, self._dimensions), np.float32)
        self._vectors[rows] = vectors

    def _fail_some(self, rows: Rows, errors: Sequence[RowError | None]) -> np.ndarray:
        """Note the errors of a block; returns bool `[rows of the block]`, those without one."""
        for row, error in zip(np.arange(self.rows)[rows].tolist(), errors, strict=True):
            if error is not None:
                self._fail(row, error)
        return np.array([error is None for error in errors], bool)

    def to_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Append the vectors, token counts and error."""
        assert self.finished, "to_batch() on a chunk that is not finished"
        vectors = self._vectors
        if vectors is None:  # no row had anything to embed
            vectors = np.zeros((self.rows, self._dimensions), np.float32)
        missing = np.zeros(self.rows, bool)
        if any(self._errors):
            missing[:] = [error is not None for error in self._errors]
        added = [
            *vector_arrays(vectors, missing, self._embedding_type),
            pa.array(self._tokens, mask=missing | (self._tokens < 0)),
            error_array(self._errors),
        ]
        return pa.RecordBatch.from_arrays([*self._kept, *added], schema=schema)
