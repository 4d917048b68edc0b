"""Token ids of many texts as two arrays, and their way into forward batches. NumPy alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Texts as token ids, one after another without padding.

    Attributes:
        ids: int32 `[tokens]`.
        lengths: int32 `[rows]`, tokens of each row; their sum is `tokens`.
    """

    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> TokenRows:
        """The same from one list of ids a row."""
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        return cls(np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        none = np.empty(0, np.int32)
        return cls(
            np.concatenate([none, *(part.ids for part in parts)]),
            np.concatenate([none, *(part.lengths for part in parts)]),
        )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        return len(self.ids)

    def take(self, rows: np.ndarray) -> TokenRows:
        """These rows, in this order."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = (np.cumsum(self.lengths, dtype=np.int64) - self.lengths)[rows]
        # Position i of the result reads ids[starts of its row + how far i is into the row].
        within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return TokenRows(self.ids[np.repeat(starts, lengths) + within], lengths)

    def slice(self, first: int, last: int) -> TokenRows:
        """Rows `first` to `last`, exclusive, as views."""
        start = int(self.lengths[:first].sum(dtype=np.int64))
        end = start + int(self.lengths[first:last].sum(dtype=np.int64))
        return TokenRows(self.ids[start:end], self.lengths[first:last])

    def to_lists(self) -> list[list[int]]:
        """One list of ids a row."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return [row.tolist() for row in np.split(self.ids, ends[:-1])] if len(ends) else []


def pack(lengths: np.ndarray, max_tokens: int) -> list[tuple[int, int]]:
    """Cut rows that stand in order into blocks of at most `max_tokens`; a longer row is a block alone.

    Args:
        lengths: int `[rows]`.
        max_tokens: of a block.

    Returns:
        `(first, last)` of each block, `last` exclusive: all rows, in order, none twice.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    blocks = []
    first, before = 0, 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(ends, before + max_tokens, side="right")))
        blocks.append((first, last))
        first, before = last, int(ends[last - 1])
    return blocks


def pack_slow(lengths: Iterable[int], max_tokens: int) -> list[tuple[int, int]]:
    """The specification of `pack`, one row at a time."""
    blocks: list[tuple[int, int]] = []
    used = 0
    for row, length in enumerate(lengths):
        if blocks and used + length <= max_tokens:
            blocks[-1] = (blocks[-1][0], row + 1)
            used += length
        else:
            blocks.append((row, row + 1))
            used = length
    return blocks


def equal_runs(lengths: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbouring rows of the same length: `(first, last, length)`, `last` exclusive."""
    if not len(lengths):
        return
    edges = np.flatnonzero(np.diff(lengths)) + 1
    bounds = [0, *edges.tolist(), len(lengths)]
    for first, last in pairwise(bounds):
        yield first, last, int(lengths[first])
