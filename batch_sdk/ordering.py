"""In which order waiting rows go to the engine. The output's order is the table's whatever this says.

SGLang keeps the keys and values of prompts in a tree of prefixes. Rows that share a long prefix hit it if they
run close together; scattered over a table larger than the cache they compute the prefix again and again, and so do
rows that start at the same moment.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence

from batch_sdk.engines.base import EmbedRequest, Request

_STEP_CHARS = 64  # about sixteen tokens; shorter common prefixes are none
_STEPS_PER_DOUBLING = 4
_REFILL_SHARE = 4


def prefix_text(request: Request) -> str:
    """Return what the request's prompt begins with, as one text."""
    if isinstance(request, EmbedRequest):
        return request.texts[0] if request.texts else ""
    if isinstance(request.prompt, str):
        return request.prompt
    return "\0".join(f"{message['role']}\0{message['content']}" for message in request.prompt)


def common_prefix(a: str, b: str) -> int:
    """Return how many characters two texts have in common from the first on."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        # In C, and only what is not known yet.
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def by_prefix(requests: Sequence[Request]) -> list[Request]:
    """Return the requests so that those with a long common prefix stand together.

    The groups form a tree, as prefixes do. On every level the group with the oldest row comes first, and in a
    group with nothing more in common the oldest row: so the oldest row of all comes first, and no row waits for
    more than the groups before it. The first row of a group goes a group ahead; see `_led`.
    """
    texts = [prefix_text(request) for request in requests]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    levels = [_level(common_prefix(texts[a], texts[b])) for a, b in itertools.pairwise(order)]
    positions = [requests[index].position for index in order]
    arranged = _arranged(list(range(len(order))), levels, positions, 1)
    return [requests[order[place]] for place in arranged]


def _level(shared: int) -> int:
    return int(_STEPS_PER_DOUBLING * math.log2(1 + shared // _STEP_CHARS))


def _arranged(places: list[int], levels: list[int], positions: list[int], level: int) -> list[int]:
    """Order a run of neighbours in the sorted texts that share prefixes of at least the level below `level`."""
    inner = [levels[place] for place in places[:-1]]
    if not inner or max(inner) < level:
        return sorted(places, key=positions.__getitem__)
    level = max(level, min(inner))
    groups = [[places[0]]]
    for place, shared in zip(places[1:], inner, strict=True):
        if shared >= level:
            groups[-1].append(place)
        else:
            groups.append([place])
    groups.sort(key=lambda group: min(positions[place] for place in group))
    return _led([_arranged(group, levels, positions, level + 1) for group in groups])


def _led(groups: list[list[int]]) -> list[int]:
    """Join groups so that the first of each comes before the others of the group before it.

    The rows of a group start together, and would each compute their prefix: the first is to have left it in the
    cache by then.
    """
    joined = groups[0][:1]
    for group, following in itertools.pairwise([*groups, []]):
        joined += following[:1] + group[1:]
    return joined


class TableOrder:
    """Rows go to the engine as they come."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []

    def add(self, requests: Sequence[Request]) -> None:
        """Take rows that may be submitted."""
        self._waiting.extend(requests)

    def take(self, in_flight: int) -> list[Request]:
        """Return the rows to submit now; `in_flight` requests are at the engine."""
        taken, self._waiting = self._waiting, []
        return taken


class PrefixOrder(TableOrder):
    """Rows that share prefixes go together.

    Args:
        window_rows: rows that may wait or be in flight. A quarter of them is in flight, the others wait for
            those that they share a prefix with.
    """

    def __init__(self, window_rows: int) -> None:
        super().__init__()
        self._limit = max(1, window_rows // _REFILL_SHARE)
        self._ready: deque[Request] = deque()

    def take(self, in_flight: int) -> list[Request]:
        """Return the next of them, as far as there is room in flight."""
        if self._waiting and (len(self._waiting) >= self._limit or len(self._ready) < self._limit):
            self._ready = deque(by_prefix([*self._ready, *self._waiting]))
            self._waiting = []
        room = min(len(self._ready), max(0, self._limit - in_flight))
        return [self._ready.popleft() for _ in range(room)]
