"""Suffix decoding: the fast one against its specification, and what the specification says."""

import numpy as np
import pytest

from speculative.suffix import SuffixProposer, SuffixSettings, SuffixTwin

EMPTY = np.zeros(0, np.int32)


def ints(*values):
    return np.array(values, np.int32)


class Traffic:
    """Seeded requests over a text that repeats itself, fed to both proposers in step."""

    def __init__(self, settings, seed):
        self.random = np.random.default_rng(seed)
        self.pair = (SuffixTwin(settings), SuffixProposer(settings, visits=1 << 20))
        self.running = []
        self.spread = int(self.random.choice([2, 4, 30]))
        self.text = self.random.integers(0, self.spread, 400).astype(np.int32)
        self.drafted = 0

    def piece(self, longest):
        length = int(self.random.integers(0, longest + 1))
        if self.random.random() < 0.2:
            return self.random.integers(0, self.spread, length).astype(np.int32)
        at = int(self.random.integers(0, len(self.text) - length))
        return self.text[at : at + length]

    def act(self):
        chance = self.random.random()
        if chance < 0.12 and len(self.running) < 20:
            prompt, response = self.piece(150), self.piece(10 if chance < 0.02 else 0)
            slots = [proposer.start(prompt, response) for proposer in self.pair]
            assert slots[0] == slots[1]
            self.running.append(slots[0])
        elif chance < 0.2 and self.running:
            slot = self.running.pop(int(self.random.integers(len(self.running))))
            for proposer in self.pair:
                proposer.stop(slot)
        elif chance < 0.202:
            for proposer in self.pair:
                proposer.clear()
        elif chance < 0.6:
            for proposer in self.pair:
                proposer.work()
        else:
            self.step()

    def step(self):
        rows = self.random.permutation(self.running)[: self.random.integers(0, len(self.running) + 1)]
        pieces = [self.piece(int(self.random.choice([1, 8, 90]))) for _ in rows]
        tokens = np.concatenate([EMPTY, *pieces])
        offsets = np.cumsum([0, *map(len, pieces)])
        limits = self.random.choice([0, 1, 5, 40], len(rows))
        slow, fast = (proposer.step(ints(*rows), tokens, offsets, limits) for proposer in self.pair)
        np.testing.assert_array_equal(slow.tokens, fast.tokens)
        np.testing.assert_array_equal(slow.lengths, fast.lengths)
        np.testing.assert_array_equal(slow.scores, fast.scores)
        self.drafted += int(slow.lengths.sum())


FUZZED = [
    SuffixSettings(capacity_tokens=2000, slice_tokens=50),
    SuffixSettings(capacity_tokens=300, slice_tokens=64, eviction="lru", active_tokens=64),
    SuffixSettings(capacity_tokens=1, slice_tokens=7, eviction="lru", prompt_tail=9),
    SuffixSettings(capacity_tokens=0, prompt_tail=3, occurrences=1, levels=(2,)),
    SuffixSettings(
        capacity_tokens=900, max_depth=9, levels=(1, 3, 7), occurrences=4, max_draft=6, prompt_tail=9
    ),
    SuffixSettings(
        capacity_tokens=700, max_spec_factor=2.5, max_spec_offset=-1.0, min_token_prob=0.0, prompt_tail=5
    ),
    SuffixSettings(
        capacity_tokens=500, max_spec_factor=0.0, max_spec_offset=7.0, min_token_prob=0.5, eviction="lru"
    ),
]


@pytest.mark.parametrize("settings", FUZZED)
@pytest.mark.parametrize("seed", range(3))
def test_fast_and_slow_draft_the_same(settings, seed):
    traffic = Traffic(settings, seed)
    for _ in range(120):
        traffic.act()
    assert traffic.drafted > 0
