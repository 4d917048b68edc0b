"""One forward step: rows packed on the device, and attention that stays within each row. torch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from arctic_sglang.embedding.rows import TokenRows, equal_runs

Varlen = Callable[..., torch.Tensor]


@dataclass(slots=True)
class Step:
    """Rows on the device, one after another. It stands where SGLang's batch does when a pooler looks at it.

    Attributes:
        ids: int32 `[tokens]`.
        positions: int64 `[tokens]`, of each token in its row, as the model counts them.
        bounds: int32 `[rows + 1]`, where each row begins and the last one ends.
        extend_seq_lens: int32 `[rows]`, tokens of each row.
        lengths: the same on the host, int32.
        max_length: tokens of the longest row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    extend_seq_lens: torch.Tensor
    lengths: np.ndarray
    max_length: int
    # What SGLang's poolers read of a batch: no Matryoshka cut here, it is made per request afterwards.
    dimensions: None = None
    return_pooled_hidden_states: bool = False

    @property
    def extend_seq_lens_cpu(self) -> list[int]:
        """Tokens of each row."""
        return self.lengths.tolist()

    @classmethod
    def of(
        cls, rows: TokenRows, device: torch.device, first_position: int = 0, pad_id: int | None = None
    ) -> Step:
        """Copy rows to the device, in one piece.

        Args:
            rows: at least one.
            device: where the model is.
            first_position: of the first token of a row.
            pad_id: tokens that take no position, as in RoBERTa; None: all do.
        """
        count = rows.rows
        bounds = np.zeros(count + 1, np.int64)
        np.cumsum(rows.lengths, out=bounds[1:])
        host = np.concatenate(
            [rows.ids, positions(rows, bounds, first_position, pad_id), bounds, rows.lengths]
        )
        packed = torch.from_numpy(host.astype(np.int32))
        if device.type == "cuda":
            packed = packed.pin_memory().to(device, non_blocking=True)
        ids, places, ends, lengths = packed.split([rows.tokens, rows.tokens, count + 1, count])
        return cls(ids, places.long(), ends, lengths, rows.lengths, int(rows.lengths.max()))


def positions(rows: TokenRows, bounds: np.ndarray, first: int, pad_id: int | None) -> np.ndarray:
    """Positions of all tokens, int64 `[tokens]`: from `first` in every row.

    With a pad id they are counted as in RoBERTa (https://arxiv.org/abs/1907.11692): a pad token stands at `first - 1`
    and takes no number.
    """
    if pad_id is not None and (rows.ids == pad_id).any():
        counted = rows.ids != pad_id
        running = np.concatenate([[0], np.cumsum(counted)])
        within = running[1:] - np.repeat(running[bounds[:-1]], rows.lengths)
        return np.where(counted, within + first - 1, first - 1)
    return np.arange(rows.tokens) - np.repeat(bounds[:-1], rows.lengths) + first


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    step: Step,
    *,
    scale: float,
    causal: bool,
    varlen: Varlen | None = None,
) -> torch.Tensor:
    """Attention of every token to its own row.

    Args:
        q: `[tokens, heads, size]`.
        k: `[tokens, kv heads, size]`; kv heads divide heads.
        v: the same.
        step: where rows begin.
        scale: of the products.
        causal: whether a token sees only itself and those before it.
        varlen: a kernel for packed rows, `(q, k, v, bounds, max_length, scale, causal)`; None: runs of rows of
            equal length, each through torch's own attention.

    Returns:
        `[tokens, heads, size]`.
    """
    if varlen is not None:
        return varlen(q, k, v, step.bounds, step.max_length, scale, causal)
    return _attend_runs(q, k, v, step.lengths, scale, causal)


def _attend_runs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: np.ndarray, scale: float, causal: bool
) -> torch.Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    start = 0
    for first, last, length in equal_runs(lengths):
        end = start + (last - first) * length
        parts = [
            part[start:end].view(last - first, length, *part.shape[1:]).transpose(1, 2) for part in (q, k, v)
        ]
        grouped = q.shape[1] != k.shape[1]
        found = torch.nn.functional.scaled_dot_product_attention(
            *parts, scale=scale, is_causal=causal, enable_gqa=grouped
        )
        out[start:end] = found.transpose(1, 2).reshape(end - start, *q.shape[1:])
        start = end
    return out


def attend_slow(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: np.ndarray, scale: float, causal: bool
) -> torch.Tensor:
    """The specification of `attend`, one row at a time in float32."""
    found: list[Any] = []
    repeat = q.shape[1] // k.shape[1]
    for row in torch.arange(len(q)).split(lengths.tolist()):
        one, two, three = (part[row.to(q.device)].float().transpose(0, 1) for part in (q, k, v))
        two, three = two.repeat_interleave(repeat, 0), three.repeat_interleave(repeat, 0)
        scores = one @ two.transpose(1, 2) * scale
        if causal:
            hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        found.append((scores.softmax(-1) @ three).transpose(0, 1))
    return torch.cat(found).to(q.dtype)
