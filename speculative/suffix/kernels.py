"""The suffix index under numba. Compiled code calls none outside this file: its cache cannot go stale in part.

An index is a set of flat arrays. Tokens lie in pages of 8; a sequence is a chain of pages, and a token's place
is `page * 8 + offset`. Page 0 is none. For each of the levels (k tokens), `heads` maps a hash of k tokens to the
newest place that ends them, and `links` leads from there to the next older place of the same hash: places that do
not match are dropped by comparing tokens, which also gives the match's true length.

What heads and links hold are places in a numbering that only grows (a ring of pages, the newest numbered
`ring[NEWEST]`): a page that is overwritten gets a new number, and what still points at its old one is seen to be
older than the ring and dropped. Eviction is thus free. It takes that links lead to ever older pages, so a page
enters the ring whole. Requests' own texts use the same arrays, numbered by the place itself.
"""

import numba
import numpy as np

from speculative.compiled import entry
from speculative.suffix.arrays import (
    DONE,
    INDEXED,
    KEPT,
    LAST,
    LENGTH,
    LIES,
    NEWEST,
    PAGES,
    REACHED,
    STRETCH,
    Batch,
    Index,
    Int32,
    Params,
    Slots,
    Spans,
    Voters,
)
from speculative.suffix.settings import DOUBT, PAGE, SPARED

# Called by compiled code only: a way in from Python would double the compile time.
_inner = numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_inner
def _number(ring: Int32, place: int) -> int:
    """The growing number of a place in the ring."""
    ago = ring[LIES] - place // PAGE
    if ago < 0:
        ago += ring[PAGES]
    return (ring[NEWEST] - ago) * PAGE + place % PAGE


@_inner
def _place(ring: Int32, number: int) -> int:
    """The place of a number, 0 if it was overwritten since."""
    ago = ring[NEWEST] - number // PAGE
    if number == 0 or ago >= ring[PAGES]:
        return 0
    page = ring[LIES] - ago + (ring[PAGES] if ago >= ring[LIES] else 0)
    return page * PAGE + number % PAGE


