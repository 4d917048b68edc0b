"""What a generate job's results become: typed values, and the columns that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from batch_sdk.engines.base import GenerateResult
from batch_sdk.errors import EngineError, RowError
from batch_sdk.job import GenerateJob
from batch_sdk.schema import ERROR_TYPE, error_array
from batch_sdk.structured import Constraint, make_constraint


class Answers:
    """The result columns of a generate job.

    Raises:
        OptionError: the job's response schema has no faithful Arrow type.
    """

    def __init__(self, job: GenerateJob) -> None:
        self.constraint: Constraint = make_constraint(job.response_format, job.regex, job.ebnf, job.choice)
        self._n = job.n
        self._logprobs = job.logprobs
        self._plain = job.n == 1 and not job.logprobs and self.constraint.read is None
        prefix = job.details_prefix
        self.fields = [
            pa.field(job.response_column, self._sampled(self.constraint.type)),
            pa.field(f"{prefix}prompt_tokens", pa.int32()),
            pa.field(f"{prefix}completion_tokens", pa.int32()),
            pa.field(f"{prefix}finish_reason", self._sampled(pa.string())),
        ]
        self._columns = ["text", "prompt_tokens", "completion_tokens", "finish_reason"]
        if job.logprobs:
            self.fields.append(pa.field(f"{prefix}logprobs", self._sampled(pa.list_(pa.float32()))))
            self.fields.append(pa.field(f"{prefix}token_ids", self._sampled(pa.list_(pa.int32()))))
            self._columns += ["logprobs", "token_ids"]
        if job.on_too_long != "error":
            self.fields.append(pa.field(f"{prefix}prompt_truncated", pa.int32()))
            self._columns.append("prompt_truncated")
        self.fields.append(pa.field(f"{prefix}error", ERROR_TYPE))

    def _sampled(self, kind: pa.DataType) -> pa.DataType:
        return pa.list_(kind) if self._n > 1 else kind

    def typed(self, result: GenerateResult) -> GenerateResult:
        """Return the result with typed values for its texts, or with an `invalid_output` error.

        Raises:
            EngineError: the engine returned less than it was asked for.
        """
        if self._plain or result.error is not None:
            return result
        if self._n > 1 and (type(result.text) is not list or len(result.text) != self._n):
            raise EngineError("the engine does not return several samples a row", f"{self._n} of them")
        if self._logprobs and (result.logprobs is None or result.token_ids is None):
            raise EngineError(
                "the engine returns no log-probabilities", "an engine that does", "drop logprobs"
            )
        if self.constraint.read is None:
            return result
        if self._n == 1:
            value = self.constraint.value(result.text, result.finish_reason)
            return (
                failed(result.position, value) if isinstance(value, RowError) else result._replace(text=value)
            )
        values: list[Any] = []
        for index, (text, reason) in enumerate(zip(result.text, result.finish_reason or (), strict=True)):
            value = self.constraint.value(text, reason)
            if isinstance(value, RowError):
                return failed(result.position, value._replace(message=f"sample {index}: {value.message}"))
            values.append(value)
        return result._replace(text=values)

    def arrays(self, results: Sequence[GenerateResult]) -> list[pa.Array]:
        """Return the columns of `fields` for finished rows."""
        columns = [
            pa.array([getattr(result, name) for result in results], field.type)
            for name, field in zip(self._columns, self.fields, strict=False)
        ]
        return [*columns, error_array([result.error for result in results])]


def failed(position: int, error: RowError) -> GenerateResult:
    """Return the result of a row that ended in an error."""
    return GenerateResult(position, None, None, None, None, error)
