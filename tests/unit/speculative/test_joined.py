"""Sources of drafts as one."""

import numpy as np
import pytest

from speculative.base import Drafts
from speculative.joined import Joined
from speculative.suffix import SuffixProposer, SuffixSettings


class Fixed:
    """Always the same draft; its slots count from a number of its own."""

    def __init__(self, draft, score, first=0):
        self.draft, self.score, self.next, self.running, self.calls = draft, score, first, set(), []

    def start(self, prompt, response):
        self.running.add(self.next)
        self.next += 1
        return self.next - 1

    def step(self, slots, tokens, offsets, limits):
        assert set(slots.tolist()) <= self.running
        rows = [self.draft[:limit] for limit in limits.tolist()]
        drafts = Drafts.nothing(len(rows), max(map(len, rows)))
        for i, row in enumerate(rows):
            drafts.tokens[i, : len(row)], drafts.lengths[i] = row, len(row)
            drafts.scores[i] = self.score if row else 0
        return drafts

    def stop(self, slot):
        self.running.remove(slot)

    def work(self):
        self.calls.append("work")

    def clear(self):
        self.calls.append("clear")


def ints(*values):
    return np.array(values, np.int32)


def test_the_higher_score_wins_row_by_row():
    one, two = Fixed([1, 2], 1.5), Fixed([7, 8, 9], 2.0, first=10)
    joined = Joined(one, two)
    slots = [joined.start(ints(5), ints()) for _ in range(3)]
    drafts = joined.step(ints(*slots), ints(), ints(0, 0, 0, 0), ints(3, 0, 1))
    assert drafts.tokens.tolist() == [[7, 8, 9], [0, 0, 0], [7, 0, 0]]
    assert drafts.lengths.tolist() == [3, 0, 1]
    assert drafts.scores.tolist() == [2.0, 0.0, 2.0]
    two.score = 1.5  # a tie is the first one's
    drafts = joined.step(ints(slots[2]), ints(), ints(0, 0), ints(3))
    assert drafts.tokens.tolist() == [[1, 2, 0]]
    assert drafts.lengths.tolist() == [2]


def test_requests_come_and_go_in_all_sources():
    one, two = Fixed([1], 1.0), Fixed([2], 2.0, first=5)
    joined = Joined(one, two)
    first, second = (joined.start(ints(5), ints()) for _ in range(2))
    joined.stop(first)
    assert (one.running, two.running) == ({1}, {6})
    assert joined.step(ints(second), ints(), ints(0, 0), ints(4)).tokens.tolist() == [[2]]
    joined.work()
    joined.clear()
    assert one.calls == two.calls == ["work", "clear"]


def test_a_suffix_index_is_one_of_them():
    joined = Joined(SuffixProposer(SuffixSettings(capacity_tokens=64)), Fixed([9], 0.1))
    slot = joined.start(ints(1, 2, 3, 4, 1, 2, 3), ints())
    joined.work()
    drafts = joined.step(ints(slot), ints(), ints(0, 0), ints(1))
    assert drafts.tokens.tolist() == [[4]]
    other = joined.start(ints(6), ints())
    assert joined.step(ints(other), ints(), ints(0, 0), ints(1)).tokens.tolist() == [[9]]


def test_no_source_is_refused():
    with pytest.raises(ValueError, match="give one or more proposers"):
        Joined()
