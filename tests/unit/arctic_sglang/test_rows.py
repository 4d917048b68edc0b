"""Token rows, their blocks, the order of steps, and one step: against plain Python, with sizes that do not divide."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_sglang.embedding import road
from arctic_sglang.embedding.lane import Lane
from arctic_sglang.embedding.rows import TokenRows, equal_runs, pack, pack_slow
from arctic_sglang.embedding.step import Step, attend, attend_slow, positions
from arctic_sglang.embedding.wire import EmbedBlock

token_lists = st.lists(st.lists(st.integers(0, 30000), max_size=9), max_size=12)


@given(token_lists, st.randoms(use_true_random=False))
def test_rows_are_what_went_in(lists, random):
    rows = TokenRows.from_lists(lists)
    assert rows.to_lists() == lists
    assert (rows.rows, rows.tokens) == (len(lists), sum(map(len, lists)))
    order = list(range(len(lists)))
    random.shuffle(order)
    assert rows.take(np.array(order, np.int64)).to_lists() == [lists[i] for i in order]
    first = len(lists) // 3
    assert rows.slice(first, len(lists)).to_lists() == lists[first:]
    assert TokenRows.concatenate([rows.slice(0, first), rows.slice(first, len(lists))]).to_lists() == lists


def test_a_million_rows():
    rows = TokenRows(np.arange(1_000_000, dtype=np.int32), np.ones(1_000_000, np.int32))
    backwards = rows.take(np.arange(1_000_000)[::-1])
    assert backwards.ids[0] == 999_999
    assert pack(rows.lengths, 300_001) == [
        (0, 300_001),
        (300_001, 600_002),
        (600_002, 900_003),
        (900_003, 1_000_000),
    ]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 64))
@settings(max_examples=300)
def test_pack(lengths, most):
    blocks = pack(np.array(lengths, np.int32), most)
    assert blocks == pack_slow(lengths, most)
    assert [row for first, last in blocks for row in range(first, last)] == list(range(len(lengths)))


@given(st.lists(st.integers(1, 4), max_size=30))
def test_equal_runs(lengths):
    runs = list(equal_runs(np.array(lengths)))
    assert [length for first, last, length in runs for _ in range(first, last)] == lengths
    assert all(a[2] != b[2] for a, b in itertools.pairwise(runs)), "a run is as long as it can be"


def block(number, tokens, *, small=False):
    return EmbedBlock(number, np.zeros(tokens, np.int32), np.array([tokens], np.int32), small)


def test_a_lane_fills_steps_in_the_order_of_arrival():
    lane = Lane(10)
    for number, tokens in enumerate((4, 4, 4, 12, 1)):
        lane.add(block(number, tokens))
    assert [[b.number for b in lane.next_step()] for _ in range(5)] == [[0, 1], [2], [3], [4], []]


def test_small_blocks_and_large_ones_take_turns():
    lane = Lane(10)
    for number in range(4):
        lane.add(block(number, 10))
    steps = []
    for number in range(10, 14):
        lane.add(block(number, 3, small=True))
        steps.append([b.number for b in lane.next_step()])
    assert steps == [[10], [0], [11, 12], [1]], "neither starves"
    assert [[b.number for b in lane.next_step()] for _ in range(3)] == [[13], [2], [3]]


def test_what_is_left_of_a_step_is_filled_from_the_other_kind():
    lane = Lane(10)
    lane.add(block(0, 5))
    lane.add(block(1, 3, small=True))
    assert [b.number for b in lane.next_step()] == [1, 0]


def test_a_lane_drops_what_has_not_begun():
    lane = Lane(10)
    for number in range(4):
        lane.add(block(number, 10, small=number % 2 == 0))
    lane.next_step()
    assert sorted(lane.drop({0, 1, 2, 9})) == [1, 2]
    assert len(lane) == 1


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6))
def test_positions_as_roberta_counts_them(lists):
    rows = TokenRows.from_lists(lists)
    bounds = np.concatenate([[0], np.cumsum(rows.lengths)])
    expected = []
    for row in lists:
        count = 0
        for token in row:
            count += token != 1
            expected.append(1 if token == 1 else 1 + count)
    assert positions(rows, bounds, 2, 1).tolist() == expected
    assert positions(rows, bounds, 0, None).tolist() == [i for row in lists for i in range(len(row))]


def test_a_step_lies_on_the_device_as_the_rows_do():
    rows = TokenRows.from_lists([[5, 6, 7], [8], [9, 10]])
    step = Step.of(rows, torch.device("cpu"))
    assert step.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert step.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert step.bounds.tolist() == [0, 3, 4, 6]
    assert step.extend_seq_lens.tolist() == step.extend_seq_lens_cpu == [3, 1, 2]
    assert step.max_length == 3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_attention_keeps_to_its_row(causal, heads, kv_heads):
    generator = torch.Generator().manual_seed(heads)
    lengths = np.array([3, 3, 1, 7, 7, 7, 2], np.int32)
    tokens = int(lengths.sum())
    packed = torch.randn(tokens, heads + 2 * kv_heads, 8, generator=generator)
    q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)  # strided, as a projection leaves them
    step = Step.of(TokenRows(np.zeros(tokens, np.int32), lengths), torch.device("cpu"))
    found = attend(q, k, v, step, scale=0.3, causal=causal)
    expected = attend_slow(q, k, v, lengths, 0.3, causal)
    assert (found - expected).abs().max() < 1e-5


def test_what_the_road_does_not_go_with():
    good = {
        "tokenizer_worker_num": 1,
        "pp_size": 1,
        "dp_size": 1,
        "disaggregation_mode": "null",
        "pickled": True,
    }
    assert road.refusals(good) == []
    bad = road.refusals(good | {"dp_size": 2, "pickled": False, "pp_size": 3})
    assert len(bad) == 3
    assert any("--dp-size 2" in text and "--embedding-replicas" in text for text in bad)
    assert any("SGLANG_USE_PICKLE_IPC" in text for text in bad)
    assert road.step_tokens(None) < road.step_tokens("cuda")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("smg_grpc_mode", True, "no front door"),
        ("grpc_mode", True, "no front door"),
        ("max_queued_requests", 4, "queue has no end"),
    ],
)
def test_settings_that_would_do_nothing_here_are_refused(name, value, words):
    refused = road.refusals(
        {"smg_grpc_mode": False, "grpc_mode": False, "max_queued_requests": None, name: value}
    )
    assert len(refused) == 1
    assert refused[0].startswith(f"--{name.replace('_', '-')} {value}: ")
    assert words in refused[0]
