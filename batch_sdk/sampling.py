"""Sampling parameters: checked here, before an engine spends half a minute on starting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from batch_sdk.errors import OptionError, check_names


class SamplingOptions(TypedDict, total=False):
    """The sampling keywords of `batch_sdk.generate`; their meaning and bounds are `SamplingParams`'."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    stop: str | list[str] | tuple[str, ...]
    stop_token_ids: list[int] | tuple[int, ...]
    ignore_eos: bool
    skip_special_tokens: bool
    seed: int | None


_NUMBER = (int, float)
# name -> accepted types, lowest, highest, whether the lowest itself is allowed
_BOUNDS: dict[str, tuple[tuple[type, ...], float, float, bool]] = {
    "max_new_tokens": ((int,), 1, float("inf"), True),
    "min_new_tokens": ((int,), 0, float("inf"), True),
    "temperature": (_NUMBER, 0, float("inf"), True),
    "top_p": (_NUMBER, 0, 1, False),
    "top_k": ((int,), -1, float("inf"), True),
    "min_p": (_NUMBER, 0, 1, True),
    "frequency_penalty": (_NUMBER, -2, 2, True),
    "presence_penalty": (_NUMBER, -2, 2, True),
    "repetition_penalty": (_NUMBER, 0, 2, True),
    "seed": ((int,), 0, 2**31 - 1, True),
}
_REQUIRED = ("max_new_tokens", "min_new_tokens")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of every row are chosen.

    `None` leaves the choice to the engine's own default. `temperature=0` is greedy. `top_k=-1` is the whole
    vocabulary. `seed` fixes the draws only where the engine samples deterministically (SGLang:
    `enable_deterministic_inference`). `stop` strings end a response and are not part of it.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (types, low, high, closed) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and name not in _REQUIRED:
                continue
            good = isinstance(value, types) and not isinstance(value, bool)
            if not good or not (low <= value <= high) or (value == low and not closed):
                kind = "a whole number" if types == (int,) else "a number"
                span = f"{'from' if closed else 'above'} {low:g}" + (
                    "" if high == float("inf") else f" to {high:g}"
                )
                raise OptionError(f"{name}={value!r}", f"{kind} {span}")
        if self.top_k == 0:
            raise OptionError("top_k=0", "a whole number from 1, or -1 for the whole vocabulary")
        if self.min_new_tokens > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens={self.min_new_tokens} with max_new_tokens={self.max_new_tokens}",
                "min_new_tokens no larger than max_new_tokens",
            )
        self._check_lists()

    def _check_lists(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, (list, tuple)) or not all(isinstance(s, str) and s for s in stop):
            raise OptionError(f"stop={self.stop!r}", "a string or a list of strings, none of them empty")
        ids = self.stop_token_ids
        if not isinstance(ids, (list, tuple)) or not all(type(i) is int and i >= 0 for i in ids):
            raise OptionError(f"stop_token_ids={ids!r}", "a list of token ids from 0")
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}", "True or False")
        # Frozen, yet a single string or a list is what people write: keep the one canonical form.
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(ids))

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Build from keyword options; an unknown key is an `OptionError` that names the nearest known one."""
        check_names(options, [f.name for f in fields(cls)], "sampling option")
        return cls(**options)

    def to_request(self) -> dict[str, Any]:
        """Return the parameters under SGLang's names, without those left to the engine."""
        request: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or value == ():
                continue
            request[field.name] = list(value) if isinstance(value, tuple) else value
        if "seed" in request:
            request["sampling_seed"] = request.pop("seed")
        return request
