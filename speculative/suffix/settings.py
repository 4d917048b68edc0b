"""What suffix decoding is told. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

PAGE = 8  # tokens; responses are kept by the page
SPARED = 4  # pages that one new page may spare under "lru"
DOUBT = 0.25  # of a vote, against every match: few matches promise less than many
EVICTIONS = ("fifo", "lru")
MAX_TOKENS = 1 << 28  # positions are int32, and the youngest must stay far from the end of that range


@dataclass(frozen=True, slots=True)
class SuffixSettings:
    """How far suffix decoding looks back, how far it drafts, and how much it keeps.

    The first five mean what they mean in Snowflake's ArcticInference.

    Attributes:
        max_depth: longest match looked at, in tokens.
        max_spec_factor: a match of m tokens earns a draft of at most `m * max_spec_factor + max_spec_offset`.
        max_spec_offset: see `max_spec_factor`, in tokens.
        min_token_prob: a draft ends before the token whose estimated probability is below this.
        max_draft: longest draft, in tokens.
        capacity_tokens: tokens of responses that are kept for later requests, rounded up to pages of 8;
            0: none are, requests then match only their own prompt and response.
        capacity_bytes: the same bound in bytes, None for none; the tighter of the two holds.
        eviction: which responses go first when the index is full. "fifo": the oldest. "lru": the oldest
            that no draft was taken from since they were last spared (second chance, by page).
        occurrences: how many of the most recent earlier occurrences vote on the next token.
        levels: lengths of the token runs that are looked up, ascending. More levels, more memory: 8 bytes
            a token each.
        slice_tokens: how many tokens of waiting prompts one `work` takes in.
        active_tokens: room for the prompts and responses of running requests, taken at the start as that of
            `capacity_tokens` is; when it runs out all of it is copied to twice the room.
        prompt_tail: how many of a prompt's last tokens are kept in front of its response, so that the same
            question is known by its end; at most `max_depth`.

    Raises:
        ValueError: a value is out of its range; the message names it and the range.
    """

    max_depth: int = 64
    max_spec_factor: float = 1.0
    max_spec_offset: float = 0.0
    min_token_prob: float = 0.1
    max_draft: int = 32
    capacity_tokens: int = 1 << 20
    capacity_bytes: int | None = None
    eviction: str = "fifo"
    occurrences: int = 16
    levels: tuple[int, ...] = (1, 2, 6, 16)
    slice_tokens: int = 8192
    active_tokens: int = 1 << 20
    prompt_tail: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        _whole("max_depth", self.max_depth, 1, 4096)
        _number("max_spec_factor", self.max_spec_factor, lambda v: v >= 0, "a number, 0 or more")
        _number("max_spec_offset", self.max_spec_offset, lambda v: True, "a finite number")
        _number("min_token_prob", self.min_token_prob, lambda v: 0 <= v <= 1, "a number between 0 and 1")
        _whole("max_draft", self.max_draft, 1, 4096)
        _whole("capacity_tokens", self.capacity_tokens, 0, MAX_TOKENS)
        if self.capacity_bytes is not None:
            _whole("capacity_bytes", self.capacity_bytes, 0, 1 << 40)
        if self.eviction not in EVICTIONS:
            raise ValueError(f"eviction is {self.eviction!r}; give one of {', '.join(EVICTIONS)}")
        _whole("occurrences", self.occurrences, 1, 256)
        _whole("slice_tokens", self.slice_tokens, 1, 1 << 20)
        _whole("active_tokens", self.active_tokens, PAGE, MAX_TOKENS)
        _whole("prompt_tail", self.prompt_tail, 0, self.max_depth)
        self._check_levels()

    @property
    def bytes_per_token(self) -> float:
        """What a token of an index takes: itself, and a link and a table entry for each level."""
        return 4 * (1 + 2 * len(self.levels)) + 13 / PAGE

    @property
    def pages(self) -> int:
        """Pages of the response index; 0 where nothing is kept."""
        pages = -(-self.capacity_tokens // PAGE)
        if self.capacity_bytes is not None:
            pages = min(pages, int(self.capacity_bytes / (self.bytes_per_token * PAGE)))
        return pages

    def budget(self, matched: int, limit: int) -> int:
        """How many tokens a match of `matched` tokens earns where the caller wants at most `limit`."""
        earned = math.floor(matched * self.max_spec_factor + self.max_spec_offset + 1e-6)
        return max(0, min(self.max_draft, limit, earned))

    def _check_levels(self) -> None:
        for level in self.levels:
            _whole("levels", level, 1, 64)
        if not self.levels or any(a >= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"levels is {self.levels}; give at least one length, ascending")
        if self.levels[-1] > self.max_depth:
            raise ValueError(f"levels end at {self.levels[-1]}; none may exceed max_depth, {self.max_depth}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high}")


def _number(name: str, value: object, good: Callable[[float], bool], wanted: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not good(value):
        raise ValueError(f"{name} is {value!r}; give {wanted}")
