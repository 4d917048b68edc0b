"""Lines of a batch file between the flow and the engine: the counterpart of `GenerateChunk`."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa

from batch_sdk.chunks import Chunk, Tally
from batch_sdk.engines.base import (
    EmbedRequest,
    EmbedResult,
    EngineInfo,
    GenerateRequest,
    GenerateResult,
    Request,
    Result,
    Task,
)
from batch_sdk.errors import EngineError, RowError, RowErrorKind
from batch_sdk.flow import MakeChunk
from batch_sdk.job import Job
from batch_sdk.openai_batch.answers import Answers, prompt_tokens
from batch_sdk.openai_batch.requests import TASKS, Call, Refusal, parse
from batch_sdk.plan import Plan

INPUT = pa.schema([("line", pa.binary()), ("number", pa.int64())])
"""What the plan reads: a line's bytes and its number from 1."""
OUTPUT = pa.schema([("line", pa.string())])
"""What it writes: lines of the output file."""


class BatchFilePlan(Plan):
    """A job over the lines of a batch file.

    Args:
        job: the window and the model's name; it keeps no column.
        task: what the engine does; lines for another task become errors.
        default_max_tokens: for a chat that sets no limit.
    """

    def __init__(self, job: Job, task: Task, default_max_tokens: int) -> None:
        super().__init__(job, INPUT)
        self.task = task
        self.provisional = OUTPUT
        self._set_read(INPUT, tuple(INPUT.names))
        self._default = default_max_tokens

    def bind(self, info: EngineInfo, tally: Tally) -> tuple[pa.Schema, MakeChunk]:
        """Note whether chats can run."""
        return OUTPUT, partial(self._chunk, info, Answers(info.model), tally)

    def _chunk(
        self, info: EngineInfo, answers: Answers, tally: Tally, position: int, batch: pa.RecordBatch
    ) -> Chunk:
        return BatchFileChunk(position, batch, tally, self, answers, info.has_chat_template)

    def read_line(self, line: bytes, chats: bool) -> Call | Refusal:
        """Read one line, and refuse what this engine cannot do."""
        call = parse(line, self._default)
        if isinstance(call, Refusal):
            return call
        if TASKS[call.url] != self.task:
            first = "the first request of this file asks for the other kind of model"
            return Refusal(call.custom_id, f"url={call.url!r}: {first}, and one job runs one model", "url")
        if isinstance(call.prompt, list) and not chats:
            return Refusal(call.custom_id, "the model has no chat template, so it takes no chats", "url")
        return call


class BatchFileChunk(Chunk):
    """Lines that become one answer line each."""

    def __init__(
        self,
        position: int,
        batch: pa.RecordBatch,
        tally: Tally,
        plan: BatchFilePlan,
        answers: Answers,
        chats: bool,
    ) -> None:
        super().__init__(position, batch, (), tally)
        self._lines: list[bytes] = batch.column("line").to_pylist()
        self._numbers: list[int] = batch.column("number").to_pylist()
        self._plan = plan
        self._answers = answers
        self._chats = chats
        self._calls: dict[int, Call] = {}
        self._output: list[str | None] = [None] * self.rows

    def take(self, room: int) -> list[Request]:
        """Read the next lines; those that make no sense are answered on the spot."""
        requests: list[Request] = []
        failed: list[int] = []
        end = min(self.rows, self.taken + room)
        for row in range(self.taken, end):
            call = self._plan.read_line(self._lines[row], self._chats)
            if isinstance(call, Refusal):
                self._output[row] = self._answers.refused(self._numbers[row], call)
                self._tally.fail(RowError(RowErrorKind.REJECTED, call.message))
                failed.append(row)
                continue
            self._calls[row] = call
            position = self.position + row
            if call.prompt is None:
                requests.append(EmbedRequest(position, call.texts))
            else:
                requests.append(GenerateRequest(position, call.prompt, call.sampling))
        self.taken = max(self.taken, end)
        self._finish(failed)
        return requests

    def accept(self, result: Result) -> None:
        """Write one answer."""
        row = result.position - self.position
        call = self._calls.pop(row, None)
        wanted = GenerateResult if self._plan.task == "generate" else EmbedResult
        if call is None or not isinstance(result, wanted):
            raise EngineError(
                f"the engine returned a result for line {result.position} that it was not asked for"
            )
        number = self._numbers[row]
        if isinstance(result, EmbedResult):
            error = next((e for e in result.errors if e is not None), None)
            if error is None and not np.isfinite(result.vectors).all():
                error = RowError(RowErrorKind.ABORTED, "the vector is not finite, and JSON cannot hold it")
        else:
            error = result.error
        if error is not None:
            self._output[row] = self._answers.failed(number, call, error)
            self._tally.fail(error)
        elif isinstance(result, EmbedResult):
            self._output[row] = self._answers.embedded(number, call, result)
            self._count(prompt_tokens(result), 0)
        else:
            self._output[row] = self._answers.generated(number, call, result)
            self._count(result.prompt_tokens or 0, result.completion_tokens or 0)
            if result.cached_tokens is not None:
                self._tally.cache(result.cached_tokens)
        self._finish((row,))

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self._tally.rows += 1
        self._tally.prompt_tokens += prompt_tokens
        self._tally.completion_tokens += completion_tokens

    def to_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Return the answer lines."""
        return pa.RecordBatch.from_arrays([pa.array(self._output, pa.string())], schema=schema)
