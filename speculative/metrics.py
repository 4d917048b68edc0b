"""What drafting yields: counted step by step, told in a log line and to Prometheus. Nothing here reads a clock.

SGLang's own figures (`sglang:spec_accept_length`, `meta_info["spec_accept_length"]`) count each custom algorithm as
they count its own. What they cannot know is here: whose drafts those were, how wide steps were, and where time went.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speculative.base import Int32
from speculative.policy import Picked, Source
from speculative.weighing import tally

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Int64 = NDArray[np.int64]

_PREFIX = "sglang:arctic_spec"


class Phase(IntEnum):
    """What a step's seconds went to: finding drafts, waiting for the step before, checking."""

    DRAFT = 0
    WAIT = 1
    VERIFY = 2


@dataclass(slots=True)
class Counts:
    """Sums over steps.

    Attributes:
        widths: ascending, all that a step can have.
        steps: int64 [widths], steps of each width.
        rows: int64 [sources], a request's steps by whose draft was checked.
        drafted: int64 [sources], draft tokens checked.
        accepted: int64 [sources], those of them accepted.
        seconds: float64 [phases].
    """

    widths: tuple[int, ...]
    steps: Int64
    rows: Int64
    drafted: Int64
    accepted: Int64
    seconds: NDArray[np.float64]

    @classmethod
    def none(cls, widths: Sequence[int]) -> Counts:
        """Before the first step."""
        sources = [np.zeros(len(Source), np.int64) for _ in range(3)]
        return cls(tuple(widths), np.zeros(len(widths), np.int64), *sources, np.zeros(len(Phase)))

    def add(self, drafts: Picked, width: int, accepted: Int32, seconds: Sequence[float]) -> None:
        """Counts a step; arguments as for `Statistics.observe`, with the seconds of each `Phase`."""
        if width == 1:  # most steps of a server that drafts little, and nothing to count but the step
            self.steps[0] += 1
            self.rows[Source.NONE] += len(drafts.lengths)
            self.seconds += seconds
            return
        self.steps[self.widths.index(width)] += 1
        counts = np.stack([self.rows, self.drafted, self.accepted])
        tally(drafts.sources, drafts.lengths, accepted, width - 1, counts)
        self.rows, self.drafted, self.accepted = counts
        self.seconds += seconds

    def since(self, before: Counts) -> Counts:
        """What was added after `before` was copied off."""
        return Counts(
            self.widths,
            self.steps - before.steps,
            self.rows - before.rows,
            self.drafted - before.drafted,
            self.accepted - before.accepted,
            self.seconds - before.seconds,
        )

    @property
    def accept_length(self) -> float:
        """Tokens that a request gets from a step on average, the model's own included; 1 before the first step."""
        rows = int(self.rows.sum())
        return 1 + int(self.accepted.sum()) / rows if rows else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON can hold them; times in milliseconds a step."""
        steps, rows = max(1, int(self.steps.sum())), max(1, int(self.rows.sum()))
        return {
            "steps": int(self.steps.sum()),
            "accept_length": round(self.accept_length, 4),
            "widths": {
                str(width): int(count) for width, count in zip(self.widths, self.steps, strict=True) if count
            },
            "sources": {
                source.name.lower(): {
                    "share": round(int(self.rows[source]) / rows, 4),
                    "drafted": int(self.drafted[source]),
                    "accepted": int(self.accepted[source]),
                }
                for source in Source
                if self.rows[source]
            },
            "milliseconds": {
                phase.name.lower(): round(1e3 * self.seconds[phase] / steps, 4)
                for phase in Phase
                if self.seconds[phase]
            },
        }

    def line(self) -> str:
        """The same for a log."""
        steps, rows = max(1, int(self.steps.sum())), max(1, int(self.rows.sum()))
        parts = [f"{int(self.steps.sum())} steps", f"accept len {self.accept_length:.2f}"]
        for source in Source:
            if share := self.rows[source] / rows:
                told = f"{source.name.lower()} {share:.0%}"
                if count := self.drafted[source]:
                    told += f" ({self.accepted[source]} of {count} tokens)"
                parts.append(told)
        widths = zip(self.widths, self.steps, strict=True)
        parts.append("width " + " ".join(f"{width}: {count / steps:.0%}" for width, count in widths if count))
        parts += [
            f"{phase.name.lower()} {1e3 * self.seconds[phase] / steps:.2f} ms"
            for phase in Phase
            if self.seconds[phase]
        ]
        return "Speculation: " + ", ".join(parts)


class Collectors:
    """Prometheus' counters. Make them once a process: names are unique in a registry.

    Acceptance length over time: `1 + sum(rate(sglang:arctic_spec_accepted_tokens_total[1m])) /
    sum(rate(sglang:arctic_spec_rows_total[1m]))`.

    Args:
        labels: names and values of SGLang's own labels (`model_name`, `tp_rank` and so on).
        registry: where they are listed; None: the default one. SGLang gathers that over its processes if the
            environment named a folder for it before `prometheus_client` was imported, so it is imported here.
    """

    def __init__(self, labels: Mapping[str, str], *, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY, Counter

        def counter(name: str, told: str, label: str) -> Counter:
            names = [*labels, label]
            return Counter(f"{_PREFIX}_{name}_total", told, names, registry=registry or REGISTRY)

        self._labels = dict(labels)
        self._steps = counter("steps", "Steps, by the width that was checked", "width")
        self._rows = counter("rows", "Steps of single requests, by whose draft was checked", "source")
        self._drafted = counter("draft_tokens", "Draft tokens checked", "source")
        self._accepted = counter("accepted_tokens", "Draft tokens accepted", "source")
        self._seconds = counter("seconds", "Time of steps, by what it went to", "phase")

    def add(self, counts: Counts) -> None:
        """Adds what was counted since the last call."""
        for width, steps in zip(counts.widths, counts.steps, strict=True):
            self._steps.labels(**self._labels, width=str(width)).inc(int(steps))
        for source in Source:
            by_source = {**self._labels, "source": source.name.lower()}
            self._rows.labels(**by_source).inc(int(counts.rows[source]))
            self._drafted.labels(**by_source).inc(int(counts.drafted[source]))
            self._accepted.labels(**by_source).inc(int(counts.accepted[source]))
        for phase in Phase:
            told = self._seconds.labels(**self._labels, phase=phase.name.lower())
            told.inc(float(counts.seconds[phase]))


class Statistics:
    """Counts steps, and every so many of them says what they yielded.

    Args:
        widths: ascending, all that a step can have; the first is 1.
        every: steps between two log lines, and between two updates of the collectors.
        log: takes a line; None: no lines.
        collectors: Prometheus' counters; None: there is nobody to tell.

    Attributes:
        total: of all steps so far.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        every: int = 400,
        log: Callable[[str], None] | None = None,
        collectors: Collectors | None = None,
    ) -> None:
        self.total = Counts.none(widths)
        self._told, self._collected = copy.deepcopy(self.total), copy.deepcopy(self.total)
        self._every, self._left = every, every
        self._log, self._collectors = log, collectors

    def observe(
        self,
        drafts: Picked,
        width: int,
        accepted: Int32,
        *,
        draft: float = 0.0,
        wait: float = 0.0,
        verify: float = 0.0,
    ) -> None:
        """Counts a step.

        Args:
            drafts: of its requests, before they were cut to the width.
            width: that was checked.
            accepted: int32 [rows], draft tokens accepted.
            draft: seconds spent on finding drafts.
            wait: seconds spent on waiting for the step before.
            verify: seconds of the step itself.
        """
        self.total.add(drafts, width, accepted, (draft, wait, verify))
        self._left -= 1
        if self._left == 0:
            self.tell()

    def tell(self) -> None:
        """Says what was not said yet, in the log and to the collectors."""
        self._left = self._every
        new = self.total.since(self._told)
        if self._log is not None and new.steps.any():
            self._told = copy.deepcopy(self.total)
            self._log(new.line())
        self.collect()

    def collect(self) -> None:
        """Brings the collectors up to date; call it when there is nothing to run."""
        new = self.total.since(self._collected)
        if self._collectors is not None and new.steps.any():
            self._collected = copy.deepcopy(self.total)
            self._collectors.add(new)
