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
        if seed % 3 == 2:  # one phrase again and again: all votes there can be, all for the same
            self.text = np.resize(self.text[:7], 400)
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
    for _ in range(100):
        traffic.act()
    assert traffic.drafted > 0


def said(proposer, prompt, response):
    slot = proposer.start(ints(*prompt), EMPTY)
    proposer.work()
    proposer.step(ints(slot), ints(*response), ints(0, len(response)), ints(0))
    proposer.stop(slot)


def drafted(proposer, prompt, limit=32):
    slot = proposer.start(ints(*prompt), EMPTY)
    proposer.work()
    drafts = proposer.step(ints(slot), EMPTY, ints(0, 0), ints(limit))
    proposer.stop(slot)
    return drafts.tokens[0, : drafts.lengths[0]].tolist()


def test_responses_are_kept_and_prompts_are_not():
    proposer = SuffixProposer(SuffixSettings(capacity_tokens=100))
    said(proposer, range(100, 120), range(50, 70))
    assert drafted(proposer, [52, 53, 54]) == [55, 56, 57]
    assert drafted(proposer, [102, 103, 104]) == []
    proposer.clear()
    assert drafted(proposer, [52, 53, 54]) == []


def test_a_saved_index_drafts_the_same(tmp_path):
    settings = SuffixSettings(capacity_tokens=200)
    old, new, small = (
        SuffixProposer(settings),
        SuffixProposer(settings),
        SuffixProposer(SuffixSettings(capacity_tokens=16)),
    )
    for start in range(0, 400, 40):
        said(old, [], range(start, start + 30))
    old.save(tmp_path / "index", "m")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    new.load(tmp_path / "index", "m")
    small.load(tmp_path / "index", "m")
    for start in range(400):
        assert drafted(new, range(start, start + 5)) == drafted(old, range(start, start + 5))
    assert drafted(small, [374, 375]) == [] != drafted(new, [374, 375])
    assert drafted(small, [380, 381]) == [382, 383]


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    proposer = SuffixProposer(SuffixSettings(capacity_tokens=100))
    proposer.save(tmp_path / "index", "m")
    with pytest.raises(ValueError, match="of model 'm', not of 'other'"):
        proposer.load(tmp_path / "index", "other")
    with pytest.raises(FileNotFoundError):
        proposer.load(tmp_path / "none")
    for damage in (b"", b"text", (tmp_path / "index").read_bytes()[:200]):
        (tmp_path / "bad").write_bytes(damage)
        with pytest.raises(ValueError, match="give a file that save wrote"):
            proposer.load(tmp_path / "bad")


def test_numbers_that_run_out_start_again():
    proposer = SuffixProposer(SuffixSettings(capacity_tokens=200))
    proposer._kept.ring[0] = 1 << 27
    for start in range(0, 400, 40):
        said(proposer, [], range(start, start + 30))
    assert proposer._kept.ring[0] < 1000
    assert drafted(proposer, [364, 365]) == [366, 367]
    assert drafted(proposer, [4, 5]) == []


def test_full_room_for_running_requests_doubles():
    proposer = SuffixProposer(SuffixSettings(capacity_tokens=0, active_tokens=64))
    slots = [proposer.start(np.arange(n, n + 900, dtype=np.int32), EMPTY) for n in range(5)]
    for _ in range(3):
        proposer.work()
    more = np.arange(100, 140, dtype=np.int32)
    drafts = proposer.step(ints(*slots), np.tile(more, 5), np.arange(6) * 40, np.full(5, 8))
    assert drafts.tokens.tolist() == [list(range(140, 148))] * 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_depth": 0}, "max_depth is 0; give a whole number from 1 to 4096"),
        ({"max_spec_factor": -1.0}, "give a number, 0 or more"),
        ({"max_spec_offset": float("nan")}, "give a finite number"),
        ({"min_token_prob": 1.5}, "between 0 and 1"),
        ({"eviction": "random"}, "give one of fifo, lru"),
        ({"levels": (4, 2)}, "ascending"),
        ({"levels": (1, 32), "max_depth": 16}, "none may exceed max_depth"),
        ({"prompt_tail": 65}, "from 0 to 64"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SuffixSettings(**wrong)


def test_bytes_bound_the_index_too():
    assert SuffixSettings(capacity_bytes=1 << 20).pages * 8 * SuffixSettings().bytes_per_token <= 1 << 20
    assert SuffixSettings(capacity_bytes=0).pages == 0


def test_wrong_calls_are_refused():
    proposer = SuffixProposer(SuffixSettings(capacity_tokens=0))
    slot = proposer.start(ints(1, 2), EMPTY)
    with pytest.raises(ValueError, match="none negative; its least is -3"):
        proposer.start(ints(1, -3), EMPTY)
    with pytest.raises(ValueError, match=r"slots \[7\] are not running"):
        proposer.step(ints(slot, 7), EMPTY, ints(0, 0, 0), ints(1, 1))
    with pytest.raises(ValueError, match="offsets run from 0 to 1"):
        proposer.step(ints(slot), EMPTY, ints(0, 1), ints(1))
    with pytest.raises(ValueError, match="offsets run from 0 to 2"):
        proposer.step(ints(slot, slot), ints(3, 4), ints(0, 3, 2), ints(1, 1))
    with pytest.raises(ValueError, match="1 slots, 2 limits, 2 offsets"):
        proposer.step(ints(slot), ints(3), ints(0, 1), ints(1, 1))
    with pytest.raises(ValueError, match="none negative; its least is -1"):
        proposer.step(ints(slot), ints(3, -1), ints(0, 2), ints(1))
    with pytest.raises(ValueError, match="one row of token ids"):
        proposer.step(ints(slot), np.ones((2, 2), np.int32), ints(0, 2), ints(1))
    proposer.stop(slot)
    with pytest.raises(ValueError, match="is not running"):
        proposer.stop(slot)
