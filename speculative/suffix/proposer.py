"""`SuffixProposer`: suffix decoding for a server. One compiled call a step for all requests."""

import heapq
from collections import deque
from pathlib import Path

import numpy as np

from speculative.base import Drafts, Int32
from speculative.suffix import checks, kernels, snapshot
from speculative.suffix.arrays import (
    DONE,
    FIELDS,
    INDEXED,
    KEPT,
    LAST,
    LENGTH,
    NEWEST,
    PAGES,
    Batch,
    Params,
    Slots,
    Voters,
)
from speculative.suffix.settings import MAX_TOKENS, PAGE, SuffixSettings
from speculative.suffix.store import Stretches, grown, new_index, renumbered

ROOM = 512  # tokens of response that a new request gets room for beside its prompt
VISITS = 8  # places visited per vote wanted, at most: strangers of the same hash cost time


class SuffixProposer:
    """A `Proposer` that copies from the request's own text and from the responses of others.

    `step` releases the GIL and costs the same however long the texts are. The specification is `SuffixTwin`.
    """

    def __init__(self, settings: SuffixSettings | None = None, visits: int | None = None) -> None:
        """An empty index.

        Args:
            settings: see there.
            visits: bound of the places that one look-up may visit, default 8 for each of the votes wanted.
        """
        self.settings = told = settings or SuffixSettings()
        self._params = Params(
            levels=np.array(told.levels, np.int32),
            depth=told.max_depth,
            occurrences=told.occurrences,
            visits=visits or VISITS * told.occurrences,
            max_draft=told.max_draft,
            factor=float(told.max_spec_factor),
            offset=float(told.max_spec_offset),
            min_prob=float(told.min_token_prob),
            lru=told.eviction == "lru",
        )
        self._voters = Voters(
            *(np.zeros(told.occurrences, np.int32) for _ in range(5)),
            np.zeros(told.max_depth, np.int32),
            np.zeros(told.max_draft, np.int32),
        )
        self._own = new_index(told.active_tokens // PAGE, len(told.levels), in_use=True)
        self._kept = new_index(told.pages, len(told.levels), in_use=False)
        self._stretches = Stretches(told.active_tokens // PAGE)
        self._slots = Slots(*(np.zeros((16, width), np.int32) for width in (FIELDS, 8, 8)))
        self._room = np.full(16, -1, np.int32)  # tokens each slot has room for, -1: not running
        self._held: dict[int, list[tuple[int, int]]] = {}
        self._free: list[int] = []
        self._waiting: deque[int] = deque()

    def warm(self) -> None:
        """Compiles (or loads from numba's cache) everything, so that the first request need not wait."""
        other = SuffixProposer(SuffixSettings(capacity_tokens=PAGE, active_tokens=64 * PAGE))
        few = np.zeros(4, np.int32)
        slot = other.start(few, few)
        other.work()
        other.step(few[:1] + slot, few, np.array([0, 4], np.int32), few[:1] + 4)
        other.stop(slot)
        kernels.restore(other._kept, other._slots, other._params, np.zeros((0, PAGE), np.int32), few[:0])

    def start(self, prompt: Int32, response: Int32) -> int:
        """See `Proposer.start`. What `response` holds was kept when it was generated and is not kept again.

        Raises:
            ValueError: a token is negative.
        """
        text = checks.tokens("prompt", prompt)
        if len(response):
            text = np.concatenate([text, checks.tokens("response", response)])
        slot = heapq.heappop(self._free) if self._free else len(self._held)
        self._admit(slot)
        self._reserve(slot, len(text) + ROOM)
        if len(text):
            first = self._slots.bases[slot, 0]
            self._own.tokens[first : first + len(text)] = text
            self._slots.rows[slot, LENGTH], self._slots.rows[slot, LAST] = len(text), first + len(text) - 1
            self._waiting.append(slot)
        self._slots.rows[slot, DONE] = max(0, len(text) - self.settings.prompt_tail)
        return slot

    def step(self, slots: Int32, tokens: Int32, offsets: Int32, limits: Int32) -> Drafts:
        """See `Proposer.step`. All rows take in before any drafts.

        Raises:
            ValueError: a slot is not running, a token is negative, or the lengths of the arrays disagree.
        """
        slots, tokens, offsets, limits = (
            np.ascontiguousarray(array, np.int32) for array in (slots, tokens, offsets, limits)
        )
        if tokens.ndim != 1 or not checks.ready(slots, tokens, offsets, limits, self._slots.rows, self._room):
            checks.refuse(slots, checks.tokens("tokens", tokens), offsets, limits, self._room)
            self._make_room(slots, self._slots.rows[slots, LENGTH] + np.diff(offsets))
        drafts = Drafts.nothing(len(slots), min(self.settings.max_draft, int(limits.max(initial=0))))
        self._renumber()
        batch = Batch(slots, tokens, offsets, limits, drafts.tokens, drafts.lengths, drafts.scores)
        kernels.step(self._own, self._kept, self._slots, self._params, self._voters, batch)
        return drafts

    def work(self) -> None:
        """Indexes up to `slice_tokens` tokens of waiting requests, first come first served."""
        left = self.settings.slice_tokens
        while self._waiting and left:
            slot = self._waiting[0]
            row = self._slots.rows[slot]
            count = min(left, int(row[LENGTH] - row[INDEXED]))
            kernels.index_text(self._own, self._slots, self._params, slot, count)
            left -= count
            if row[INDEXED] == row[LENGTH]:
                self._waiting.popleft()

    def stop(self, slot: int) -> None:
        """See `Proposer.stop`. The response stays for later requests.

        Raises:
            ValueError: the slot is not running.
        """
        if slot not in self._held:
            raise ValueError(f"slot {slot} is not running; stop each slot that start gave once")
        self._renumber()
        kernels.keep(self._own, self._kept, self._slots, self._params, slot, 1)
        for stretch in self._held.pop(slot):
            self._stretches.give(*stretch)
        if slot in self._waiting:
            self._waiting.remove(slot)
        self._slots.rows[slot, KEPT] = 0
        self._room[slot] = -1
        heapq.heappush(self._free, slot)

    def clear(self) -> None:
        """Forgets all responses, those of running requests too; what these generate next is kept again."""
        self._kept.ring[NEWEST] += self._kept.ring[PAGES]
        for array in (self._kept.before, self._kept.after, self._kept.used, self._kept.owner):
            array.fill(0)
        self._slots.rows[:, KEPT] = 0
        self._slots.rows[:, DONE] = self._slots.rows[:, LENGTH]
        self._renumber()

    def save(self, path: Path, model: str = "") -> None:
        """Writes the kept responses to a file, whole or not at all. See `snapshot.write`.

        Args:
            path: of the file; its folder exists.
            model: whose token ids they are; `load` must be told the same.
        """
        snapshot.write(path, self._kept, model)

    def load(self, path: Path, model: str = "") -> None:
        """Takes in responses that `save` wrote, as the newest; the most recent of them if not all fit.

        Raises:
            ValueError: the file is not such a file, is damaged, or is of another model.
            FileNotFoundError: there is none.
        """
        self.restore(*self.read(path, model))

    def read(self, path: Path, model: str = "") -> tuple[Int32, Int32]:
        """What `restore` takes, of a file; see `snapshot.read`."""
        return snapshot.read(path, model, self.settings.pages)

    def restore(self, tokens: Int32, before: Int32) -> None:
        """Takes in responses as the newest.

        Args:
            tokens: int32 [pages, 8], oldest first.
            before: int32 [pages], row of the page before; -1: none.
        """
        self._renumber()
        kernels.restore(self._kept, self._slots, self._params, tokens, before)

    def _admit(self, slot: int) -> None:
        if slot == len(self._room):
            self._slots = Slots(*(np.concatenate([array, np.zeros_like(array)]) for array in self._slots))
            self._room = np.concatenate([self._room, np.full_like(self._room, -1)])
        self._slots.rows[slot] = 0
        self._slots.sizes[slot] = 0
        self._held[slot] = []
        self._room[slot] = 0

    def _make_room(self, slots: Int32, wanted: Int32) -> None:
        """Room for `wanted` tokens of each slot, and some to spare."""
        for slot, tokens in zip(slots.tolist(), wanted.tolist(), strict=True):
            room = int(self._room[slot])
            if tokens > room:
                self._reserve(slot, max(tokens - room, room // 2))

    def _reserve(self, slot: int, tokens: int) -> None:
        """One more stretch of pages for a request's own text, behind those it has."""
        pages, held = -(-tokens // PAGE), self._held[slot]
        first = self._stretches.take(pages)
        while first is None:
            had = int(self._own.ring[PAGES])
            self._own = grown(self._own, 2 * had)
            self._stretches.give(had + 1, had)
            first = self._stretches.take(pages)
        own, start, end = self._own, first * PAGE, (first + pages) * PAGE
        own.tokens[start:end] = -1
        own.heads[:, start:end] = 0
        own.after[first : first + pages - 1] = np.arange(first + 1, first + pages)
        own.before[first + 1 : first + pages] = np.arange(first, first + pages - 1)
        own.after[first + pages - 1] = own.before[first] = 0
        if held:
            last = sum(held[-1]) - 1
            own.after[last], own.before[first] = first, last
        if len(held) == self._slots.bases.shape[1]:
            wider = (np.pad(array, ((0, 0), (0, array.shape[1]))) for array in self._slots[1:])
            self._slots = Slots(self._slots.rows, *wider)
        self._slots.bases[slot, len(held)], self._slots.sizes[slot, len(held)] = start, end - start
        held.append((first, pages))
        self._room[slot] += pages * PAGE

    def _renumber(self) -> None:
        if self._kept.ring[NEWEST] * PAGE > 4 * MAX_TOKENS:
            renumbered(self._kept)
