"""The host's side of a step, with a proposer that is played."""

from types import SimpleNamespace

import numpy as np
import pytest

from speculative.base import Drafts
from speculative.cost import CostTable
from speculative.metrics import Statistics
from speculative.pace import Circumstances, Kind
from speculative.policy import Excess, Policy, Source
from speculative.requests import Requests
from tests.unit.speculative.test_requests import Asked

drafting = pytest.importorskip("speculative.sglang_worker.drafting")


class Played:
    """Drafts what it is told to, once it has been told a number of tokens."""

    def __init__(self, after):
        self.after, self.heard, self.calls, self.taken = after, 0, [], []

    def start(self, prompt, response):
        self.heard += len(response)
        return 0

    def step(self, slots, tokens, offsets, limits):
        self.heard += len(tokens)
        self.limits = limits.tolist()
        (self.calls if limits.any() else self.taken).append(tokens.tolist())
        length = 4 if self.heard >= self.after and limits[0] else 0
        row = np.array([[7, 7, 7, 7]], np.int32)
        return Drafts(row, np.array([length], np.int32), np.array([float(length)], np.float32))

    def stop(self, slot):
        pass


class Event:
    def __init__(self):
        self.waited, self.over = 0, False

    def query(self):
        return self.over

    def synchronize(self):
        self.waited += 1


def result(tokens, lengths, width):
    ids = np.array(tokens)
    return SimpleNamespace(
        copy_done=Event(), next_token_ids=ids, accept_lens=np.array(lengths), num_correct_drafts_per_req_cpu=None,
        speculative_num_draft_tokens=width,
    )  # fmt: skip


def planner(played, head=0, max_batch=8, table=None, **given):
    policy = Policy(table or CostTable.linear((2, 4, 8), max_batch, constant=16.0), longest=7, head=head)
    statistics = Statistics((1, 2, 4, 8))
    requests = Requests(played, 7, 1000)
    options = {"suffix": True, "statistics": statistics} | given
    return drafting.Drafting(requests, policy, **options), statistics


def batch(request, custom=False):
    return SimpleNamespace(reqs=[request], sampling_info=SimpleNamespace(has_custom_logit_processor=custom))


def test_nothing_found_waits_for_nobody():
    plan_of, _ = planner(Played(after=100))
    one, step = Asked("a", [1], [5]), result([6], [1], 1)
    plan_of.launched(batch(one), step, prefill=False)
    assert plan_of.plan(batch(one)).width == 1
    assert step.copy_done.waited == 0


def test_a_find_waits_for_the_step_in_flight():
    played = Played(after=1)
    plan_of, _ = planner(played)
    one, step = Asked("a", [1], [5]), result([6, 8, 0, 0], [2], 4)
    plan_of.launched(batch(one), step, prefill=False)
    plan = plan_of.plan(batch(one))
    assert step.copy_done.waited == 1
    assert played.calls == [[], [6, 8]]
    assert plan.width == 8  # the draft of 4 and the token before it
    assert plan.picked.sources.tolist() == [Source.SUFFIX]


def test_a_step_that_is_processed_is_not_waited_for():
    played = Played(after=1)
    plan_of, _ = planner(played)
    one, step = Asked("a", [1], [5]), result([6], [1], 1)
    plan_of.launched(batch(one), step, prefill=False)
    step.num_correct_drafts_per_req_cpu = [0]
    one.output_ids += [6]
    assert plan_of.plan(batch(one)).width == 8
    assert step.copy_done.waited == 0
    assert played.calls == [[]]  # one look-up, and both tokens were there when the request began


def test_a_prefill_in_flight():
    played = Played(after=1)
    plan_of, _ = planner(played)
    one, step = Asked("a", [1]), result([6], None, None)
    plan_of.launched(batch(one), step, prefill=True)
    plan_of.plan(batch(one))  # knows no token, finds nothing
    assert step.copy_done.waited == 0
    one.output_ids += [6]
    assert plan_of.plan(batch(one)).width == 8
    assert step.copy_done.waited == 0


def test_custom_logit_processors_turn_drafting_off():
    played = Played(after=0)
    plan_of, _ = planner(played)
    assert plan_of.plan(batch(Asked("a", [1], [5]), custom=True)).width == 1
    assert played.calls == []


