"""The policy: against slow twins in floats, and as a player that must stop losing and start winning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculative.base import Drafts
from speculative.cost import CostTable
from speculative.policy import Calibration, Picked, Policy, Probes, Source, Yield

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


def suffix(lengths, scores):
    drafts = picked(lengths, scores)
    return Drafts(np.zeros((len(lengths), max(lengths)), np.int32), drafts.lengths, drafts.scores)


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
    assert [policy.width(picked([n])) for n in (0, 1, 3, 7, 15, 31)] == list(WIDTHS)


def test_a_long_tail_of_little_worth_is_cut():
    policy = Policy(CostTable.linear(WIDTHS, 256, constant=1, per_token=0.03))
    assert policy.width(picked([31], [4.0])) == 8


def test_one_draft_among_many_requests_does_not_pay_for_all():
    lengths = np.zeros(256, np.int32)
    lengths[0] = 7
    assert Policy(TABLE).width(picked(lengths)) == 1
    assert Policy(TABLE).width(picked(lengths[:8])) == 8


def test_the_overhead_counts_against_drafts_alone():
    policy = Policy(TABLE)
    assert policy.width(picked([1], [0.1])) == 2
    assert policy.width(picked([1], [0.1]), overhead=1e-3) == 1
    assert policy.width(picked([0]), overhead=1e-3) == 1


def test_a_slow_host_is_counted_in_both_kinds_of_steps():
    policy = Policy(TABLE)
    drafts = picked([3], [1.0])
    seconds = policy.table.cost(1, 1)
    assert policy.width(drafts) > 1
    assert policy.width(drafts, overhead=2 * seconds) == 1
    assert policy.width(drafts, overhead=2 * seconds, plain=seconds) > 1


def test_no_step_is_taken_for_cheaper_than_a_plain_one():
    policy = Policy(TABLE)
    seconds = policy.table.cost(1, 1)
    assert policy.width(picked([7], [1e-3]), overhead=-seconds / 2) in (1, 2)
    hopeless = picked([7], [1e-3])
    for _ in range(50):
        policy.observe(hopeless, 8, np.array([0], np.int32))
    assert policy.width(hopeless, overhead=-seconds / 2) == 1
    assert policy.width(hopeless, plain=seconds) == 1


def test_a_probe_that_won_only_by_the_table_does_not_come_back_soon():
    policy, drafts = Policy(TABLE), picked([7], [0.01])
    tried = []
    for step in range(200):
        choice = policy.choose(drafts, overhead=1.0)
        tried += [step] if choice.probing else []
        policy.observe(drafts, choice.width, np.array([choice.width > 1], np.int32))
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
    width = policy.width(picked(lengths, scores), overhead)
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
    assert (policy.width(picked(lengths)) > 1) == (allowed and any(lengths))
    if not allowed:
        assert policy.choose(picked(lengths)).width == 1
        assert not policy.head_pays(batch, 3, 0.0)


def test_no_draft_is_wanted_longer_than_could_pay():
    policy = Policy(CostTable({(1, 1): 1, (64, 1): 1, (1, 2): 1.1, (64, 2): 2.5, (1, 32): 8, (32, 32): None}))
    assert policy.limit(1) == 31
    assert policy.limit(4) == 1
    assert policy.limit(64) == 0


def play(policy, rng, chance, steps, batch=1, length=7, overhead=0.0):
    """Steps of drafts that promise all and of which each token comes true with `chance`; the widths checked."""
    widths = []
    for _ in range(steps):
        drafts = picked([length] * batch)
        choice = policy.choose(drafts, overhead)
        width = policy.width(drafts, probing=choice.probing) if choice.width > 1 else 1
        true = np.cumprod(rng.random((batch, length)) < chance, axis=1).sum(axis=1)
        policy.observe(drafts, width, np.minimum(true, width - 1).astype(np.int32))
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
    key = policy._calibration.keys(drafts.sources, drafts.lengths)[0]
    assert policy._factors[key] == pytest.approx(0.6, abs=0.08)


def test_sources_and_lengths_are_learnt_apart():
    policy = Policy(TABLE)
    for _ in range(100):
        policy.observe(picked([1] * 8), 2, np.zeros(8, np.int32))
    assert policy.width(picked([1]), overhead=1e-3) == 1
    assert policy.width(picked([7]), overhead=1e-3) == 8
    assert policy.width(picked([1], source=Source.HEAD), overhead=1e-3) == 2


def test_a_free_look_at_refused_drafts_wakes_drafting():
    policy = Policy(TABLE)
    drafts = picked([3])
    for _ in range(200):
        policy.observe(drafts, 4, np.array([0], np.int32))
    assert policy.width(drafts, overhead=1e-3) == 1
    for _ in range(200):
        policy.observe(drafts, 2, np.array([1], np.int32))
    assert policy.width(drafts, overhead=1e-3) == 4


def test_the_head_is_run_while_it_pays():
    policy = Policy(TABLE)
    assert policy.head_pays(1, 3, 4e-4)
    heads = picked([3], source=Source.HEAD)
    for _ in range(400):
        policy.observe(heads, 4, np.array([0], np.int32))
    runs = sum(policy.head_pays(1, 3, 4e-4) for _ in range(1000))
    assert 1 <= runs < 10  # probes alone


def test_a_probe_of_the_head_is_checked_so_that_it_comes_back():
    policy, none = Policy(TABLE), suffix([0], [0])
    for _ in range(400):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
    checked = []
    for _ in range(4000):
        # 1 ms: the head costs more than its time, as the draft must pay for itself once more in `choose`.
        drafts = policy.pick(none, head=3 if policy.head_pays(1, 3, 1e-3) else 0)
        width = policy.choose(drafts, overhead=1e-3).width
        checked.append(width)
        policy.observe(drafts, width, np.minimum(drafts.lengths, width - 1))
    assert checked[0] == 1
    assert checked[-100:] == [4] * 100


def test_by_score_the_suffix_is_taken_from_the_bar_on():
    policy = Policy(TABLE)
    drafts = suffix([0, 2, 4, 8], [0, 2, 3, 2.9])
    both = policy.pick(drafts, head=3, bar=3.0)
    assert both.sources.tolist() == [Source.HEAD, Source.HEAD, Source.SUFFIX, Source.HEAD]
    assert both.lengths.tolist() == [3, 3, 4, 3]
    alone = policy.pick(drafts)
    assert alone.sources.tolist() == [Source.NONE] + 3 * [Source.SUFFIX]
    assert policy.pick(drafts, head=3, bar=0.0).sources.tolist() == [Source.HEAD] + 3 * [Source.SUFFIX]


def test_by_observation_the_better_source_is_taken():
    policy = Policy(TABLE)
    drafts = suffix([2], [1.9])
    assert policy.pick(drafts, head=3).sources.tolist() == [Source.HEAD]
    for _ in range(200):
        policy.observe(picked([3], source=Source.HEAD), 4, np.array([0], np.int32))
    assert policy.pick(drafts, head=3).sources.tolist() == [Source.SUFFIX]


def test_probes_back_off():
    probes = Probes(first=2, last=8)
    due = [step for step in range(1, 40) if probes.due()]
    assert due == [2, 6, 14, 22, 30, 38]
    probes.paid()
    assert [probes.due() for _ in range(2)] == [False, True]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)), min_size=1, max_size=8), max_size=30)
)
def test_two_ranks_decide_the_same(steps):
    ranks = [Policy(TABLE), Policy(TABLE)]
    for rows in steps:
        drafts = picked([length for length, _ in rows])
        said = {rank.choose(drafts, 1e-3) for rank in ranks}
        assert len(said) == 1
        width = said.pop().width
        accepted = np.minimum([true for _, true in rows], np.minimum(drafts.lengths, width - 1))
        for rank in ranks:
            rank.observe(drafts, width, accepted.astype(np.int32))


def test_factors_stay_finite_forever():
    calibration = Calibration(7)
    keys = np.zeros(4, np.int64)
    for accepted in (0, 7):
        for _ in range(2000):
            rows = np.full(4, accepted, np.int32)
            calibration.observe(keys, np.ones(4, np.int32), rows, np.full(4, 7, np.int32))
        assert np.isfinite(calibration.factors()).all()
