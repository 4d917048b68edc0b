"""Suffix decoding in plain Python: the specification, and the slow twin of `SuffixProposer`. Pure.

A match of length m is an earlier place whose last m tokens are the request's last m tokens; it is of use if
a token follows it. Two places are searched: the request's own prompt and response as far as they are
indexed, and the responses of all requests, kept by pages of 8 tokens (when
a page is full or the request is over) until the ring of pages comes round.
For each of `levels`, from the longest, the `occurrences` most recent matches of at least that length vote:
at each next token those that agree with the draft so far name theirs, the most frequent wins (on a tie,
that of the most recent), and its share of the votes multiplies the estimated probability. At the first token a
quarter of a vote more is cast, for nothing, so that few matches promise less than many. The draft whose
probabilities sum highest is taken; on a tie the longer match, then the request's own text.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from speculative.base import Drafts, Int32
from speculative.suffix.settings import DOUBT, PAGE, SPARED, SuffixSettings

Match = tuple[int, list[int]]
Draft = tuple[list[int], float]


@dataclass(eq=False)
class _Page:
    """A page of the response index; `before` and `after` are its neighbours in the same sequence."""

    owner: "_Request"
    tokens: list[int]
    before: "_Page | None" = None
    after: "_Page | None" = None
    used: bool = False


@dataclass(eq=False)
class _Request:
    tokens: list[int]
    done: int  # tokens that need not be kept any more
    indexed: int = 0
    page: _Page | None = None


class SuffixTwin:
    """`SuffixProposer` without its speed: the same calls give the same drafts, token for token."""

    def __init__(self, settings: SuffixSettings | None = None) -> None:
        self.settings = settings or SuffixSettings()
        self._requests: dict[int, _Request] = {}
        self._free: list[int] = []
        self._waiting: list[_Request] = []
        self.clear()

    def start(self, prompt: Int32, response: Int32) -> int:
        """See `Proposer.start`. What `response` holds was kept when it was generated and is not kept again."""
        slot = heapq.heappop(self._free) if self._free else len(self._requests)
        text = [*prompt.tolist(), *response.tolist()]
        request = _Request(text, done=max(0, len(text) - self.settings.prompt_tail))
        self._requests[slot] = request
        self._waiting.append(request)
        return slot

    def step(self, slots: Int32, tokens: Int32, offsets: Int32, limits: Int32) -> Drafts:
        """See `Proposer.step`. All rows take in before any drafts."""
        width = min(self.settings.max_draft, int(limits.max(initial=0)))
        drafts = Drafts.nothing(len(slots), width)
        for row, slot in enumerate(slots.tolist()):
            self._take_in(self._requests[slot], tokens[offsets[row] : offsets[row + 1]].tolist())
        for row, slot in enumerate(slots.tolist()):
            draft, score = self._draft(self._requests[slot], int(limits[row]))
            drafts.tokens[row, : len(draft)] = draft
            drafts.lengths[row] = len(draft)
            drafts.scores[row] = score
        return drafts

    def work(self) -> None:
        """Indexes up to `slice_tokens` tokens of waiting requests, first come first served."""
        left = self.settings.slice_tokens
        for request in self._waiting:
            taken = min(left, len(request.tokens) - request.indexed)
            request.indexed += taken
            left -= taken
        self._waiting = [r for r in self._waiting if r.indexed < len(r.tokens)]

    def stop(self, slot: int) -> None:
        """See `Proposer.stop`. The response stays for later requests."""
        request = self._requests.pop(slot)
        self._keep(request, 1)
        self._waiting = [other for other in self._waiting if other is not request]
        heapq.heappush(self._free, slot)

    def clear(self) -> None:
        """Forgets all responses, those of running requests too; what these generate next is kept again."""
        self._ring: list[_Page | None] = [None] * self.settings.pages
        self._next = 0
        self._kept: list[tuple[_Page, int]] = []
        for request in self._requests.values():
            request.page = None
            request.done = len(request.tokens)

    def _take_in(self, request: _Request, tokens: list[int]) -> None:
        if request.indexed == len(request.tokens):
            request.indexed += len(tokens)
        request.tokens += tokens
        self._keep(request, PAGE)

    def _keep(self, request: _Request, least: int) -> None:
        while self._ring and len(request.tokens) - request.done >= least:
            tokens = request.tokens[request.done : request.done + PAGE]
            request.done += len(tokens)
            index = self._free_page()
            page = self._ring[index] = _Page(request, tokens, before=request.page)
            if request.page is not None:
                request.page.after = page
            request.page = page
            self._kept += [(page, at) for at in range(len(tokens))]

    def _free_page(self) -> int:
        for spared in range(SPARED + 1):
            index, self._next = self._next, (self._next + 1) % len(self._ring)
            page = self._ring[index]
            if page is not None:
                self._kept = [place for place in self._kept if place[0] is not page]
            if page is None or not page.used or self.settings.eviction == "fifo" or spared == SPARED:
                break
            page.used = False
            self._kept += [(page, at) for at in range(len(page.tokens))]
        if page is not None:
            self._evict(page)
        return index

    def _evict(self, page: _Page) -> None:
        if page.before is not None:
            page.before.after = None
        if page.after is not None:
            page.after.before = None
        if page.owner.page is page:
            page.owner.page = None

    def _draft(self, request: _Request, limit: int) -> Draft:
        own, _ = self._best(self._own_matches(request), limit)
        kept, path = self._best(self._kept_matches(request), limit)
        if own[1] >= kept[1]:
            return own
        for page in path:
            page.used = True
        return kept

    def _own_matches(self, request: _Request) -> list[tuple[int, list[int], list[_Page]]]:
        tokens, depth = request.tokens, self.settings.max_depth
        matches = []
        for at in reversed(range(min(request.indexed, len(tokens) - 1))):
            length = _common(reversed(tokens[max(0, at - depth + 1) : at + 1]), tokens[-depth:])
            matches.append((length, tokens[at + 1 : at + 1 + self.settings.max_draft], []))
        return matches

    def _kept_matches(self, request: _Request) -> list[tuple[int, list[int], list[_Page]]]:
        matches = []
        for page, at in reversed(self._kept):
            length = _common(_backward(page, at), request.tokens[-self.settings.max_depth :])
            ahead = [
                next_ for next_, _ in zip(_forward(page, at), range(self.settings.max_draft), strict=False)
            ]
            if ahead:
                matches.append((length, [token for token, _ in ahead], [page for _, page in ahead]))
        return matches

    def _best(self, matches: list, limit: int) -> tuple[Draft, list[_Page]]:
        """The best draft of `matches` (most recent first), and the pages that its most recent voter runs through."""
        best: tuple[Draft, list[_Page]] = (([], 0.0), [])
        ceiling = self.settings.max_depth + 1
        for level in reversed(self.settings.levels):
            voters = [match for match in matches if match[0] >= level][: self.settings.occurrences]
            for length in sorted({match[0] for match in voters if match[0] < ceiling}, reverse=True):
                agreeing = [match for match in voters if match[0] >= length]
                found = self._path(agreeing, self.settings.budget(length, limit))
                if found[0][1] > best[0][1]:
                    best = found
            ceiling = level
        return best

    def _path(self, voters: list, budget: int) -> tuple[Draft, list[_Page]]:
        draft: list[int] = []
        prob, score = 1.0, 0.0
        for at in range(budget):
            going_on = [voter for voter in voters if at < len(voter[1])]
            if not going_on:
                break
            votes = Counter(voter[1][at] for voter in going_on)
            token, count = votes.most_common(1)[0]
            prob *= count / (len(going_on) + DOUBT * (at == 0))
            if prob < self.settings.min_token_prob:
                break
            voters = [voter for voter in going_on if voter[1][at] == token]
            draft.append(token)
            score += prob
        return (draft, score), voters[0][2][: len(draft)] if voters else []


def _common(backward: Iterator[int], context: list[int]) -> int:
    """How many tokens, from the last, `backward` shares with `context`."""
    length = 0
    for mine, theirs in zip(reversed(context), backward, strict=False):
        if mine != theirs:
            break
        length += 1
    return length


def _backward(page: _Page | None, at: int) -> Iterator[int]:
    while page is not None:
        yield from reversed(page.tokens[: at + 1])
        page, at = page.before, PAGE


def _forward(page: _Page | None, at: int) -> Iterator[tuple[int, _Page]]:
    while page is not None:
        yield from ((token, page) for token in page.tokens[at + 1 :])
        page, at = page.after, -1