def test_steps_are_counted_in_order():
    plan_of, statistics = planner(Played(after=2))
    one = Asked("a", [1], [5])
    plan_of.plan(batch(one))
    one.output_ids += [6]
    assert plan_of.plan(batch(one)).width == 8
    plan_of.verified([0])
    plan_of.verified([3])
    assert statistics.total.steps.tolist() == [1, 0, 0, 1]
    assert statistics.total.accepted[Source.SUFFIX] == 3


def test_the_head_fills_in():
    plan_of, _ = planner(Played(after=100), head=3)
    plan = plan_of.plan(batch(Asked("a", [1], [5])))
    assert plan.width == 4
    assert plan.picked.sources.tolist() == [Source.HEAD]
    near_end = Asked("b", [1], [5] * 98)
    assert plan_of.plan(batch(near_end)).picked.lengths.tolist() == [1]


def test_the_head_alone_asks_no_index():
    played = Played(after=0)
    plan_of, _ = planner(played, suffix=False, head=3)
    assert plan_of.plan(batch(Asked("a", [1], [5]))).width == 4
    assert played.calls == []


class Paced:
    """A pace that says what it is told to, and notes what it hears."""

    def __init__(self, excess=(0.0, 0.0), due=False):
        self.told, self.plain_due, self.heard, self.kinds = excess, due, [], []

    def excess(self, now):
        return Excess(self.told[0], self.told[1], self.told[1])

    def due(self, now):
        return self.plain_due

    def planned(self, now, kind):
        self.kinds.append((now, kind))

    def observe(self, then, kind, seconds, cost):
        self.heard.append((then, kind, seconds, cost))


