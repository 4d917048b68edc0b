"""What `SuffixProposer` is handed, checked: in compiled code whether all is well, in Python what is not."""

import numpy as np

from speculative.compiled import entry
from speculative.suffix.arrays import LENGTH, Int32


@entry
def ready(slots: Int32, tokens: Int32, offsets: Int32, limits: Int32, rows: Int32, room: Int32) -> bool:
    """Whether a step can be taken as it is: well formed, and with room for what is new."""
    sizes = len(limits) == len(slots) and len(offsets) == len(slots) + 1
    if not sizes or offsets[0] != 0 or offsets[-1] != len(tokens) or (tokens < 0).any():
        return False
    for row, slot in enumerate(slots):
        new = offsets[row + 1] - offsets[row]
        if new < 0 or not 0 <= slot < len(room) or rows[slot, LENGTH] + new > room[slot]:
            return False
    return True


def refuse(slots: Int32, tokens: Int32, offsets: Int32, limits: Int32, room: Int32) -> None:
    """Raises if a step is not well formed.

    Raises:
        ValueError: the lengths of the arrays disagree, or a slot is not running (its `room` is -1).
    """
    if len(limits) != len(slots) or len(offsets) != len(slots) + 1:
        raise ValueError(
            f"{len(slots)} slots, {len(limits)} limits, {len(offsets)} offsets; give a limit for each slot "
            "and one offset more"
        )
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"offsets run from {offsets[0]} to {offsets[-1]}; they must rise from 0 to {len(tokens)}"
        )
    known = (slots >= 0) & (slots < len(room))
    known[known] = room[slots[known]] >= 0
    if not known.all():
        raise ValueError(f"slots {slots[~known].tolist()} are not running; step only slots that start gave")


def tokens(name: str, ids: Int32) -> Int32:
    """The ids, contiguous and int32.

    Raises:
        ValueError: they are not one row, or one is negative; the message begins with `name`.
    """
    ids = np.ascontiguousarray(ids, np.int32)
    if ids.ndim != 1 or ids.min(initial=0) < 0:
        raise ValueError(f"{name} must be one row of token ids, none negative; its least is {ids.min()}")
    return ids
