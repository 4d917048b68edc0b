"""The policy: against slow twins in floats, and as a player that must stop losing and start winning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculative.base import Drafts
from speculative.cost import CostTable
from speculative.policy import Calibration, Choice, Excess, Patience, Picked, Policy, Probes, Source, Yield
from speculative.weighing import ONE, Asked, Tables, learn, weigh

WIDTHS = (1, 2, 4, 8, 16, 32)
# About an H100 with an 8 B model: reading the weights is most of a step.
TABLE = CostTable.linear(WIDTHS, 256, constant=4.5e-3, per_token=4e-6)
FREE = CostTable.linear(WIDTHS, 256, constant=1, per_token=1e-12)
YIELD = Yield(WIDTHS, 31)


def picked(lengths, scores=None, source=Source.SUFFIX):
    lengths = np.array(lengths, np.int32)
    return Picked.all_of(
        source, lengths, lengths.astype(np.float32) if scores is None else np.float32(scores)
    )


def suffix(lengths, scores=None):
    drafts = picked(lengths, scores)
    return Drafts(np.zeros((len(lengths), max(lengths)), np.int32), drafts.lengths, drafts.scores)


def wide(seconds, plain=0.0):
    return Excess(plain, seconds, seconds)


def rooms(count, tokens=3):
    return np.full(count, tokens, np.int32)


def exact_yield(length, score, cut):
    """The slow twin: q by bisection, in floats."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**j for j in range(1, length + 1)) < score else (low, middle)
    return sum(high**j for j in range(1, min(cut, length) + 1))


@given(st.integers(1, 31), st.floats(0.01, 1.0))
def test_tables_of_yields_are_near_the_exact_ones(length, share):
    lengths, scores = np.array([length], np.int32), np.array([share * length], np.float32)
    tokens = YIELD.tokens(YIELD.chances(lengths, scores), lengths)[0] / 4096
    exact = [exact_yield(length, float(scores[0]), width - 1) for width in WIDTHS]
    assert tokens == pytest.approx(exact, abs=0.2, rel=0.03)


@given(st.integers(1, 31), st.floats(0.0, 1.0))
def test_a_yield_grows_with_the_width_ever_slower(length, share):
    lengths, scores = np.array([length], np.int32), np.array([share * length], np.float32)
    tokens = YIELD.tokens(YIELD.chances(lengths, scores), lengths)[0] / 4096
    cuts = np.minimum(np.array(WIDTHS) - 1, length)
    assert tokens[0] == 0
    assert (np.diff(tokens) >= 0).all()
    slopes = np.diff(tokens) / np.maximum(np.diff(cuts), 1)
    assert (np.diff(slopes[np.diff(cuts) > 0]) <= 1e-3).all()
    assert (tokens <= np.minimum(cuts, 1.03 * share * length + 0.2)).all()


def test_the_width_holds_what_is_sure():
    policy = Policy(TABLE)
    assert [policy.width(suffix([n])) for n in (0, 1, 3, 7, 15, 31)] == list(WIDTHS)


def test_a_long_tail_of_little_worth_is_cut():
    policy = Policy(CostTable.linear(WIDTHS, 256, constant=1, per_token=0.03))
    assert policy.width(suffix([31], [4.0])) == 8


def test_one_draft_among_many_requests_does_not_pay_for_all():
    lengths = np.zeros(256, np.int32)
    lengths[0] = 7
    assert Policy(TABLE).width(suffix(lengths)) == 1
    assert Policy(TABLE).width(suffix(lengths[:8])) == 8


def test_the_overhead_counts_against_drafts_alone():
    policy = Policy(TABLE)
    assert policy.width(suffix([1], [0.1])) == 2
    assert policy.width(suffix([1], [0.1]), excess=wide(1e-3)) == 1
    assert policy.width(suffix([0]), excess=wide(1e-3)) == 1