@_inner
def _back(before: Int32, place: int) -> int:
    if place % PAGE:
        return place - 1
    page = before[place // PAGE]
    return page * PAGE + PAGE - 1 if page else 0


@_inner
def _ahead(tokens: Int32, after: Int32, place: int) -> int:
    """The next place of the sequence if a token is there, else 0."""
    place += 1
    if place % PAGE == 0:
        place = after[place // PAGE - 1] * PAGE
    return place if place and tokens[place] >= 0 else 0


@_inner
def _mixed(code: np.uint64, token: int) -> np.uint64:
    return (code + np.uint64(token + 1)) * np.uint64(0x9E3779B97F4A7C15)


@_inner
def _bucket(code: np.uint64, size: int) -> int:
    code = (code ^ (code >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64(((code >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


@_inner
def _insert(index: Index, levels: Int32, place: int, base: int, size: int) -> None:
    """Makes the runs of tokens that end at a place known to heads[:, base : base + size]."""
    number = _number(index.ring, place)
    code, at, taken = np.uint64(0), place, 0
    for level in range(len(levels)):
        while taken < levels[level]:
            if at == 0:
                return
            code = _mixed(code, index.tokens[at])
            at = _back(index.before, at)
            taken += 1
        bucket = base + _bucket(code, size)
        index.links[place, level] = index.heads[level, bucket]
        index.heads[level, bucket] = number


@_inner
def _following(own: Index, slots: Slots, slot: int, place: int) -> int:
    """Where the token after the one at `place` (0: none yet) of a request's own text goes; there is room."""
    if place == 0:
        return slots.bases[slot, 0]
    place += 1
    return place if place % PAGE else own.after[place // PAGE - 1] * PAGE


@entry
def index_text(own: Index, slots: Slots, params: Params, slot: int, count: int) -> None:
    """Indexes the next `count` tokens of a request's own text."""
    row = slots.rows[slot]
    for _ in range(count):
        row[REACHED] = _following(own, slots, slot, row[REACHED])
        if not 0 <= row[REACHED] - slots.bases[slot, row[STRETCH]] < slots.sizes[slot, row[STRETCH]]:
            row[STRETCH] += 1
        base, size = slots.bases[slot, row[STRETCH]], slots.sizes[slot, row[STRETCH]]
        _insert(own, params.levels, row[REACHED], base, size)
    row[INDEXED] += count


@_inner
def _extend_text(own: Index, slots: Slots, params: Params, slot: int, new: Int32) -> None:
    """Appends to a request's own text. Behind a prompt that waits to be indexed, the new tokens wait too."""
    row = slots.rows[slot]
    waits = row[INDEXED] < row[LENGTH]
    for token in new:
        row[LAST] = _following(own, slots, slot, row[LAST])
        own.tokens[row[LAST]] = token
    row[LENGTH] += len(new)
    if not waits:
        index_text(own, slots, params, slot, len(new))


@_inner
def _unlink(kept: Index, slots: Slots, page: int) -> None:
    """Takes a page out of the sequence it is in; what follows it there begins anew."""
    if kept.before[page]:
        kept.after[kept.before[page]] = 0
    if kept.after[page]:
        kept.before[kept.after[page]] = 0
    owner = kept.owner[page] - 1
    if owner >= 0 and slots.rows[owner, KEPT] == page:
        slots.rows[owner, KEPT] = 0


@_inner
def _new_page(kept: Index, slots: Slots, params: Params, slot: int) -> None:
    """The next page of the ring for a response; under "lru" pages in use are spared and become the newest."""
    spared = 0
    while True:
        kept.ring[NEWEST] += 1
        kept.ring[LIES] = kept.ring[LIES] % kept.ring[PAGES] + 1
        page = np.int64(kept.ring[LIES])
        first = page * PAGE
        if not params.lru or not kept.used[page] or spared == SPARED:
            break
        kept.used[page] = 0
        spared += 1
        for place in range(first, first + PAGE):
            if kept.tokens[place] >= 0:
                _insert(kept, params.levels, place, PAGE, kept.ring[PAGES] * PAGE)
    _unlink(kept, slots, page)
    kept.tokens[first : first + PAGE] = -1
    kept.owner[page], kept.used[page], kept.after[page] = slot + 1, 0, 0
    kept.before[page] = slots.rows[slot, KEPT]
    if kept.before[page]:
        kept.after[kept.before[page]] = page
    slots.rows[slot, KEPT] = page


@entry
def keep(own: Index, kept: Index, slots: Slots, params: Params, slot: int, least: int) -> None:
    """Puts what a request has said since into the index of responses, as long as it is `least` tokens or more."""
    row = slots.rows[slot]
    if kept.ring[PAGES] == 0 or row[LENGTH] - row[DONE] < least:
        return
    source = np.int64(row[LAST])
    for _ in range(row[DONE] + 1, row[LENGTH]):
        source = _back(own.before, source)
    while row[LENGTH] - row[DONE] >= least:
        _new_page(kept, slots, params, slot)
        first = row[KEPT] * PAGE
        for place in range(first, first + min(PAGE, row[LENGTH] - row[DONE])):
            kept.tokens[place] = own.tokens[source]
            _insert(kept, params.levels, place, PAGE, kept.ring[PAGES] * PAGE)
            source = _ahead(own.tokens, own.after, source)
            row[DONE] += 1


@entry
def restore(kept: Index, slots: Slots, params: Params, tokens: Int32, before: Int32) -> None:
    """Puts saved pages into the ring: `tokens` [pages, 8], -1 where nothing is; `before` [pages], a row or -1."""
    lie = np.zeros(len(tokens), np.int64)
    for row in range(len(tokens)):
        kept.ring[NEWEST] += 1
        kept.ring[LIES] = kept.ring[LIES] % kept.ring[PAGES] + 1
        page = np.int64(kept.ring[LIES])
        _unlink(kept, slots, page)
        kept.owner[page], kept.used[page], kept.after[page], kept.before[page] = 1, 0, 0, 0
        if before[row] >= 0:
            kept.before[page] = lie[before[row]]
            kept.after[lie[before[row]]] = page
        lie[row] = page
        kept.tokens[page * PAGE : page * PAGE + PAGE] = tokens[row]
        for place in range(page * PAGE, page * PAGE + PAGE):
            if kept.tokens[place] >= 0:
                _insert(kept, params.levels, place, PAGE, kept.ring[PAGES] * PAGE)


@_inner
def _matched(index: Index, place: int, context: Int32) -> int:
    length = 0
    while place and length < len(context) and index.tokens[place] == context[length]:
        length += 1
        place = _back(index.before, place)
    return length


@_inner
def _look_up(
    index: Index, params: Params, voters: Voters, level: int, context: Int32, spans: Spans, longest: int
) -> int:
    """Puts the most recent matches of a level into `voters`, as of `longest` tokens at most: how many there are."""
    code = np.uint64(0)
    for at in range(params.levels[level]):
        code = _mixed(code, context[at])
    found, visits = 0, params.visits
    for span in range(len(spans.bases) - 1, -1, -1):
        bucket = spans.bases[span] + _bucket(code, spans.sizes[span])
        place = _place(index.ring, index.heads[level, bucket])
        while place and visits and found < params.occurrences:
            visits -= 1
            length = _matched(index, place, context[:longest])
            if length >= params.levels[level] and _ahead(index.tokens, index.after, place):
                voters.places[found], voters.lengths[found] = place, length
                found += 1
            place = _place(index.ring, index.links[place, level])
    return found


@_inner
def _poll(index: Index, voters: Voters, count: int) -> tuple[int, int]:
    """Moves the first `count` voters on by a token; those that cannot go drop out. The others, and the ayes."""
    going_on = 0
    for voter in range(count):
        place = _ahead(index.tokens, index.after, voters.at[voter])
        if place:
            voters.at[going_on], voters.began[going_on] = place, voters.began[voter]
            voters.votes[going_on] = index.tokens[place]
            going_on += 1
    return going_on


@_inner
def _most_frequent(votes: Int32, count: int) -> tuple[int, int]:
    """The most frequent of the first `count` votes, the first of them on a tie, and how often it occurs."""
    best, most = votes[0], 0
    for first in range(count):
        if count - first <= most:
            break
        ayes = 0
        for vote in range(first, count):
            ayes += votes[vote] == votes[first]
        if ayes > most:
            best, most = votes[first], ayes
    return best, most


@_inner
def _path(
    index: Index, params: Params, voters: Voters, found: int, length: int, budget: int
) -> tuple[int, float, int]:
    """The draft of the matches of at least `length`, to `voters.draft`: its length, its score, its foremost voter."""
    count, drafted, prob, score, began = 0, 0, 1.0, 0.0, 0
    for match in range(found):
        if voters.lengths[match] >= length:
            voters.at[count] = voters.began[count] = voters.places[match]
            count += 1
    while drafted < budget:
        count = _poll(index, voters, count)
        if count == 0:
            break
        token, ayes = _most_frequent(voters.votes, count)
        prob *= ayes / (count + DOUBT * (drafted == 0))
        if prob < params.min_prob:
            break
        agreeing = 0
        for voter in range(count):
            if voters.votes[voter] == token:
                voters.at[agreeing], voters.began[agreeing] = voters.at[voter], voters.began[voter]
                agreeing += 1
        count, began = agreeing, voters.began[0]
        voters.draft[drafted] = token
        drafted += 1
        score += prob
    return drafted, score, began


@_inner
def _budget(params: Params, length: int, limit: int) -> int:
    return max(0, min(params.max_draft, limit, int(length * params.factor + params.offset + 1e-6)))


@_inner
def _most(params: Params, length: int, limit: int) -> float:
    """What no draft of a match of `length` scores more than: all the votes there may be agree on every token."""
    return _budget(params, length, limit) * (params.occurrences / (params.occurrences + DOUBT)) * (1 - 1e-9)


@_inner
def _best(
    index: Index,
    params: Params,
    voters: Voters,
    spans: Spans,
    limit: int,
    context: Int32,
    out: Int32,
    bar: float,
) -> tuple[int, float, int]:
    """The best draft whose score exceeds `bar`, to `out`: as `_path`, or 0, `bar`, 0.

    What cannot win is not looked at: scores are bounded by budgets, which shrink with the match. How far a match goes
    that was looked at with a longer run of tokens makes no difference any more, only that it goes as far as that.
    """
    drafted, score, began = 0, bar, 0
    ceiling = params.depth + 1
    for level in range(len(params.levels) - 1, -1, -1):
        if params.levels[level] > len(context):
            continue
        if score >= _most(params, ceiling - 1, limit):
            break
        found = _look_up(index, params, voters, level, context, spans, ceiling)
        while True:
            length = 0
            for match in range(found):
                if length < voters.lengths[match] < ceiling:
                    length = voters.lengths[match]
            budget = _budget(params, length, limit)
            if length == 0 or score >= _most(params, length, limit):
                break
            tried, reached, foremost = _path(index, params, voters, found, length, budget)
            if reached > score:
                drafted, score, began = tried, reached, foremost
                out[:drafted] = voters.draft[:drafted]
            ceiling = length
        ceiling = params.levels[level]
    return drafted, score, began


@_inner
def _mark(kept: Index, place: int, count: int) -> None:
    """Notes that a draft was taken from the `count` tokens after a place."""
    for _ in range(count):
        place = _ahead(kept.tokens, kept.after, place)
        kept.used[place // PAGE] = 1


@_inner
def _context(own: Index, slots: Slots, slot: int, context: Int32) -> Int32:
    """The request's last tokens, newest first."""
    place, count = np.int64(slots.rows[slot, LAST]), 0
    while place and count < len(context):
        context[count] = own.tokens[place]
        place = _back(own.before, place)
        count += 1
    return context[:count]


@entry
def step(own: Index, kept: Index, slots: Slots, params: Params, voters: Voters, batch: Batch) -> None:
    """`Proposer.step`: the rows of `batch` take in their tokens, then draft."""
    for row, slot in enumerate(batch.slots):
        _extend_text(own, slots, params, slot, batch.tokens[batch.offsets[row] : batch.offsets[row + 1]])
        keep(own, kept, slots, params, slot, PAGE)
    ring = Spans(np.full(1, PAGE, np.int32), np.full(1, kept.ring[PAGES] * PAGE, np.int32))
    for row, slot in enumerate(batch.slots):
        limit, out = batch.limits[row], batch.drafts[row]
        if limit == 0:
            continue
        context = _context(own, slots, slot, voters.context)
        count = slots.rows[slot, STRETCH] + 1
        spans = Spans(slots.bases[slot, :count], slots.sizes[slot, :count])
        drafted, score, _ = _best(own, params, voters, spans, limit, context, out, 0.0)
        if kept.ring[PAGES]:
            better, reached, began = _best(kept, params, voters, ring, limit, context, out, score)
            if better:
                drafted, score = better, reached
                _mark(kept, began, drafted)
        out[drafted:] = 0  # the rest of a longer draft that lost
        batch.lengths[row], batch.scores[row] = drafted, score
