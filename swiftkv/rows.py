"""Which rows of a prefill go up. Pure.

A prefill step holds a chunk of one or more prompts. Above the cut only the rows whose logits somebody reads
are needed: the last row of each prompt, and where prompt logprobs are asked for, the rows that they are
asked for. They are always the end of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows that go up, for each request of a step.

    Attributes:
        skipped: rows of the chunk that stay below.
        lengths: rows of the chunk that go up, at least 1.
        logprob_starts: the first of the rows that go up whose logprobs are wanted; equal to the length
            where none are.
    """

    skipped: tuple[int, ...]
    lengths: tuple[int, ...]
    logprob_starts: tuple[int, ...]


def kept_rows(
    chunk_lengths: Sequence[int], logprob_starts: Sequence[int] | None, *, all_rows: bool
) -> Kept | None:
    """What goes up of each request's chunk; None where the last rows alone do.

    Args:
        chunk_lengths: rows of each request's chunk.
        logprob_starts: the first row of each chunk whose logprobs are wanted, the chunk's length for none;
            None if nobody asks for prompt logprobs.
        all_rows: whether every row is wanted, for its hidden state.
    """
    starts = list(chunk_lengths) if logprob_starts is None else list(logprob_starts)
    if not all_rows and all(start >= length for start, length in zip(starts, chunk_lengths, strict=True)):
        return None
    skipped = [
        0 if all_rows else min(start, length - 1) for start, length in zip(starts, chunk_lengths, strict=True)
    ]
    return Kept(
        tuple(skipped),
        tuple(length - skip for length, skip in zip(chunk_lengths, skipped, strict=True)),
        tuple(start - skip for start, skip in zip(starts, skipped, strict=True)),
    )
