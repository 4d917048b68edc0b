"""Where the arrays of the suffix index live, and which stretch of pages belongs to whom. Pure: numpy only."""

import numpy as np

from speculative.suffix.arrays import NEWEST, PAGES, Index
from speculative.suffix.settings import PAGE


def new_index(pages: int, levels: int, in_use: bool) -> Index:
    """An index of `pages` pages beside page 0. Its memory is taken now: first touches cost
    milliseconds, and no step is to pay them.

    Args:
        pages: how many.
        levels: how many lengths of run are looked up.
        in_use: whether every page counts as taken already and is numbered by where it lies (a request's own
            text), or none is (the ring of responses).
    """
    places = (pages + 1) * PAGE
    newest = pages if in_use else 0
    index = Index(
        tokens=np.zeros(places, np.int32),
        links=np.zeros((places, levels), np.int32),
        heads=np.zeros((levels, places), np.int32),
        before=np.zeros(pages + 1, np.int32),
        after=np.zeros(pages + 1, np.int32),
        owner=np.zeros(pages + 1, np.int32),
        used=np.zeros(pages + 1, np.uint8),
        ring=np.array([newest, newest, pages], np.int32),
    )
    for array in (index.tokens, index.links, index.heads):
        array.fill(0)
    return index


def grown(index: Index, pages: int) -> Index:
    """A copy with room for `pages` pages, of an index that is numbered by where pages lie."""
    levels = index.links.shape[1]
    larger = new_index(pages, levels, in_use=True)
    for name in ("tokens", "links", "before", "after"):
        old = getattr(index, name)
        getattr(larger, name)[: len(old)] = old
    larger.heads[:, : index.heads.shape[1]] = index.heads
    return larger


def renumbered(index: Index) -> None:
    """Starts the numbers of a ring again, in place, long before int32 runs out of them."""
    back = int(index.ring[NEWEST]) - int(index.ring[PAGES])
    for numbers in (index.heads, index.links):
        alive = numbers // PAGE > back
        np.subtract(numbers, back * PAGE, out=numbers, where=alive)
        numbers[~alive] = 0
    index.ring[NEWEST] -= back


class Stretches:
    """Free pages of an index, given out as stretches of adjacent ones: the lowest that is large enough."""

    def __init__(self, pages: int) -> None:
        self._free = [(1, pages)]  # (first, how many), ascending, never adjacent

    def take(self, pages: int) -> int | None:
        """The first of `pages` adjacent pages, None if there are none."""
        for at, (first, count) in enumerate(self._free):
            if count >= pages:
                self._free[at : at + 1] = [(first + pages, count - pages)] if count > pages else []
                return first
        return None

    def give(self, first: int, pages: int) -> None:
        """Takes a stretch back."""
        self._free.append((first, pages))
        merged: list[tuple[int, int]] = []
        for start, count in sorted(self._free):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + count)
            else:
                merged.append((start, count))
        self._free = merged