class Clock:
    """Marks a point in time when it is called, a second after the last one."""

    def __init__(self, at=0):
        self.at = at

    def __call__(self):
        self.at += 1
        return Clock(self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def asked_of(played, plan_of, steps, one):
    """Which of some steps asked for drafts."""
    found = []
    for step in range(steps):
        before = len(played.calls)
        assert plan_of.plan(batch(one)).width == 1
        found += [step] * (len(played.calls) > before)
    return found


def test_who_asks_in_vain_asks_less_and_less_often(monkeypatch):
    played = Played(after=1000)
    plan_of, _ = planner(played)
    one, heard = Asked("a", [1], [5]), []
    choose = plan_of._policy.choose

    def noted(*args, steps=1):
        heard.append(steps)
        return choose(*args, steps=steps)

    monkeypatch.setattr(plan_of._policy, "choose", noted)
    assert asked_of(played, plan_of, 100, one) == [
        *range(32),
        *range(33, 65, 2),
        66,
        69,
        *range(72, 95, 3),
        96,
    ]
    assert sum(heard) == 97  # the policy counts steps, whoever was asked
    plan_of.launched(batch(one), result([5], None, None), prefill=True)
    assert asked_of(played, plan_of, 4, one) == [0, 1, 2, 3]  # behind a prefill there may be others


def test_steps_without_drafts_are_told_apart_by_whether_anybody_was_asked():
    pace = Paced()
    plan_of, _ = planner(Played(after=1000), pace=pace)
    for _ in range(40):
        assert plan_of.plan(batch(Asked("a", [1], [5]))).width == 1
    pace.plain_due = True
    plan_of.plan(batch(Asked("a", [1], [5])))
    kinds = [kind for _, kind in pace.kinds]
    assert kinds == [Kind.ASKED] * 32 + [Kind.PLAIN, Kind.ASKED] * 4 + [Kind.PLAIN]


def test_tries_that_come_true_do_not_make_every_step_ask():
    played = Played(after=1)
    plan_of, _ = planner(played, pace=Paced((0.0, 1000.0)))
    one, widths = Asked("a", [1], [5]), []
    for _ in range(400):
        widths.append(plan_of.plan(batch(one)).width)
        plan_of.verified([3 * (widths[-1] > 1)])
    assert 3 < sum(width > 1 for width in widths) < 12
    assert len(played.calls) < 160


def test_drafts_are_asked_for_as_long_as_a_step_can_use():
    played = Played(after=1)
    table = CostTable({(1, 1): 1.0, (1, 8): 1.5, (2, 1): 1.0, (2, 2): 1.2, (2, 8): None})
    plan_of, _ = planner(played, table=table)
    one, other = Asked("a", [1], [5]), Asked("b", [1], [5])
    plan_of.plan(batch(one))
    assert played.limits == [7]
    plan_of.plan(SimpleNamespace(reqs=[one, other], sampling_info=batch(one).sampling_info))
    assert played.limits == [1, 1]


def test_tokens_of_steps_that_nobody_asks_in_are_taken_in_by_turns():
    played = Played(after=10**6)
    plan_of, _ = planner(played, max_batch=20)
    everybody = [Asked(str(i), [1], [5]) for i in range(20)]
    many = SimpleNamespace(reqs=everybody, sampling_info=SimpleNamespace(has_custom_logit_processor=False))
    for step in range(2000):
        plan_of.plan(many)
        for one in everybody:
            one.output_ids.append(step)
    assert 20 * 1990 < played.heard <= 20 * 2001
    assert len(played.calls) < 200
    assert max(map(len, played.taken[-100:])) == 10 * 8
    assert max(map(len, played.calls[-10:])) <= 20 * 8


def test_what_comes_true_makes_every_step_ask():
    played = Played(after=1000)
    plan_of, _ = planner(played)
    one = Asked("a", [1], [5])
    assert len(asked_of(played, plan_of, 200, one)) < 100
    played.after = 0
    while plan_of.plan(batch(one)).width == 1:
        one.output_ids += [6]
    assert len(one.output_ids) < 8
    assert [plan_of.plan(batch(one)).width for _ in range(3)] == [8, 8, 8]  # nothing is known of them yet
    for _ in range(200 + len(one.output_ids)):
        plan_of.verified([0])
    played.after = 1000
    assert len(asked_of(played, plan_of, 9, one)) == 2
    plan_of.verified([2])
    assert len(asked_of(played, plan_of, 32, one)) == 32


def test_the_learnt_gap_keeps_steps_plain():
    one = Asked("a", [1], [5])
    for gap, width in (((0.0, 0.0), 8), ((0.0, 1000.0), 1), ((1000.0, 1000.0), 8)):
        plan_of, _ = planner(Played(after=1), pace=Paced(gap))
        assert plan_of.plan(batch(one)).width == width


def test_the_pace_hears_what_steps_took_above_the_table():
    pace = Paced()
    plan_of, statistics = planner(Played(after=1), pace=pace, mark=Clock())
    one = Asked("a", [1], [5])
    plan_of.plan(batch(one))
    plan_of.launched(
        batch(one), result([5], [1], 1), prefill=False
    )  # the first of all: nothing was before it
    plan_of.launched(batch(one), result([5], None, None), prefill=True)
    one.output_ids += [6]
    plan_of.plan(batch(one))
    plan_of.launched(batch(one), result([6, 0, 0, 0], [1], 4), prefill=False)
    plan_of.verified([0])
    plan_of.verified([2])
    table = CostTable.linear((2, 4, 8), 8, constant=16.0)
    first, second = Circumstances(1), Circumstances(1, prefilled=True)
    assert pace.kinds == [(first, Kind.WIDE), (second, Kind.WIDE)]
    cost = table.cost(1, 8)
    assert pace.heard == [(first, Kind.WIDE, None, cost), (second, Kind.WIDE, 1.0, cost)]
    assert statistics.total.seconds[2] == 1.0


def test_the_heads_time_is_not_the_hosts():
    pace = Paced()
    given = {"pace": pace, "mark": Clock(), "head": 3, "head_seconds": 0.25, "suffix": False}
    plan_of, _ = planner(Played(after=100), **given)
    one = Asked("a", [1], [5])
    for _ in range(2):
        plan_of.plan(batch(one))
        plan_of.launched(batch(one), result([6, 0, 0, 0], [1], 4), prefill=False)
    for _ in range(2):
        plan_of.verified([0])
    table = CostTable.linear((2, 4, 8), 8, constant=16.0)
    assert pace.heard[1] == (Circumstances(1, drafted=True), Kind.HEAD, 1.0, 0.25 + table.cost(1, 4))


def test_who_is_alone_and_late_anyway_asks_once():
    played = Played(after=1)
    plan_of, _ = planner(played, alone=True)
    one, step = Asked("a", [1], [5]), result([6, 8, 0, 0], [2], 4)
    step.copy_done.over = True
    plan_of.launched(batch(one), step, prefill=False)
    assert plan_of.plan(batch(one)).width == 8
    assert played.calls == [[6, 8]]


def test_who_is_alone_and_early_asks_before_it_waits():
    played = Played(after=1)
    plan_of, _ = planner(played, alone=True)
    one, step = Asked("a", [1], [5]), result([6, 8, 0, 0], [2], 4)
    plan_of.launched(batch(one), step, prefill=False)
    plan_of.plan(batch(one))
    assert played.calls == [[], [6, 8]]


def test_a_step_is_plain_when_that_has_to_be_seen():
    plan_of, _ = planner(Played(after=1), pace=Paced(due=True))
    assert plan_of.plan(batch(Asked("a", [1], [5]))).width == 1


def test_new_requests_are_asked_about_as_soon_as_a_step_may_ask():
    played, paced = Played(after=1000), Paced(due=False)
    plan_of, _ = planner(played, pace=paced)
    one = Asked("a", [1], [5])
    asked_of(played, plan_of, 100, one)
    paced.plain_due = True
    plan_of.launched(batch(one), result([5], None, None), prefill=True)
    assert asked_of(played, plan_of, 1, one) == []
    plan_of.launched(batch(one), result([6], [1], 1), prefill=False)
    paced.plain_due = False
    assert asked_of(played, plan_of, 1, one) == [0]


def test_who_has_to_plan_like_others_asks_twice_whatever_the_device_has_done():
    played = Played(after=1)
    plan_of, _ = planner(played)
    one, step = Asked("a", [1], [5]), result([6, 8, 0, 0], [2], 4)
    step.copy_done.over = True
    plan_of.launched(batch(one), step, prefill=False)
    plan_of.plan(batch(one))
    assert played.calls == [[], [6, 8]]


class Fading(Played):
    """Drafts four tokens at first, then one."""

    def step(self, slots, tokens, offsets, limits):
        drafts = super().step(slots, tokens, offsets, limits)
        if len(self.calls) > 1:
            drafts.lengths[:], drafts.scores[:] = 1, 1.0
        return drafts


def test_once_the_wait_is_over_a_plain_step_is_as_late_as_any():
    """A draft of one would not be worth waiting for; it is worth checking."""
    plan_of, _ = planner(Fading(after=1), pace=Paced((0.0, 20.0)))
    one = Asked("a", [1], [5])
    plan_of.launched(batch(one), result([6], [1], 1), prefill=False)
    assert plan_of.plan(batch(one)).width == 2
    alone, _ = planner(Fading(after=1), pace=Paced((0.0, 20.0)), alone=True)
    assert alone.plan(batch(Asked("b", [1], [5]))).width == 8  # four, and nothing to wait for


def test_the_heads_time_counts_against_it():
    one = Asked("a", [1], [5])
    for seconds, width in ((0.1, 4), (1000.0, 1)):
        plan_of, _ = planner(Played(after=100), head=3, head_seconds=seconds)
        assert plan_of.plan(batch(one)).width == width


class Pairs(Played):
    """Drafts for the first of two requests."""

    def step(self, slots, tokens, offsets, limits):
        one = super().step(slots, tokens, offsets, limits)
        both = Drafts(np.zeros((2, 4), np.int32), np.zeros(2, np.int32), np.zeros(2, np.float32))
        both.tokens[0], both.lengths[0], both.scores[0] = one.tokens[0], one.lengths[0], one.scores[0]
        return both


def test_the_heads_room_is_what_the_newest_tokens_leave():
    plan_of, _ = planner(Pairs(after=1), head=3)
    one, ending = Asked("a", [1], [5]), Asked("b", [1], [5] * 98)  # of 100
    both = SimpleNamespace(
        reqs=[one, ending], sampling_info=SimpleNamespace(has_custom_logit_processor=False)
    )
    plan_of.launched(both, result([6, 7], [1, 1], 1), prefill=False)
    plan = plan_of.plan(both)
    assert plan.picked.sources.tolist() == [Source.SUFFIX, Source.NONE]
    assert plan.picked.lengths.tolist() == [4, 0]
