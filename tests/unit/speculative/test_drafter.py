"""Drafts of a batch: on one rank and over vocabulary shards, which must agree in every token."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speculative.speculators import SpeculatorConfig, VocabShard, build
from speculative.speculators.drafter import Drafter, buckets
from speculative.speculators.products import pack, quantise, unpack

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
VOCAB = 37


def config_of(kind, *, tied=True, vocab=VOCAB):
    if kind == "lstm":
        return SpeculatorConfig.lstm(12, 8, vocab, scale_input=True)
    return SpeculatorConfig(kind, 12, (8,), (8,), (8,), 3, vocab, tie_weights=tied)


def made(config, shard=None, dtype=torch.float32):
    """A head whose logits are often equal: its rows are few different ones."""
    torch.manual_seed(5)
    speculator = build(config)
    speculator.reset_parameters()
    with torch.no_grad():
        for layer in speculator.head:
            layer.weight.copy_(layer.weight[torch.randint(config.vocab_size // 4, (config.vocab_size,))])
    speculator = speculator.to(dtype)
    if shard is None:
        return speculator
    part = build(config, shard).to(dtype)
    rows = shard.tokens(config.vocab_size)
    whole = speculator.state_dict()
    part.load_state_dict(
        {
            name: value[rows.start : rows.stop] if name.startswith("head.") else value
            for name, value in whole.items()
        }
    )
    return part


def inputs(batch):
    torch.manual_seed(batch)
    return torch.randn(batch, 12), torch.randint(VOCAB, (batch,))


@given(st.integers(1, 40), st.integers(0, 5000))
def test_shards_cover_the_vocabulary(size, more):
    vocab = size + more
    parts = [VocabShard(rank, size).tokens(vocab) for rank in range(size)]
    assert [token for part in parts for token in part] == list(range(vocab))
    assert {len(part) for part in parts} <= {vocab // size, vocab // size + 1}


def test_shards_that_cannot_be():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        VocabShard(2, 2)
    with pytest.raises(ValueError, match="a vocabulary of 3 cannot be parted among 4 ranks"):
        VocabShard(0, 4).tokens(3)


FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1.0, 3e38, float("inf")]) | FLOATS, min_size=1, max_size=9))
@settings(max_examples=200)
def test_the_largest_candidate_is_the_argmax(logits):
    logits = torch.tensor(logits, dtype=torch.float32)
    packed = pack(logits, torch.arange(len(logits)))
    assert unpack(packed.amax()).item() == logits.argmax().item()
    assert torch.equal(unpack(packed), torch.arange(len(logits)))


@pytest.mark.parametrize("kind", ["lstm", "rnn", "mlp"])
def test_a_drafter_drafts_as_the_head_itself(kind):
    speculator = made(config_of(kind))
    drafter = Drafter(speculator)
    for batch, steps in ((1, None), (5, 2), (3, 7), (0, 3), (2, 0)):
        hidden, tokens = inputs(batch)
        found = drafter.draft(hidden, tokens, steps)
        assert found.dtype == torch.int64
        assert found.shape == (batch, 3 if steps is None else steps)
        assert torch.equal(found, speculator.draft(hidden, tokens, steps))
    hidden, tokens = inputs(4)
    known = torch.cat([tokens[:, None], drafter.draft(hidden, tokens)], dim=1)
    forced = torch.stack([step[:, 0].argmax(-1) for step in speculator.logits(hidden[:, None], known)], dim=1)
    assert torch.equal(forced, known[:, 1:])


def test_positions_of_a_sequence_are_rows_of_a_batch():
    speculator = made(config_of("lstm"))
    hidden, tokens = torch.randn(2, 6, 12), torch.randint(VOCAB, (2, 6 + 2))
    for index, logits in enumerate(speculator.logits(hidden, tokens)):
        rows = torch.stack([tokens[:, t : t + 3] for t in range(6)], dim=1).reshape(12, 3)
        alone = speculator.logits(hidden.reshape(12, 1, 12), rows)[index]
        torch.testing.assert_close(logits.reshape(12, 1, VOCAB), alone)


def test_tokens_beyond_the_vocabulary_count_as_its_last():
    drafter = Drafter(made(config_of("lstm")))
    hidden, _ = inputs(2)
    beyond = drafter.draft(hidden, torch.tensor([VOCAB + 5, -1]))
    assert torch.equal(beyond, drafter.draft(hidden, torch.tensor([VOCAB - 1, 0])))


def test_a_head_without_shared_weights_has_so_many_steps():
    drafter = Drafter(made(config_of("rnn", tied=False)))
    hidden, tokens = inputs(2)
    assert drafter.draft(hidden, tokens, 3).shape == (2, 3)
    with pytest.raises(
        ValueError, match="a draft of 4 tokens was asked for; this head has weights for 3 steps"
    ):
        drafter.draft(hidden, tokens, 4)


def test_shapes_that_do_not_fit():
    drafter = Drafter(made(config_of("lstm")))
    with pytest.raises(ValueError, match=r"hidden states \[2, 11\] and tokens \[2\] were given; wanted"):
        drafter.draft(torch.zeros(2, 11), torch.zeros(2))
    with pytest.raises(ValueError, match="part 0 of 2 of the vocabulary: give a gather"):
        Drafter(made(config_of("lstm"), VocabShard(0, 2)))


def test_batches_that_graphs_are_made_for():
    assert buckets(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert buckets(1) == [1]
    assert buckets(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("float8", ["auto", "on"])
@pytest.mark.parametrize("kind", ["lstm", "rnn"])
def test_shards_draft_as_one(ranks, float8, kind):
    """All ranks of one group, each with a part of the vocabulary, whichever; ties go to the lowest token."""
    config, dtype = config_of(kind), torch.bfloat16 if float8 == "on" else torch.float32
    hidden, tokens = inputs(6)
    expected = Drafter(made(config, None, dtype), float8=float8).draft(hidden.to(dtype), tokens, 5)
    barrier, sent, drafts = threading.Barrier(ranks), [None] * ranks, [None] * ranks
    # Which rank has which part is of no account: here never its own number.
    heads = [made(config, VocabShard((rank + 1) % ranks, ranks), dtype) for rank in range(ranks)]

    def work(rank):
        def gather(tensor):
            sent[rank] = tensor
            barrier.wait()
            whole = torch.cat(sent)
            barrier.wait()
            return whole

        drafter = Drafter(heads[rank], gather=gather, float8=float8)
        drafts[rank] = drafter.draft(hidden.to(dtype), tokens, 5)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert all(torch.equal(draft, expected) for draft in drafts)


def test_three_processes_over_gloo(tmp_path):
    """See `gather_child.py`: each compares its own drafts with an unsharded head's."""
    command = [sys.executable, str(HERE / "gather_child.py"), str(tmp_path / "store"), "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]


def test_float8_keeps_what_it_can_hold():
    weight = torch.tensor([[1.0, -2.0, 448.0], [0.5, 0.25, -0.125], [0.0, 0.0, 0.0]])
    held = quantise(weight)
    assert torch.equal(held.values.float() * held.scales[:, None], weight)
    torch.manual_seed(0)
    weight = torch.randn(300, 200)
    held = quantise(weight)
    error = (held.values.float() * held.scales[:, None] - weight).abs() / weight.abs().amax(-1, keepdim=True)
    assert error.max() <= 2**-4
    assert held.bytes == 300 * 200 + 4 * 300


def test_float8_where_it_cannot_be():
    with pytest.raises(ValueError, match="needs weights in 16 bits"):
        Drafter(made(config_of("lstm")), float8="on")
    assert Drafter(made(config_of("lstm"), None, torch.bfloat16)).float8_bytes == 0


def test_float8_drafts_mostly_as_bfloat16():
    torch.manual_seed(0)
    config = SpeculatorConfig.lstm(64, 64, 500)
    speculator = build(config)
    speculator.reset_parameters()
    speculator = speculator.bfloat16()
    drafter = Drafter(speculator, float8="on")
    assert drafter.way(1) == "float8"
    assert drafter.float8_bytes > 500 * 64
    hidden, tokens = torch.randn(64, 64).bfloat16(), torch.randint(500, (64,))
    found, plain = drafter.draft(hidden, tokens, 1), speculator.draft(hidden, tokens, 1)
    assert (found == plain).float().mean() > 0.8
    large = torch.randn(200, 64).bfloat16(), torch.randint(500, (200,))
    assert torch.equal(drafter.draft(*large), speculator.draft(*large))
