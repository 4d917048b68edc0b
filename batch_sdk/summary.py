"""What a finished job says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class JobSummary:
    """The figures of one finished job.

    Attributes:
        rows: output rows, which is input rows.
        errors: rows that ended in an error, by kind; empty if none did.
        prompt_tokens: tokens of all inputs without an error.
        completion_tokens: tokens generated; 0 for embeddings.
        seconds: from the first row read to the output in place, without the engine's start.
        engine_start_seconds: 0 if the engine was running already.
        output: the output's path, or None for a table in memory.
        earlier_rows: of `rows`, those that an earlier run had done. Rates leave them out.
        earlier_tokens: of all tokens, those of `earlier_rows`.
        engine_restarts: how often the engine died and was started again.
        cached_tokens: of this run's prompt tokens, those that were in the engine's prefix cache; None if it does
            not say.
        cache_hit_rate: their share, 0 to 1; None if the engine does not say.
    """

    rows: int
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    engine_start_seconds: float = 0.0
    output: str | None = None
    earlier_rows: int = 0
    earlier_tokens: int = 0
    engine_restarts: int = 0
    cached_tokens: int | None = None
    cache_hit_rate: float | None = None

    @property
    def error_rows(self) -> int:
        """Rows that ended in an error."""
        return sum(self.errors.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens in and out over `seconds`."""
        tokens = self.prompt_tokens + self.completion_tokens - self.earlier_tokens
        return tokens / max(self.seconds, 1e-9)

    @property
    def rows_per_second(self) -> float:
        """Rows over `seconds`."""
        return (self.rows - self.earlier_rows) / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.errors.items()))
        tokens = f"{self.prompt_tokens:,} in"
        if self.completion_tokens:
            tokens += f", {self.completion_tokens:,} out"
        earlier = f", {self.earlier_rows:,} of them before" if self.earlier_rows else ""
        restarts = f", {self.engine_restarts} restarts" if self.engine_restarts else ""
        lines = [
            f"rows      {self.rows:,} ({self.rows_per_second:,.1f} rows/s){earlier}",
            f"errors    {self.error_rows:,}" + (f" ({kinds})" if kinds else ""),
            f"tokens    {tokens} ({self.tokens_per_second:,.1f} tokens/s)",
            f"time      {self.seconds:.1f} s, and {self.engine_start_seconds:.1f} s to start the engine{restarts}",
            f"output    {self.output or 'in memory'}",
        ]
        if self.cache_hit_rate is not None:
            run = " of this run" if self.earlier_rows else ""
            lines.insert(
                3, f"cached    {self.cached_tokens:,} of the prompt tokens{run} ({self.cache_hit_rate:.1%})"
            )
        return "\n".join(lines)


class BatchResult(NamedTuple):
    """An in-memory result with its figures: `table, summary = generate(..., return_summary=True)`."""

    table: Any
    summary: JobSummary
