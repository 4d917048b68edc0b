"""What a distillation run can be told, with the defaults of the published recipes."""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swiftkv.errors import SwiftKVError

DECAYS = ("cosine", "linear")
DTYPES = ("auto", "bfloat16", "float32")
DEFAULT_SEQUENCE_LENGTH = 8192
# What may differ between the parts of a resumed run: none of it changes what is learned.
FREE = frozenset({"save_every", "heldout", "evaluate_every", "link"})


def option(default: Any, kind: type, text: str, **more: Any) -> Any:
    """A field with what its flag needs: a type, a help text, and `choices` or `nargs` if it has them."""
    return field(default=default, metadata={"type": kind, "help": text, **more})


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Adds a flag for each field of a dataclass whose fields were made by `option`."""
    for found in dataclasses.fields(settings):
        flag = f"--{found.name.replace('_', '-')}"
        more = dict(found.metadata)
        kind, text = more.pop("type"), more.pop("help")
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif found.default is dataclasses.MISSING:
            parser.add_argument(flag, type=kind, required=True, help=text, **more)
        else:
            shown = text if found.default is None else f"{text} (%(default)s)"
            parser.add_argument(flag, type=kind, default=found.default, help=shown, **more)


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. Each field is a flag of `python -m swiftkv.distill`; its help says what it means.

    Raises:
        SwiftKVError: a value makes no sense.
    """

    model: str = field(metadata={"type": str, "help": "SwiftKV folder, as swiftkv.convert writes it"})
    data: str = field(metadata={"type": str, "help": ".parquet or .jsonl: a file, a folder or a glob"})
    out: str = field(metadata={"type": str, "help": "folder to write"})
    teacher: str | None = option(None, str, "the base, if the folder does not hold its projections")
    column: str | None = option(None, str, "the column of the text (messages, prompt and response, or text)")
    sequence_length: int | None = option(
        None,
        int,
        "tokens of a sequence; rows are packed into it, longer ones cut (the model's, at most 8192)",
    )
    batch_size: int = option(1, int, "sequences per device and pass")
    gradient_accumulation: int = option(1, int, "passes per optimiser step")
    learning_rate: float = option(2e-4, float, "the highest")
    warmup_ratio: float = option(0.05, float, "share of the run in which it rises")
    decay: str = option("cosine", str, "how it falls to zero after that", choices=DECAYS)
    epochs: int = option(1, int, "passes over the data at most")
    max_steps: int | None = option(None, int, "optimiser steps at most")
    minutes: float | None = option(None, float, "minutes of training at most; the learning rate follows")
    temperature: float = option(2.0, float, "of the KL divergence")
    hidden_weight: float = option(1.0, float, "of the distance of hidden states, beside the KL divergence")
    weight_decay: float = option(0.0, float, "AdamW's")
    clip_norm: float = option(1.0, float, "largest norm of the gradients")
    gradient_checkpointing: bool = option(False, bool, "less memory, more time")
    dtype: str = option("auto", str, "to compute in; auto: bfloat16 on a GPU, else float32", choices=DTYPES)
    seed: int = option(0, int, "of the rows' order")
    save_every: int | None = option(None, int, "steps between savings that --resume goes on from")
    heldout: str | None = option(None, str, "rows to measure on, at the start and the end")
    evaluate_every: int | None = option(None, int, "and every so many steps")
    link: bool = option(False, bool, "link to the model's files by relative symbolic links, do not copy")

    def __post_init__(self) -> None:
        for name in (
            "sequence_length", "batch_size", "gradient_accumulation", "epochs", "max_steps", "save_every",
            "evaluate_every",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SwiftKVError(f"{_flag(name)} is {value}; it must be 1 or more")
        for name in ("learning_rate", "temperature", "clip_norm", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SwiftKVError(f"{_flag(name)} is {value}; it must be above 0")
        for name in ("hidden_weight", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SwiftKVError(f"{_flag(name)} is {getattr(self, name)}; it must not be below 0")
        if self.seed < 0:
            raise SwiftKVError(f"--seed is {self.seed}; it must not be below 0")
        if not 0 <= self.warmup_ratio < 1:
            raise SwiftKVError(f"--warmup-ratio is {self.warmup_ratio}; it must be from 0 to below 1")
        for name, known in (("decay", DECAYS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise SwiftKVError(f"{_flag(name)} is {getattr(self, name)}; it must be {' or '.join(known)}")
        if self.sequence_length == 1:
            raise SwiftKVError("--sequence-length is 1; a token needs one before it to be predicted")
        if self.evaluate_every and not self.heldout:
            raise SwiftKVError("--evaluate-every without --heldout: name the rows to measure on")

    def for_positions(self, longest: int | None) -> "Settings":
        """The same with a sequence length.

        Args:
            longest: the model's positions, None if its config does not say.

        Raises:
            SwiftKVError: sequences longer than that are asked for.
        """
        return dataclasses.replace(self, sequence_length=length_of(self.sequence_length, longest))

    @property
    def work(self) -> Path:
        """Where the run keeps its tokens and what it needs to go on: a folder beside `out`."""
        out = Path(self.out)
        return out.with_name(f"{out.name}.resume")

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)

    def check_same(self, other: dict[str, Any]) -> None:
        """Refuses to go on with a run of other settings.

        Args:
            other: the fields that the run was begun with.

        Raises:
            SwiftKVError: a setting that matters differs; the message names each.
        """
        refuse_changes(self.to_dict(), other, FREE)

    def rate(self, progress: float) -> float:
        """The learning rate when this share of the run, from 0 to 1, is done."""
        return schedule(self.learning_rate, self.warmup_ratio, self.decay, progress)


def length_of(given: int | None, longest: int | None) -> int:
    """Tokens of a sequence.

    Args:
        given: the flag.
        longest: the model's positions, None if its config does not say.

    Raises:
        SwiftKVError: sequences longer than that are asked for.
    """
    length = given or min(DEFAULT_SEQUENCE_LENGTH, longest or DEFAULT_SEQUENCE_LENGTH)
    if longest and length > longest:
        raise SwiftKVError(f"--sequence-length is {length} and the model has {longest} positions")
    return length


def schedule(highest: float, warmup_ratio: float, decay: str, progress: float) -> float:
    """The learning rate when a share of the run, from 0 to 1, is done: up to the highest, then down to zero."""
    if progress < warmup_ratio:
        return highest * progress / warmup_ratio
    left = max(0.0, 1.0 - progress) / (1.0 - warmup_ratio)
    return highest * (left if decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def refuse_changes(now: dict[str, Any], then: dict[str, Any], free: frozenset[str]) -> None:
    """Refuses to go on with a run of other settings.

    Args:
        now: the settings by name.
        then: those that the run was begun with.
        free: names that may differ.

    Raises:
        SwiftKVError: a setting that matters differs; the message names each.
    """
    changed = [
        f"{_flag(name)} was {then.get(name)} and is {now[name]}"
        for name in now
        if name not in free and then.get(name) != now[name]
    ]
    if changed:
        raise SwiftKVError(f"the run was begun with other settings: {'; '.join(changed)}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