def test_a_slow_host_is_counted_in_both_kinds_of_steps():
    policy = Policy(TABLE)
    drafts = suffix([3], [1.0])
    seconds = policy.table.cost(1, 1)
    assert policy.width(drafts) > 1
    assert policy.width(drafts, excess=wide(2 * seconds)) == 1
    assert policy.width(drafts, excess=wide(2 * seconds, seconds)) > 1


def test_no_step_is_taken_for_cheaper_than_a_plain_one():
    policy = Policy(TABLE)
    seconds = policy.table.cost(1, 1)
    assert policy.width(suffix([7], [1e-3]), excess=wide(-seconds / 2)) in (1, 2)
    hopeless = picked([7], [1e-3])
    for _ in range(50):
        policy.observe(hopeless, 8, np.array([0], np.int32))
    assert policy.width(suffix([7], [1e-3]), excess=wide(-seconds / 2)) == 1
    assert policy.width(suffix([7], [1e-3]), excess=Excess(plain=seconds)) == 1


def test_a_probe_that_won_only_by_the_table_does_not_come_back_soon():
    policy, drafts = Policy(TABLE), suffix([7], [0.01])
    tried = []
    for step in range(200):
        choice = policy.choose(drafts, excess=wide(1.0))
        tried += [step] if choice.probing else []
        policy.observe(picked([7], [0.01]), choice.width, np.array([choice.width > 1], np.int32))
    assert len(tried) <= 4


def slow_width(policy, lengths, scores, overhead):
    best, rate = 1, -1.0
    for width in WIDTHS:
        tokens = len(lengths) + sum(
            exact_yield(n, s, width - 1) for n, s in zip(lengths, scores, strict=True) if n
        )
        seconds = policy.table.cost(len(lengths), width) + (overhead if width > 1 else 0)
        if tokens / seconds > rate:
            best, rate = width, tokens / seconds
    return best, rate


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 31), st.floats(0.02, 1.0)), min_size=1, max_size=64),
    st.sampled_from([0.0, 2e-4, 2e-3]),
)
def test_the_width_is_nearly_as_good_as_the_best(rows, overhead):
    lengths = [length for length, _ in rows]
    scores = [length * share for length, share in rows]
    policy = Policy(TABLE)
    width = policy.width(suffix(lengths, scores), excess=wide(overhead))
    _, best = slow_width(policy, lengths, scores, overhead)
    seconds = policy.table.cost(len(rows), width) + (overhead if width > 1 else 0)
    tokens = len(rows) + sum(exact_yield(n, s, width - 1) for n, s in zip(lengths, scores, strict=True) if n)
    assert tokens / seconds >= 0.97 * best


@settings(max_examples=40)
@given(st.lists(st.integers(0, 31), min_size=1, max_size=300), st.integers(0, 300))
def test_the_hard_cap(lengths, cap):
    policy = Policy(FREE, max_batch=cap)
    batch = len(lengths)
    allowed = batch <= min(cap, 256)
    assert (policy.limit(batch) > 0) == allowed
    assert (policy.width(suffix(lengths)) > 1) == (allowed and any(lengths))
    if not allowed:
        assert policy.choose(suffix(lengths)).width == 1
        headed = Policy(FREE, max_batch=cap, head=3)
        assert headed.choose(suffix(lengths), rooms(batch)).width == 1


def test_no_draft_is_wanted_longer_than_could_pay():
    policy = Policy(CostTable({(1, 1): 1, (64, 1): 1, (1, 2): 1.1, (64, 2): 2.5, (1, 32): 8, (32, 32): None}))
    assert policy.limit(1) == 31
    assert policy.limit(4) == 1
    assert policy.limit(64) == 0


def play(policy, rng, chance, steps, batch=1, length=7, overhead=0.0):
    """Steps of drafts that promise all and of which each token comes true with `chance`; the widths checked."""
    widths = []
    for _ in range(steps):
        drafts = suffix([length] * batch)
        choice = policy.choose(drafts, excess=wide(overhead))
        width = policy.width(drafts, probing=choice.probing) if choice.width > 1 else 1
        true = np.cumprod(rng.random((batch, length)) < chance, axis=1).sum(axis=1)
        policy.observe(picked([length] * batch), width, np.minimum(true, width - 1).astype(np.int32))
        widths.append(width)
    return np.array(widths)


