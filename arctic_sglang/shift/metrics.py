"""Prometheus' counters of Shift Parallelism, beside SGLang's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from arctic_sglang.shift.policy import Mode

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_PREFIX = "arctic:shift"
_EXCHANGE = (
    "Time that the all-to-alls around attention take in the steps so far. It is computed, not measured in the steps: "
    "times by number of tokens are measured at the start, with nothing beside them and no rank late. In large steps on "
    "GPUs a part of it is hidden behind products"
)


class ShiftMetrics:
    """Steps, tokens, switches and the time of exchanges. Make it once a process: names are unique in a registry.

    Args:
        labels: names and values of SGLang's own labels (`model_name`, `tp_rank` and so on).
        registry: where they are listed; None: the default one. SGLang gathers that over its processes if the
            environment named a folder for it before `prometheus_client` was imported, so it is imported here.
    """

    def __init__(self, labels: Mapping[str, str | int], *, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY, Counter

        def counter(name: str, told: str, *more: str) -> Counter:
            return Counter(f"{_PREFIX}_{name}_total", told, [*labels, *more], registry=registry or REGISTRY)

        steps = counter("steps", "Forward steps, by mode: tp, tensor parallel; sp, sequence parallel", "mode")
        tokens = counter("tokens", "Tokens of those steps, as the kernels saw them: with padding", "mode")
        # Labels are looked up once: a step costs additions alone.
        self._steps = {mode: steps.labels(**labels, mode=mode.value) for mode in Mode}
        self._tokens = {mode: tokens.labels(**labels, mode=mode.value) for mode in Mode}
        self._switches = counter("switches", "Steps in another mode than the one before").labels(**labels)
        self._seconds = counter("exchange_seconds", _EXCHANGE).labels(**labels)

    def add(self, mode: Mode, *, steps: int, tokens: int, switches: int, exchange_seconds: float) -> None:
        """Adds what there was since the last call.

        Args:
            mode: of the steps.
            steps: how many.
            tokens: of those.
            switches: steps of them in another mode than the one before.
            exchange_seconds: of their all-to-alls.
        """
        self._steps[mode].inc(steps)
        self._tokens[mode].inc(tokens)
        if switches:
            self._switches.inc(switches)
        if exchange_seconds:
            self._seconds.inc(exchange_seconds)
