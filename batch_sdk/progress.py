"""A progress bar on stderr: rows and rows/s, time left, tokens/s, what the prefix cache had, errors."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from batch_sdk.figures import Figures

_MIN_INTERVAL_SECONDS = 0.2


class Progress:
    """Shows a run's figures as they grow.

    Args:
        figures: of the run; read, never written.
        total_rows: rows in all, or None if unknown.
        show: True or False; None shows the bar only where stderr is a terminal.
        label: what stands before the bar.
    """

    def __init__(self, figures: Figures, total_rows: int | None, show: bool | None, label: str) -> None:
        self._figures = figures
        if show is None:
            show = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_rows,
            initial=figures.tally.rows,
            desc=label,
            unit="row",
            file=sys.stderr,
            disable=not show,
        )
        self._show = show
        self._started = time.monotonic()
        self._last = 0.0

    def update(self) -> None:
        """Redraw, if enough time has passed."""
        now = time.monotonic()
        if self._show and now - self._last >= _MIN_INTERVAL_SECONDS:
            self._last = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        tally, earlier = self._figures.tally, self._figures.earlier
        tokens = tally.prompt_tokens + tally.completion_tokens
        tokens -= earlier.prompt_tokens + earlier.completion_tokens
        shown = [f"{tokens / max(now - self._started, 1e-9):,.0f} tok/s"]
        hits = self._figures.cache_hit_rate
        if hits is not None:
            shown.append(f"{hits:.0%} cached")
        shown.append(f"{tally.errors.total():,} errors")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(tally.rows - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._show:
            self._draw(time.monotonic())
        self._bar.close()
