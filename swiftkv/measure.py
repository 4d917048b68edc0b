"""How close a SwiftKV model is to its base: perplexities, and how often both say the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from swiftkv.data import Table, in_batches
from swiftkv.hf import SwiftKVForCausalLM


@dataclass(frozen=True, slots=True)
class Distance:
    """Teacher-forced: both read the same held-out text.

    Attributes:
        tokens: tokens that count.
        base_perplexity: the base's, on them.
        swiftkv_perplexity: the SwiftKV model's.
        equal_next_token: share of them for which both find the same token likeliest.
    """

    tokens: int
    base_perplexity: float
    swiftkv_perplexity: float
    equal_next_token: float

    @property
    def ratio(self) -> float:
        """The SwiftKV model's perplexity over the base's."""
        return self.swiftkv_perplexity / self.base_perplexity

    @classmethod
    def of(cls, sums: torch.Tensor) -> "Distance":
        """From the sums that `swiftkv.distillation.distance` makes."""
        tokens, base, swiftkv, equal = sums.double().tolist()
        return cls(int(tokens), float(np.exp(base / tokens)), float(np.exp(swiftkv / tokens)), equal / tokens)

    def to_dict(self) -> dict[str, float]:
        """The figures by name."""
        names = ("tokens", "base_perplexity", "swiftkv_perplexity", "ratio", "equal_next_token")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Continuations:
    """Free-running: each writes on from the same prompts, greedily.

    Attributes:
        prompts: how many.
        equal: share of them that both continue in the same way to the end.
        equal_tokens: tokens until they first differ, over the tokens of the base's continuations.
    """

    prompts: int
    equal: float
    equal_tokens: float

    def to_dict(self) -> dict[str, float]:
        """The figures by name."""
        return {"prompts": self.prompts, "equal": self.equal, "equal_tokens": self.equal_tokens}


@torch.no_grad()
def distance_sums(
    module: torch.nn.Module,
    table: Table,
    sequence_length: int,
    size: int,
    device: torch.device,
    *,
    part: int = 0,
    parts: int = 1,
) -> torch.Tensor:
    """The sums of a `Distance` over one part of the rows, float64 of shape [4].

    Args:
        module: a `swiftkv.distillation.Distillation`, wrapped or not.
        table: the rows.
        sequence_length: tokens of a sequence at most.
        size: sequences of a batch.
        device: where the module is.
        part: which part, from 0.
        parts: into how many the batches are dealt; each takes as many passes, as sharded modules need.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    batches = list(in_batches(table, sequence_length, size))
    for first in range(0, len(batches), parts):
        spare = first + part >= len(batches)
        batch = batches[0 if spare else first + part]
        (found,) = module(batch.to(device), measure=True)
        if not spare:
            sums += found.double()
    return sums


@torch.no_grad()
def continuations(
    model: SwiftKVForCausalLM, tokenizer: Any, prompts: Sequence[np.ndarray], max_new_tokens: int, size: int
) -> Continuations:
    """Lets both write on.

    Args:
        model: loaded by `swiftkv.distillation.load`.
        tokenizer: for its padding and end tokens.
        prompts: token ids of each.
        max_new_tokens: tokens of a continuation at most.
        size: prompts of a batch.
    """
    # of like lengths together: little padding, and the same batches for both
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    equal, same, total = 0, 0, 0
    for first in range(0, len(order), size):
        batch = [prompts[i] for i in order[first : first + size]]
        model.model.runs_as_base = True
        try:
            base = _write_on(model, tokenizer, batch, max_new_tokens)
        finally:
            model.model.runs_as_base = False
        swiftkv = _write_on(model, tokenizer, batch, max_new_tokens)
        for expected, found in zip(base, swiftkv, strict=True):
            equal += expected == found
            same += next(
                (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
                min(len(expected), len(found)),
            )
            total += len(expected)
    count = len(prompts)
    return Continuations(count, equal / count if count else 0.0, same / total if total else 0.0)


def _write_on(
    model: SwiftKVForCausalLM, tokenizer: Any, prompts: Sequence[np.ndarray], max_new_tokens: int
) -> list[list[int]]:
    """Continuations up to and with the end token, as lists of token ids."""
    ends = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
    ends = [end for end in ends if end is not None]
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):  # on the right, so that all are continued in the same column
        ids[line, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[line, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=max_new_tokens,
        do_sample=False, num_beams=1, use_cache=True, eos_token_id=ends or None, pad_token_id=0,
    )  # fmt: skip
    return [_until(line, ends) for line in out[:, width:].tolist()]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: last + 1]