def test_drafting_stops_when_it_does_not_pay_and_starts_again_when_it_does():
    policy, rng = Policy(TABLE), np.random.default_rng(0)
    play(policy, rng, 0.0, 300, overhead=1e-3)
    assert (play(policy, rng, 0.0, 2000, overhead=1e-3) > 1).sum() < 10
    play(policy, rng, 1.0, 3000, overhead=1e-3)
    assert (play(policy, rng, 1.0, 100, overhead=1e-3) == 8).all()


def test_a_large_batch_learns_in_a_few_steps():
    policy, rng = Policy(TABLE), np.random.default_rng(0)
    assert (play(policy, rng, 0.02, 10, batch=128)[3:] == 1).all()


@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_cut_draft_teaches_the_same_chance(width):
    policy, rng = Policy(TABLE), np.random.default_rng(0)
    drafts = picked([7] * 64)
    for _ in range(50):
        true = np.cumprod(rng.random((64, 7)) < 0.6, axis=1).sum(axis=1)
        policy.observe(drafts, width, np.minimum(true, width - 1).astype(np.int32))
    calibration = policy._calibration
    assert calibration.factors[calibration.keys[Source.SUFFIX, 7]] == pytest.approx(0.6, abs=0.08)


def test_sources_and_lengths_are_learnt_apart():
    policy = Policy(TABLE)
    for _ in range(100):
        policy.observe(picked([1] * 8), 2, np.zeros(8, np.int32))
    assert policy.width(suffix([1]), excess=wide(1e-3)) == 1
    assert policy.width(suffix([7]), excess=wide(1e-3)) == 8
    headed = Policy(TABLE, head=1)
    for _ in range(100):
        headed.observe(picked([1] * 8), 2, np.zeros(8, np.int32))
    assert headed.choose(suffix([1]), rooms(1, 1), wide(1e-3)) == Choice(2, head=True)


def test_a_free_look_at_refused_drafts_wakes_drafting():
    policy = Policy(TABLE)
    drafts = picked([3])
    for _ in range(200):
        policy.observe(drafts, 4, np.array([0], np.int32))
    assert policy.width(suffix([3]), excess=wide(1e-3)) == 1
    for _ in range(200):
        policy.observe(drafts, 2, np.array([1], np.int32))
    assert policy.width(suffix([3]), excess=wide(1e-3)) == 4


def test_the_head_is_run_while_it_pays():
    policy, none = Policy(TABLE, head=3), suffix([0], [0])
    assert policy.choose(none, rooms(1), wide(4e-4)) == Choice(4, head=True)
    heads = picked([3], source=Source.HEAD)
    for _ in range(400):
        policy.observe(heads, 4, np.array([0], np.int32))
    choices = [policy.choose(none, rooms(1), wide(4e-4)) for _ in range(1000)]
    tried = [choice for choice in choices if choice.width > 1]
    assert 1 <= len(tried) < 10
    assert all(choice.head and choice.probing for choice in tried)


def test_the_head_runs_where_it_is_nearly_free_beside_the_index():
    """It would not pay by itself; beside a draft that makes the step wide anyway it need only pay its own time."""
    policy = Policy(TABLE, head=3)
    for _ in range(400):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([1], np.int32))
    wait = Excess(wide=4e-3, head=4e-3 + 2e-5)
    policy.choose(suffix([0] * 4), rooms(4), wait)  # a try, as the last one came out well
    assert policy.choose(suffix([0] * 4), rooms(4), wait).width == 1
    assert policy.choose(suffix([7, 7, 7, 0]), rooms(4), wait) == Choice(8, head=True)
    dear = wait._replace(head=8e-3)
    assert policy.choose(suffix([7, 7, 7, 0]), rooms(4), dear) == Choice(8, head=False)


