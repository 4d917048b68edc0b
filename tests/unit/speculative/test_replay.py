"""The replay: what it shows a source of drafts, that all tokens add up, and times by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculative.base import Drafts
from speculative.cost import CostTable
from speculative.replay import Replay, plain_seconds
from speculative.traces import Trace

WIDTHS = (1, 2, 4, 8)
TABLE = CostTable.linear(WIDTHS, 8, constant=1.0, per_token=0.01)


class Seer:
    """Knows the traces, drafts `right` tokens that are true and then some that are not, and writes down all."""

    def __init__(self, traces, right, wrong):
        self.traces, self.right, self.wrong = traces, right, wrong
        self.shown, self.running, self.most, self.began = {}, {}, 0, 0

    def start(self, prompt, response):
        slot = min(set(range(99)) - set(self.running))
        # Traces of one token are never started.
        number = [n for n, trace in enumerate(self.traces) if len(trace.response) > 1][self.began]
        assert prompt.tolist() == self.traces[number].prompt.tolist()
        assert len(response) == 0
        self.began += 1
        self.running[slot], self.shown[number] = number, []
        self.most = max(self.most, len(self.running))
        return slot

    def step(self, slots, tokens, offsets, limits):
        assert len(slots) == len(limits) == len(offsets) - 1
        drafts = []
        for row, (slot, limit) in enumerate(zip(slots, limits, strict=True)):
            number = self.running[int(slot)]
            self.shown[number] += tokens[offsets[row] : offsets[row + 1]].tolist()
            true = self.traces[number].response[len(self.shown[number]) :].tolist()
            drafts.append([*true[: self.right], *[-1] * self.wrong][:limit])
        width = max(map(len, drafts))
        padded = np.array([draft + [0] * (width - len(draft)) for draft in drafts], np.int32)
        lengths = np.array([len(draft) for draft in drafts], np.int32)
        return Drafts(padded.reshape(len(drafts), width), lengths, lengths.astype(np.float32))

    def work(self):
        pass

    def stop(self, slot):
        number = self.running.pop(slot)
        assert self.shown[number] == self.traces[number].response.tolist()

    def clear(self):
        pass


def traces_of(lengths):
    rng = np.random.default_rng(0)
    return [
        Trace(np.array([1, 2, 3], np.int32), rng.integers(0, 50, length).astype(np.int32))
        for length in lengths
    ]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=60)
@given(lengths, st.integers(1, 8), st.integers(0, 7), st.integers(0, 3), st.booleans())
def test_all_is_shown_once_and_adds_up(lengths, concurrency, right, wrong, whole):
    traces = traces_of(lengths)
    seer = Seer(traces, right, wrong)
    outcome = Replay(seer, TABLE, concurrency=concurrency, longest=7, whole=whole).run(traces)
    assert not seer.running
    assert seer.most <= concurrency
    assert sorted(seer.shown) == [number for number, length in enumerate(lengths) if length > 1]
    counts = outcome.counts
    assert outcome.tokens == sum(lengths)
    assert int(counts.rows.sum() + counts.accepted.sum()) + len(lengths) == sum(lengths)
    if right == 0:
        assert counts.accepted.sum() == 0


def test_steps_by_hand():
    traces = traces_of([10])
    outcome = Replay(Seer(traces, 3, 0), TABLE, concurrency=1, longest=7, whole=True).run(traces)
    # The prefill gives 1 token; steps of 4, 4 and then 1, where the draft of the last token has nothing left to win.
    assert outcome.counts.steps.tolist() == [0, 1, 2, 0]
    assert outcome.counts.accepted.sum() == 6
    assert outcome.plain_seconds == pytest.approx(9 * 1.01)
    assert outcome.seconds - outcome.propose_seconds == pytest.approx(2 * 1.04 + 1.02)
    assert outcome.speedup == pytest.approx(9 * 1.01 / outcome.seconds)


def test_a_source_that_is_always_wrong_is_given_up():
    traces = traces_of([300] * 8)
    table = CostTable.linear(WIDTHS, 8, constant=1.0, per_token=0.1)
    with_policy = Replay(Seer(traces, 0, 7), table, concurrency=8, longest=7).run(traces)
    whole = Replay(Seer(traces, 0, 7), table, concurrency=8, longest=7, whole=True).run(traces)
    assert whole.plain_seconds / (whole.seconds - whole.propose_seconds) < 0.3
    assert with_policy.plain_seconds / (with_policy.seconds - with_policy.propose_seconds) > 0.9


@given(lengths, st.integers(1, 5))
def test_plain_decoding_against_a_loop(lengths, concurrency):
    waiting, running, seconds = [length - 1 for length in lengths if length > 1], [], 0.0
    while waiting or running:
        while waiting and len(running) < concurrency:
            running.append(waiting.pop(0))
        seconds += TABLE.cost(len(running), 1)
        running = [left - 1 for left in running if left > 1]
    assert plain_seconds(lengths, TABLE, concurrency) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"concurrency": 1, "longest": 8}, "drafts of 8 tokens"),
        ({"concurrency": 1, "longest": 0}, "drafts of 0 tokens"),
        ({"concurrency": 9, "longest": 7}, "9 requests at width 1"),
    ],
)
def test_a_table_that_does_not_reach(asked, said):
    with pytest.raises(ValueError, match=said):
        Replay(Seer([], 0, 0), TABLE, **asked)


def test_whole_drafts_need_the_widest_step():
    table = CostTable({(1, 1): 1, (8, 1): 1, (1, 8): 1, (4, 8): 1})
    Replay(Seer([], 0, 0), table, concurrency=8, longest=7)
    with pytest.raises(ValueError, match="8 requests at width 8"):
        Replay(Seer([], 0, 0), table, concurrency=8, longest=7, whole=True)
