"""The arrays of the suffix index, as the compiled code takes them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# ring: number of the newest page, where it lies, how many pages there are.
NEWEST, LIES, PAGES = 0, 1, 2
# rows, one per slot: tokens, place of the last (0: none); how many are indexed, place of the last indexed and
# the stretch it lies in; of the kept response: its last page (0: none), and how many of the
# tokens need not be kept any more.
LENGTH, LAST, INDEXED, REACHED, STRETCH, KEPT, DONE = range(7)
FIELDS = 7

Int32 = NDArray[np.int32]


class Index(NamedTuple):
    """The arrays of an index; int32 but for `used`."""

    tokens: Int32  # [pages * 8], -1 where nothing is
    links: Int32  # [pages * 8, levels], 0 where the chain ends
    heads: Int32  # [levels, pages * 8], 0 where nothing is
    before: Int32  # [pages], the page before in the same sequence
    after: Int32  # [pages]
    owner: Int32  # [pages], one more than the slot that took it, 0 if none did
    used: NDArray[np.uint8]  # [pages], a draft was taken from it
    ring: Int32  # [3]


class Slots(NamedTuple):
    """What is known of each request, by slot."""

    rows: Int32  # [slots, FIELDS]
    bases: Int32  # [slots, stretches], first place of each stretch of pages that holds a request's text
    sizes: Int32  # [slots, stretches], its size in tokens; its part of `heads` has the same bounds


class Params(NamedTuple):
    """`SuffixSettings` as the kernels take it."""

    levels: Int32
    depth: int
    occurrences: int
    visits: int  # places that one look-up may visit
    max_draft: int
    factor: float
    offset: float
    min_prob: float
    lru: bool


class Voters(NamedTuple):
    """Room for the matches of one look-up, and for two drafts. `[occurrences]` but for the drafts."""

    places: Int32  # where each match ends, most recent first
    lengths: Int32  # and how many tokens it shares with the request's last
    at: Int32  # where each voter has got to
    began: Int32  # the place it came from
    votes: Int32  # the token it names
    context: Int32  # [max_depth], the request's last tokens, newest first
    draft: Int32  # [max_draft]


class Spans(NamedTuple):
    """The parts of `heads` that a look-up goes through, from the last: first entry and size of each, [spans]."""

    bases: Int32
    sizes: Int32


class Batch(NamedTuple):
    """What `step` is given and what it fills."""

    slots: Int32  # [rows]
    tokens: Int32  # [offsets[-1]]
    offsets: Int32  # [rows + 1]
    limits: Int32  # [rows]
    drafts: Int32  # [rows, width]
    lengths: Int32  # [rows]
    scores: NDArray[np.float32]  # [rows]