def test_the_head_is_not_free_where_plain_steps_were_slow():
    """A plain step computes less than any other; that some took longer says nothing for the head's time."""
    policy = Policy(TABLE, head=3)
    for _ in range(400):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([1], np.int32))
    drafts, slow = suffix([7, 7, 7, 0]), Excess(plain=50e-3, wide=4e-3, head=8e-3)
    policy.choose(suffix([0] * 4), rooms(4), slow)  # a try, as the last one came out well
    assert policy.choose(drafts, rooms(4), slow) == Choice(8, head=False)
    assert policy.choose(drafts, rooms(4), slow._replace(head=4e-3 + 2e-5)) == Choice(8, head=True)
    assert policy.choose(suffix([0] * 4), None, slow) == Choice(1)


@pytest.mark.parametrize(
    ("accepted", "unsure", "often"),
    [(2, False, False), (2, True, True), (0, False, False), (0, True, False)],
)
def test_a_head_that_was_hardly_ever_seen_is_tried_more_often(accepted, unsure, often):
    """Unless what it drafts does not come true: then what its steps take makes no difference."""
    policy, none = Policy(TABLE, head=3), suffix([0])
    for _ in range(400):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([accepted], np.int32))
    told = Excess(0.0, 0.0, 1.0, unsure=unsure)
    tried = sum(policy.choose(none, rooms(1), told).probing for _ in range(1024))
    assert 64 <= tried < 72 if often else 4 < tried < 12


def test_a_head_that_was_hardly_ever_seen_is_not_tried_often_beside_drafts_to_which_it_adds_nothing():
    policy, drafts = Policy(TABLE, head=3), suffix([7, 7, 7, 0])
    for _ in range(400):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
    told = Excess(0.0, 1e-4, 1.0, unsure=True)
    choices = [policy.choose(drafts, rooms(4), told) for _ in range(1024)]
    assert sum(choice.head for choice in choices) < 12
    assert all(choice == Choice(8) for choice in choices if not choice.head)


def test_a_head_that_comes_true_again_comes_back():
    policy, none = Policy(TABLE, head=3), suffix([0], [0])
    for _ in range(400):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
    checked = []
    for _ in range(4000):
        choice = policy.choose(none, rooms(1), wide(1e-3))
        drafts = policy.pick(none, rooms(1)) if choice.head else Picked.none(1)
        checked.append(choice.width)
        policy.observe(drafts, choice.width, np.minimum(drafts.lengths, choice.width - 1))
    assert checked[0] == 1
    assert checked[-100:] == [4] * 100


def test_by_score_the_suffix_is_taken_from_the_bar_on():
    policy = Policy(TABLE, head=3, bar=3.0)
    drafts = suffix([0, 2, 4, 8], [0, 2, 3, 2.9])
    both = policy.pick(drafts, rooms(4))
    assert both.sources.tolist() == [Source.HEAD, Source.HEAD, Source.SUFFIX, Source.HEAD]
    assert both.lengths.tolist() == [3, 3, 4, 3]
    assert both.scores.tolist() == [3, 3, 3, 3]
    lowest = Policy(TABLE, head=3, bar=0.0)
    assert lowest.pick(drafts, rooms(4)).sources.tolist() == [Source.HEAD] + 3 * [Source.SUFFIX]


def test_by_observation_the_better_source_is_taken():
    policy = Policy(TABLE, head=3)
    drafts = suffix([2], [1.9])
    assert policy.pick(drafts, rooms(1)).sources.tolist() == [Source.HEAD]
    for _ in range(200):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
    assert policy.pick(drafts, rooms(1)).sources.tolist() == [Source.SUFFIX]


def test_of_equal_promises_the_indexs_is_taken_as_it_costs_nothing():
    assert Policy(TABLE, head=3).pick(suffix([3], [3.0]), rooms(1)).sources.tolist() == [Source.SUFFIX]


