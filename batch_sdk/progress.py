"""A progress bar on stderr: rows, tokens a second, errors."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from batch_sdk.chunks import Tally

_MIN_INTERVAL_SECONDS = 0.2


class Progress:
    """Shows a `Tally` as it grows.

    Args:
        tally: what the job has finished; read, never written. What it holds already is an earlier run's.
        total_rows: rows in all, or None if unknown.
        show: True or False; None shows the bar only where stderr is a terminal.
        label: what stands before the bar.
    """

    def __init__(self, tally: Tally, total_rows: int | None, show: bool | None, label: str) -> None:
        self._tally = tally
        if show is None:
            show = sys.stderr.isatty()
        self._earlier_tokens = tally.prompt_tokens + tally.completion_tokens
        self._bar = tqdm(
            total=total_rows, initial=tally.rows, desc=label, unit="row", file=sys.stderr, disable=not show
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
        tally = self._tally
        tokens = tally.prompt_tokens + tally.completion_tokens - self._earlier_tokens
        rate = tokens / max(now - self._started, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tok/s, {tally.errors.total():,} errors", refresh=False)
        self._bar.update(tally.rows - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._show:
            self._draw(time.monotonic())
        self._bar.close()
