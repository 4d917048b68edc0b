"""SGLang's answers, as its `async_generate` gives them, as results."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from batch_sdk.engines.base import GenerateResult
from batch_sdk.errors import RowError, RowErrorKind


async def asked(work: Coroutine[Any, Any, Any]) -> Any:
    """Await SGLang's answer; what it raises for a single request becomes a `RowError`."""
    from fastapi import HTTPException

    try:
        return await work
    except ValueError as error:
        return RowError(RowErrorKind.REJECTED, str(error))
    except HTTPException as error:
        return RowError(RowErrorKind.ABORTED, f"{error.status_code}: {error.detail}")


def generated(position: int, answer: dict[str, Any] | list[dict[str, Any]], logprobs: bool) -> GenerateResult:
    """Return the result of one row.

    Args:
        position: the row's.
        answer: one sample, or the list of n samples.
        logprobs: whether they were asked for.
    """
    if isinstance(answer, dict):
        return _sample(position, answer, logprobs)
    samples = [_sample(position, one, logprobs) for one in answer]
    for sample in samples:
        if sample.error is not None:
            return sample
    # No cached_tokens: SGLang runs the prompt once by itself before the samples, which then all find it.
    return GenerateResult(
        position,
        [sample.text for sample in samples],
        samples[0].prompt_tokens,
        sum(sample.completion_tokens or 0 for sample in samples),
        [str(sample.finish_reason) for sample in samples],
        None,
        [sample.logprobs for sample in samples] if logprobs else None,
        [sample.token_ids for sample in samples] if logprobs else None,
    )


def _sample(position: int, answer: dict[str, Any], logprobs: bool) -> GenerateResult:
    meta = answer["meta_info"]
    reason = meta["finish_reason"] or {"type": "stop"}
    if reason["type"] == "abort":
        error = RowError(RowErrorKind.ABORTED, str(reason.get("message") or "the engine aborted the request"))
        return GenerateResult(position, None, None, None, None, error)
    tokens = meta["output_token_logprobs"] if logprobs else []
    return GenerateResult(
        position,
        answer["text"],
        meta["prompt_tokens"],
        meta["completion_tokens"],
        reason["type"],
        None,
        [token[0] for token in tokens] if logprobs else None,
        [token[1] for token in tokens] if logprobs else None,
        cached_tokens=meta.get("cached_tokens"),
    )