@pytest.mark.parametrize(("head", "length"), [(0, 1), (0, 4), (3, 0)])
def test_what_never_came_true_is_tried_again_from_time_to_time(head, length):
    """64 requests at once teach so much that what such drafts promise would be rounded to nothing."""
    rows = 64
    policy = Policy(CostTable.linear((1, 2, 4, 8), rows, constant=256.0), longest=7, head=head)
    tokens, scores = np.zeros((rows, 4), np.int32), np.full(rows, 0.8 * length, np.float32)
    drafts = Drafts(tokens, np.full(rows, length, np.int32), scores)
    room, tried = np.full(rows, 7, np.int32) if head else None, []
    for step in range(40_000):
        choice = policy.choose(drafts, room)
        if choice.width > 1:
            tried.append(step)
            picked = (
                policy.pick(drafts, room)
                if choice.head
                else Picked.all_of(Source.SUFFIX, drafts.lengths, drafts.scores)
            )
            policy.observe(picked, choice.width, np.zeros(rows, np.int32))
    assert len(tried) < 200
    assert tried[-1] > 30_000


def test_the_head_drafts_no_further_than_there_is_room():
    both = Policy(TABLE, head=3).pick(suffix([0, 0, 0, 1], [0, 0, 0, 0.1]), np.array([5, 2, 0, 0], np.int32))
    assert both.sources.tolist() == [Source.HEAD, Source.HEAD, Source.NONE, Source.SUFFIX]
    assert both.lengths.tolist() == [3, 2, 0, 1]


ROWS = st.tuples(st.integers(0, 31), st.floats(0.0, 1.2), st.integers(0, 31), st.integers(0, 31))


@settings(max_examples=60)
@given(
    st.lists(ROWS, min_size=1, max_size=40),
    st.integers(0, 5),
    st.sampled_from([None, 0.5, 2.0]),
    st.integers(0, 9),
)
def test_compiled_weighing_is_the_twins(rows, head, bar, seed):
    """The slow twin: numpy's tables row by row. Every number is the same."""
    calibration = Calibration(31)
    tables = Tables(YIELD.table_of_chances, YIELD.table_of_tokens, calibration.keys)
    calibration.factors[:] = np.random.default_rng(seed).random(len(calibration.factors)) * 1.5
    lengths = np.array([length for length, *_ in rows], np.int32)
    scores = np.array([length * share for length, share, *_ in rows], np.float32)
    room = np.array([free for *_, free, _ in rows], np.int32)
    yields, sources = np.zeros((2, len(WIDTHS)), np.int64), np.zeros(len(rows), np.int8)
    weigh(
        Asked(lengths, scores, room, head, np.nan if bar is None else bar), tables, calibration.factors, yields,
        sources,
    )  # fmt: skip

    def promised(source, length, chance):
        if length == 0:
            return YIELD.tokens(0, 0)
        scaled = min(max(int(chance * calibration.factors[calibration.keys[source, length]] + 0.5), 1), ONE)
        return YIELD.tokens(scaled, length)

    alone, both = np.zeros(len(WIDTHS), np.int64), np.zeros(len(WIDTHS), np.int64)
    for row, (length, score) in enumerate(zip(lengths, scores, strict=True)):
        chance = YIELD.chances(lengths[row : row + 1], scores[row : row + 1])[0]
        own = promised(Source.SUFFIX, length, chance)
        other = promised(Source.HEAD, min(head, room[row]), ONE)
        better = own[-1] >= other[-1] if bar is None else score >= bar
        taken = (length > 0 and better) or min(head, room[row]) == 0
        alone += own
        both += own if taken else other
        assert sources[row] == ((Source.SUFFIX if length else Source.NONE) if taken else Source.HEAD)
    assert yields.tolist() == [alone.tolist(), both.tolist()]


