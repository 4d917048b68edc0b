"""What a start with `--speculative-algorithm ARCTIC` or `SUFFIX` asks for and does not go with. Pure: reads a path."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALGORITHMS = ("ARCTIC", "SUFFIX")
WIDTHS = (2, 4, 8, 16, 32, 64)
DEFAULT_WIDTH = 32

# Flag of SGLang, value with which it is left alone, reason.
_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("pp_size", (1,), "drafts and their verification are one process per pipeline"),
    ("enable_dp_attention", (False,), "ranks with different batches cannot agree on the width of a step"),
    ("enable_lora", (False, None), "a draft would be verified with the wrong adapter's graph"),
    ("enable_two_batch_overlap", (False,), "a verified batch is not split"),
    ("disaggregation_mode", ("null",), "a draft's state does not travel from prefill to decode servers"),
    ("enable_hierarchical_cache", (False,), "SGLang asks for a draft model's KV cache, and there is none"),
    ("enable_mixed_chunk", (False,), "a step that verifies drafts has no room for a chunk of a prompt"),
    ("enable_pdmux", (False,), "prefill and decode must not run in the same step"),
    ("enable_hisparse", (False,), "its KV cache has no room for draft tokens"),
    ("speculative_adaptive", (False,), "the width of each step is already chosen here"),
    (
        "speculative_use_rejection_sampling",
        (False,),
        "drafts have no probabilities; they are verified by sampling",
    ),
)


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """What the worker is built from.

    Attributes:
        width: tokens of the widest verify step, the last accepted token included.
        suffix: whether drafts come from the suffix index.
        head_path: folder or name of the draft head's checkpoint, or None.
        head_tokens: tokens that the head drafts in a step, or None for what its checkpoint says.
        bar: in the hybrid, the least score (expected accepted tokens) of a suffix draft that takes the place of
            the head's, or None for as many as the head's promises, both as far as such drafts came true lately.
        max_batch: requests in a step above which nothing is drafted, or None.
    """

    width: int
    suffix: bool
    head_path: str | None
    head_tokens: int | None
    bar: float | None
    max_batch: int | None

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> "SpeculationSettings":
        """Reads SGLang's arguments and ours.

        Raises:
            ValueError: they contradict each other.
        """
        algorithm = args["speculative_algorithm"]
        head = args["speculative_draft_model_path"]
        suffix = algorithm == "SUFFIX" or args["enable_suffix_decoding"]
        if algorithm == "ARCTIC" and head is None:
            msg = (
                "--speculative-algorithm ARCTIC was given without --speculative-draft-model-path; name a draft head "
                "(Snowflake/Arctic-LSTM-Speculator-..., or one of `python -m speculative.train`), or use SUFFIX, "
                "which needs none"
            )
            raise ValueError(msg)
        if algorithm == "SUFFIX" and head is not None:
            msg = (
                f"--speculative-draft-model-path {head} was given with --speculative-algorithm SUFFIX, which has no "
                "draft head; for both use --speculative-algorithm ARCTIC --enable-suffix-decoding"
            )
            raise ValueError(msg)
        return cls(
            width=_width(args["speculative_num_draft_tokens"]),
            suffix=suffix,
            head_path=head,
            head_tokens=args["speculative_num_steps"],
            bar=args["suffix_min_score"],
            max_batch=args["speculative_disable_by_batch_size"],
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of verify steps, ascending, without 1 (which is plain decode)."""
        return (*(w for w in WIDTHS if w < self.width), self.width)


def _width(given: int | None) -> int:
    if given is None:
        return DEFAULT_WIDTH
    if not 2 <= given <= WIDTHS[-1]:
        msg = (
            f"--speculative-num-draft-tokens is {given}; it is the widest verify step, the last accepted token "
            f"included, and must be from 2 to {WIDTHS[-1]}"
        )
        raise ValueError(msg)
    return given


def refusals(args: Mapping[str, Any]) -> list[str]:
    """What speculation does not go with, one line each with its reason.

    Args:
        args: SGLang's arguments by name; one that is missing is left alone.
    """
    found = []
    for name, allowed, reason in _REFUSED:
        value = args.get(name, allowed[0])
        if value not in allowed:
            found.append(f"--{name.replace('_', '-')} {value}: {reason}")
    return found


def model_refusals(config: Any, *, recurrent: bool) -> list[str]:
    """What a model must not be, one line each with its reason.

    Args:
        config: SGLang's `ModelConfig`, or anything with its attributes.
        recurrent: whether the model has layers with a recurrent state (Mamba, linear attention).
    """
    found = []
    if getattr(config, "is_encoder_decoder", False):
        found.append("an encoder-decoder model: its cross attention is not verified")
    if getattr(config, "model_is_mrope", False):
        found.append("a model with multimodal positions: a draft's positions are those of text")
    if recurrent:
        found.append(
            "a model with recurrent layers: their state cannot be taken back when a draft is refused"
        )
    return found


def check_head_path(path: str | None) -> None:
    """Refuses what can be neither a draft head's folder nor a name on the hub, before SGLang looks for it there.

    Raises:
        ValueError: there is no such folder, or it has no config.json.
    """
    if path is None or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) or (Path(path) / "config.json").is_file():
        return
    missing = "has no config.json" if Path(path).is_dir() else "is not there"
    msg = (
        f"--speculative-draft-model-path {path}: the folder {missing}; give the folder of a draft head (config.json "
        "and weights), or its name on the hub, such as Snowflake/Arctic-LSTM-Speculator-..."
    )
    raise ValueError(msg)
