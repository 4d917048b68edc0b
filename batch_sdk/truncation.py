"""What is cut from a prompt that is too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

OnTooLong = Literal["error", "truncate_left", "truncate_right", "truncate_middle"]
ON_TOO_LONG: tuple[OnTooLong, ...] = ("error", "truncate_left", "truncate_right", "truncate_middle")


def truncated(tokens: Sequence[T], room: int, mode: OnTooLong, fixed: int = 0) -> Sequence[T]:
    """Return at most `room` of the tokens.

    Args:
        tokens: token ids, or words.
        room: from 1.
        mode: where to cut: "truncate_left" keeps the end, "truncate_right" the beginning, "truncate_middle" half
            of each (the beginning has one more if `room` is odd). "error" never comes here.
        fixed: so many tokens at the beginning always stay: the token that begins every text.
    """
    if len(tokens) <= room:
        return tokens
    fixed = min(fixed, room)
    head = {"truncate_left": fixed, "truncate_right": room, "truncate_middle": max(fixed, (room + 1) // 2)}[
        mode
    ]
    tail = room - head
    return [*tokens[:head], *tokens[len(tokens) - tail :]]
