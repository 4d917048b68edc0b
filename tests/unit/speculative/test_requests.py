"""Requests against a proposer that only remembers what it was told."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from speculative.base import Drafts
from speculative.requests import Requests, draftable


def params(**given):
    usual = {
        "max_new_tokens": 100, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0,
        "min_new_tokens": 0,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **given})


@dataclass
class Asked:
    rid: str
    origin_input_ids: list
    output_ids: list = field(default_factory=list)
    sampling_params: object = field(default_factory=params)
    custom_logit_processor: object = None
    over: bool = False
    is_retracted: bool = False

    def finished(self):
        return self.over


class Memory:
    """A proposer that keeps every text, and drafts its own slot number as often as it may."""

    def __init__(self):
        self.texts, self.stopped, self.limits = {}, [], []

    def start(self, prompt, response):
        slot = len(self.texts)
        self.texts[slot] = [*prompt.tolist(), *response.tolist()]
        return slot

    def step(self, slots, tokens, offsets, limits):
        for i, slot in enumerate(slots.tolist()):
            self.texts[slot] += tokens[offsets[i] : offsets[i + 1]].tolist()
        self.limits = limits.tolist()
        return Drafts.nothing(len(slots))

    def stop(self, slot):
        self.stopped.append(slot)


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def requests(memory):
    return Requests(memory, longest=8, context=1000)


def test_every_token_is_taken_in_once(memory, requests):
    one, two = Asked("a", [1, 2]), Asked("b", [3])
    requests.propose([one, two], {})
    one.output_ids += [10, 11]
    requests.propose([one, two], {"b": [20]})  # b's token is still on its way
    two.output_ids += [20]
    one.output_ids += [12]
    requests.propose([two, one], {"a": [13, 14]})
    assert memory.texts == {0: [1, 2, 10, 11, 12, 13, 14], 1: [3, 20]}
    assert memory.stopped == []


def test_a_request_that_lost_tokens_starts_again(memory, requests):
    one = Asked("a", [1], [5])
    requests.propose([one], {"a": [6, 7]})
    requests.propose([one], {})  # put away before 6 and 7 arrived
    assert memory.stopped == [0]
    assert memory.texts[1] == [1, 5]


def test_an_id_that_is_used_again(memory, requests):
    requests.propose([Asked("a", [1], [5])], {})
    requests.propose([Asked("a", [2], [6])], {})
    assert memory.stopped == [0]
    assert memory.texts[1] == [2, 6]


def test_the_end_of_a_request(memory, requests):
    one = Asked("a", [1], [5])
    requests.propose([one], {})
    one.output_ids += [6, 7]
    requests.finish("a")
    requests.finish("a")
    requests.finish("never seen")
    assert memory.texts[0] == [1, 5, 6, 7]
    assert memory.stopped == [0]
    assert len(requests) == 0


def test_requests_that_ended_without_a_word(memory, requests):
    one, two = Asked("a", [1]), Asked("b", [2])
    requests.propose([one, two], {})
    one.over = True
    assert not requests.idle()
    assert memory.stopped == []
    requests.sweep()
    assert memory.stopped == [0]
    assert len(requests) == 1
    two.is_retracted = True  # and perhaps given up before it came back
    assert requests.idle()
    assert memory.stopped == [0, 1]
    assert len(requests) == 0
    two.is_retracted, two.output_ids = False, [7]
    requests.propose([two], {})
    assert memory.texts[2] == [2, 7]


def test_drafts_end_before_an_id_that_is_none_of_the_models(memory):
    found = Drafts(
        np.array([[5, 1_000_007, 6], [1_000_007, 5, 0], [9, 8, 7], [0, 0, 0]], np.int32),
        np.array([3, 2, 3, 0], np.int32), np.array([2.5, 1.5, 2.5, 0], np.float32),
    )  # fmt: skip
    memory.step = lambda *asked: found
    asked = [Asked(rid, [1]) for rid in "abcd"]
    drafts, _ = Requests(memory, longest=8, context=1000, vocabulary=100).propose(asked, {})
    assert drafts.tokens.tolist() == [[5, 0, 0], [0, 0, 0], [9, 8, 7], [0, 0, 0]]
    assert drafts.lengths.tolist() == [1, 0, 3, 0]
    assert drafts.scores.tolist() == [1, 0, 2.5, 0]
    assert {drafts.tokens.dtype, drafts.lengths.dtype} == {np.dtype(np.int32)}
    assert drafts.scores.dtype == np.float32
    drafts, _ = Requests(memory, longest=8, context=1000, vocabulary=2_000_000).propose(asked, {})
    assert drafts is found


@pytest.mark.parametrize(
    ("done", "late", "limit"), [(0, 0, 8), (95, 0, 4), (95, 2, 2), (98, 0, 1), (99, 0, 0), (99, 1, 0)]
)
def test_drafts_end_with_the_answer(memory, requests, done, late, limit):
    requests.propose([Asked("a", [1], [5] * done)], {"a": [5] * late})
    assert memory.limits == [limit]


@pytest.mark.parametrize(("most", "limit"), [(None, 8), (9, 8), (3, 3), (0, 0)])
def test_no_longer_draft_than_is_of_use(memory, requests, most, limit):
    one = Asked("a", [1])
    _, allowed = requests.propose([one], {}, most)
    assert memory.limits == allowed.tolist() == requests.limits([one], {}, most).tolist() == [limit]


def test_drafts_end_with_the_context(memory):
    requests = Requests(memory, longest=8, context=20)
    requests.propose([Asked("a", [1] * 10, [5] * 5)], {})
    assert memory.limits == [4]  # 15 tokens, 4 of a draft, and the one after it


@pytest.mark.parametrize(
    "given",
    [
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"min_new_tokens": 1},
    ],
)
def test_penalties_are_not_drafted_for(memory, requests, given):
    one = Asked("a", [1], sampling_params=params(**given))
    assert not draftable(one)
    requests.propose([one, Asked("b", [2])], {})
    assert memory.limits == [0, 8]
    assert requests.limits([one, Asked("b", [2])], {}).tolist() == [0, 8]


def test_custom_logit_processors_are_not_drafted_for():
    assert not draftable(Asked("a", [1], custom_logit_processor="x"))
    assert draftable(Asked("a", [1]))


def test_arrays_are_int32(memory, requests):
    found = requests.limits([Asked("a", [1])], {})
    assert found.dtype == np.int32
