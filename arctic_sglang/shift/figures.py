"""What a rank has done in either mode, counted step by step. Pure: no clock, and microseconds a step."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from arctic_sglang.shift.policy import Mode


class Sink(Protocol):
    """Somebody who is told of every step."""

    def add(self, mode: Mode, *, steps: int, tokens: int, switches: int, exchange_seconds: float) -> None:
        """Takes what there was in a mode since the last call."""
        ...


class ExchangeTimes:
    """How long the all-to-alls of a step take, from times of a layer's two that were measured at the start.

    A host cannot time what runs within a CUDA graph, and events between the kernels would cost what they measure.

    Args:
        layers: of the model.
        measured: seconds of both all-to-alls of a layer, by tokens of the step; at least one size.

    Raises:
        ValueError: nothing was measured, or a time that is no time.
    """

    def __init__(self, layers: int, measured: Mapping[int, float]) -> None:
        if not measured or not all(0 <= seconds < float("inf") for seconds in measured.values()):
            msg = f"all-to-alls are said to take {dict(measured)} seconds by tokens; at least one size is wanted"
            raise ValueError(msg)
        self._tokens = sorted(measured)
        self._seconds = [layers * measured[tokens] for tokens in self._tokens]

    def seconds(self, tokens: int) -> float:
        """Of all layers: on straight lines between sizes, the smallest size's below, in proportion above.

        Args:
            tokens: of the step.
        """
        place = bisect_left(self._tokens, tokens)
        if place == 0:
            return self._seconds[0]
        if place == len(self._tokens):
            return self._seconds[-1] * tokens / self._tokens[-1]
        low, high = self._tokens[place - 1], self._tokens[place]
        share = (tokens - low) / (high - low)
        return self._seconds[place - 1] * (1 - share) + self._seconds[place] * share

    def told(self) -> dict[str, float]:
        """Seconds of a whole step by tokens, as JSON can hold it."""
        return {str(tokens): seconds for tokens, seconds in zip(self._tokens, self._seconds, strict=True)}


@dataclass(slots=True)
class Figures:
    """Steps that requests had.

    Attributes:
        steps: by mode.
        tokens: of those steps, as the kernels saw them.
        switches: steps in another mode than the one before.
        exchange_seconds: of their all-to-alls, as `exchange` says.
        last: the mode of the step before.
        exchange: how long a step's all-to-alls take; None: nobody measured it, and nothing is added.
    """

    steps: dict[Mode, int] = field(default_factory=lambda: dict.fromkeys(Mode, 0))
    tokens: dict[Mode, int] = field(default_factory=lambda: dict.fromkeys(Mode, 0))
    switches: int = 0
    exchange_seconds: float = 0.0
    last: Mode | None = None
    exchange: ExchangeTimes | None = None
    _sink: Sink | None = None

    def count(self, mode: Mode, tokens: int) -> None:
        """Takes note of a step.

        Args:
            mode: of the step.
            tokens: as the kernels saw them.
        """
        switches, seconds = int(self.last not in (None, mode)), 0.0
        if mode is Mode.SEQUENCE and self.exchange is not None:
            seconds = self.exchange.seconds(tokens)
        self.steps[mode] += 1
        self.tokens[mode] += tokens
        self.switches += switches
        self.exchange_seconds += seconds
        self.last = mode
        if self._sink is not None:
            self._sink.add(mode, steps=1, tokens=tokens, switches=switches, exchange_seconds=seconds)

    def publish(self, sink: Sink) -> None:
        """Tells somebody of all steps so far, and of every one from now on."""
        for mode in Mode:
            sink.add(mode, steps=self.steps[mode], tokens=self.tokens[mode], switches=0, exchange_seconds=0.0)
        sink.add(
            Mode.SEQUENCE, steps=0, tokens=0, switches=self.switches, exchange_seconds=self.exchange_seconds
        )
        self._sink = sink

    def told(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "steps": {mode.value: count for mode, count in self.steps.items()},
            "tokens": {mode.value: count for mode, count in self.tokens.items()},
            "switches": self.switches,
            "exchange_seconds": self.exchange_seconds,
            "exchange_seconds_of_a_step": self.exchange.told() if self.exchange is not None else {},
        }