@settings(max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=40), st.sampled_from(WIDTHS[1:]))
def test_compiled_learning_is_the_twins(rows, width):
    """The slow twin: sums in numpy."""
    calibration = Calibration(31)
    tables = Tables(YIELD.table_of_chances, YIELD.table_of_tokens, calibration.keys)
    lengths = np.array([length for length, *_ in rows], np.int32)
    scores = np.array([length * share for length, share, *_ in rows], np.float32)
    drafts = Picked.all_of(Source.SUFFIX, lengths, scores)
    shown = np.minimum(lengths, width - 1)
    accepted = np.minimum([true for *_, true in rows], shown).astype(np.int32)
    sums = calibration.sums.copy()
    learn(drafts.sources, lengths, scores, accepted, width - 1, tables, calibration.window, sums)
    drafted = lengths > 0
    trials = (accepted + (accepted < shown))[drafted]
    keys = calibration.keys[Source.SUFFIX, lengths[drafted]]
    count = sums.shape[1]
    kept = calibration.window / (calibration.window + np.bincount(keys, trials, count))
    chances = YIELD.chances(lengths, scores)[drafted]
    wanted = calibration.sums * kept
    wanted[0] += np.bincount(keys, accepted[drafted], count)
    wanted[1] += np.bincount(keys, trials * chances, count) / ONE
    assert np.array_equal(sums, wanted)


def test_a_refusal_may_stand_for_several_steps():
    probes = Probes(first=8, last=64)
    assert [probes.due(4) for _ in range(6)] == [False, True, False, False, False, True]


def test_probes_back_off():
    probes = Probes(first=2, last=8)
    due = [step for step in range(1, 40) if probes.due()]
    assert due == [2, 6, 14, 22, 30, 38]
    assert [probes.due(unsure=True) for _ in range(5)] == [True, False, True, False, True]
    probes.paid()
    assert [probes.due() for _ in range(2)] == [False, True]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)), min_size=1, max_size=8), max_size=30)
)
def test_two_ranks_decide_the_same(steps):
    ranks = [Policy(TABLE), Policy(TABLE)]
    for rows in steps:
        lengths = [length for length, _ in rows]
        drafts = picked(lengths)
        said = {rank.choose(suffix(lengths), excess=wide(1e-3)) for rank in ranks}
        assert len(said) == 1
        width = said.pop().width
        accepted = np.minimum([true for _, true in rows], np.minimum(drafts.lengths, width - 1))
        for rank in ranks:
            rank.observe(drafts, width, accepted.astype(np.int32))


def test_factors_stay_finite_forever():
    calibration, drafts = Calibration(7), picked([7] * 4)
    yields = Yield((1, 8), 7)
    tables = Tables(yields.table_of_chances, yields.table_of_tokens, calibration.keys)
    for accepted in (0, 7):
        for _ in range(2000):
            calibration.observe(drafts, 7, np.full(4, accepted, np.int32), tables)
        assert np.isfinite(calibration.factors).all()


class TestPatience:
    def asked(self, patience, steps):
        return [step for step in range(steps) if patience.asks()]

    def test_it_shrinks_with_the_time_in_vain(self):
        patience = Patience(share=4, most=3)
        assert self.asked(patience, 40) == [*range(4), 5, 7, 10, *range(13, 40, 4)]

    def test_text_that_begins_to_repeat_is_seen_within_a_share_of_the_time_before(self):
        patience = Patience()
        asked = self.asked(patience, 5000)
        waits = np.diff(asked)
        assert waits.max() == 33
        assert (waits - 1 <= np.array(asked[:-1]) / 32 + 1).all()
        assert len(asked) < 300

    def test_new_requests_are_asked_about_at_once(self):
        patience = Patience()
        self.asked(patience, 1000)
        assert [patience.asks(joined=joined) for joined in (True, False, True)] == [True, False, True]

    def test_a_find_is_asked_after_and_success_is_remembered(self):
        patience = Patience()
        self.asked(patience, 1000)
        assert patience.asks(joined=True)
        patience.found()
        assert patience.asks()
        assert not patience.asks()
        patience.came_true()
        assert self.asked(patience, 32) == list(range(32))
