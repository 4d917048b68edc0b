"""What a training run can be told, with the defaults of Snowflake's recipes where they have one."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speculative.training.errors import TrainingError
from speculative.training.generations import Sampling
from swiftkv.settings import DTYPES, option, refuse_changes, schedule

STARTS = ("model", "random")
LABELS = ("tokens", "model")
DEFAULT_SEQUENCE_LENGTH = 2048
# What may differ between the parts of a resumed run: none of it changes what is learned.
FREE = frozenset({"save_every", "evaluate_every", "generation_batch_size"})


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. Each field is a flag of `python -m speculative.train`; its help says what it means.

    Raises:
        TrainingError: a value makes no sense.
    """

    model: str = field(
        metadata={"type": str, "help": "the model to draft for: a folder, or a name of the hub"}
    )
    output: str = field(metadata={"type": str, "help": "folder to write"})
    prompts: str | None = option(
        None, str, ".parquet or .jsonl (messages, prompt or text) for the model to continue first"
    )
    generations: str | None = option(
        None, str,
        "Parquet of prompt_ids and response_ids, lists of token ids; with --prompts the folder to keep them in",
    )  # fmt: skip
    max_prompts: int | None = option(None, int, "only the first so many prompts")
    window: int = option(64, int, "tokens of a prompt cut from a text")
    max_new_tokens: int = option(256, int, "tokens of a continuation at most")
    ignore_eos: bool = option(False, bool, "write on after the end token")
    temperatures: tuple[float, ...] = option(
        (0.0, 1.0), float, "each prompt is continued once at each; 0 is greedy", nargs="+"
    )
    top_k: int = option(10, int, "draw from the so many likeliest tokens")
    generation_batch_size: int = option(32, int, "prompts at a time")
    n_predict: int = option(3, int, "tokens that the head learns to draft")
    inner_dim: int | None = option(None, int, "width of the head (that of the model's hidden states)")
    start: str = option(
        "model", str, "where the head's vocabulary weights begin: at the model's, which takes its width", choices=STARTS
    )  # fmt: skip
    labels: str = option(
        "tokens", str, "what the head learns to say: the token that came, or the model's distribution there",
        choices=LABELS,
    )  # fmt: skip
    keep_states: bool = option(
        False, bool, "run the model once over all rows and keep its hidden states on disk, for several epochs"
    )
    sequence_length: int | None = option(
        None, int, f"of packed rows, in tokens; longer ones are cut (the model's, at most {DEFAULT_SEQUENCE_LENGTH})"
    )  # fmt: skip
    batch_size: int = option(8, int, "sequences per device and pass")
    gradient_accumulation: int = option(1, int, "passes per optimiser step")
    learning_rate: float = option(1e-3, float, "the highest")
    warmup_ratio: float = option(0.05, float, "share of the run in which it rises; after that, half a cosine")
    weight_decay: float = option(0.1, float, "AdamW's, of matrices")
    clip_norm: float = option(1.0, float, "largest norm of the gradients")
    epochs: int = option(1, int, "passes over the rows at most")
    max_steps: int | None = option(None, int, "optimiser steps at most")
    dtype: str = option("auto", str, "to compute in; auto: bfloat16 on a GPU, else float32", choices=DTYPES)
    seed: int = option(0, int, "of draws, of the rows' order and of random weights")
    heldout_every: int = option(50, int, "of so many prompts one is kept to measure on")
    evaluate_every: int | None = option(None, int, "measure after so many steps, too, not only at both ends")
    save_every: int | None = option(None, int, "steps between savings that --resume goes on from")

    def __post_init__(self) -> None:
        if not self.prompts and not self.generations:
            raise TrainingError("neither --prompts nor --generations is given; name what to train on")
        for name in (
            "max_prompts", "window", "max_new_tokens", "top_k", "generation_batch_size", "n_predict", "inner_dim",
            "batch_size", "gradient_accumulation", "epochs", "max_steps", "evaluate_every", "save_every",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{_flag(name)} is {value}; it must be 1 or more")
        for name in ("sequence_length", "heldout_every"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise TrainingError(f"{_flag(name)} is {value}; it must be 2 or more")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{_flag(name)} is {getattr(self, name)}; it must be above 0")
        for name in ("weight_decay", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise TrainingError(f"{_flag(name)} is {getattr(self, name)}; it must not be below 0")
        if not self.temperatures or not all(0 <= value < float("inf") for value in self.temperatures):
            raise TrainingError(f"--temperatures is {self.temperatures}; each must be 0 or more")
        if not 0 <= self.warmup_ratio < 1:
            raise TrainingError(f"--warmup-ratio is {self.warmup_ratio}; it must be from 0 to below 1")
        for name, known in (("start", STARTS), ("labels", LABELS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise TrainingError(
                    f"{_flag(name)} is {getattr(self, name)}; it must be {' or '.join(known)}"
                )

    def for_model(self, hidden: int, positions: int | None) -> "Settings":
        """The same with what the model decides.

        Args:
            hidden: width of its hidden states.
            positions: how long its sequences can be; None if its config does not say.

        Raises:
            TrainingError: longer sequences are asked for, or no prompt has room for its continuation.
        """
        length = self.sequence_length or min(DEFAULT_SEQUENCE_LENGTH, positions or DEFAULT_SEQUENCE_LENGTH)
        if positions and length > positions:
            raise TrainingError(f"--sequence-length is {length} and the model has {positions} positions")
        if self.prompts and self.max_new_tokens >= length:
            raise TrainingError(
                f"--max-new-tokens is {self.max_new_tokens}; with sequences of {length} tokens no prompt has room"
            )
        return dataclasses.replace(self, sequence_length=length, inner_dim=self.inner_dim or hidden)

    @property
    def work(self) -> Path:
        """Where the run keeps what it needs to go on: a folder beside `output`."""
        output = Path(self.output)
        return output.with_name(f"{output.name}.resume")

    @property
    def sampling(self) -> Sampling:
        """How prompts are continued."""
        return Sampling(self.temperatures, self.top_k, self.max_new_tokens, self.ignore_eos, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return dataclasses.asdict(self) | {"temperatures": list(self.temperatures)}

    def check_same(self, other: dict[str, Any]) -> None:
        """Raises SwiftKVError where these are not the settings that the run was begun with."""
        refuse_changes(self.to_dict(), other, FREE)

    def rate(self, progress: float) -> float:
        """The learning rate when this share of the run, from 0 to 1, is done."""
        return schedule(self.learning_rate, self.warmup_ratio, "cosine", progress)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
