"""Parts of one copy are what plain tensor parallelism would load, and a whole layer says the same in either mode."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arctic_sglang.shift import layout, weights
from arctic_sglang.shift.topology import Heads, Tokens, Topology

DIM, HIDDEN = 2, 12


@st.composite
def models(draw):
    topology = Topology(draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    kv = draw(st.sampled_from([1, 2, 3, 4]))
    assume(all(kv % ranks == 0 or ranks % kv == 0 for ranks in (topology.world, topology.tp)))
    return Heads(topology, kv * topology.world, kv)


def of_heads(tensor, heads):
    return tensor[heads.start * DIM : heads.stop * DIM]


class Model:
    """One layer in float64: every weight of the model, and what each kind of parallelism loads of it."""

    def __init__(self, heads, inner):
        generator = torch.Generator().manual_seed(heads.query * 100 + heads.kv)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64) / 3

        self.heads, self.inner = heads, inner
        self.q, self.k, self.v = (random(count * DIM, HIDDEN) for count in (heads.query, heads.kv, heads.kv))
        self.o, self.down = random(HIDDEN, heads.query * DIM), random(HIDDEN, inner)
        self.gate, self.up = random(inner, HIDDEN), random(inner, HIDDEN)

    def loaded(self, query, kv, part, parts):
        """As SGLang loads a layer for tensor parallelism: query/key/value, o, gate/up, down."""
        qkv = torch.cat([of_heads(self.q, query), of_heads(self.k, kv), of_heads(self.v, kv)])
        inner = slice(part * self.inner // parts, (part + 1) * self.inner // parts)
        return (
            qkv, self.o[:, query.start * DIM : query.stop * DIM],
            torch.cat([self.gate[inner], self.up[inner]]), self.down[:, inner],
        )  # fmt: skip

    def of_rank(self, rank):
        heads = self.heads
        return self.loaded(heads.query_of_rank(rank), heads.kv_of_rank(rank), rank, heads.topology.world)

    def stored(self, shard):
        """The base tensor parallelism's weights in the order of the parts."""
        heads = self.heads
        qkv, o, gate_up, down = self.loaded(
            heads.query_of_shard(shard), heads.kv_of_shard(shard), shard, heads.topology.tp
        )
        order = weights.qkv_order(heads, shard, DIM)
        merged = weights.merged_order([len(gate_up) // 2] * 2, heads.topology.sp)
        return qkv[order], o, gate_up[merged], down


def attention(heads, rank, qkv):
    """Causal attention of a rank's heads over all tokens; its keys and values with it."""
    query, kv = heads.query_of_rank(rank), heads.kv_of_rank(rank)
    q, k, v = qkv.split([len(query) * DIM, len(kv) * DIM, len(kv) * DIM], dim=1)
    q, k, v = (x.reshape(len(x), -1, DIM).transpose(0, 1) for x in (q, k, v))
    group = heads.query // heads.kv
    of = [head // group - kv.start for head in query]
    out = torch.nn.functional.scaled_dot_product_attention(q, k[of], v[of], is_causal=True)
    return out.transpose(0, 1).reshape(qkv.shape[0], -1), (k, v)


def swiglu(rows, parts):
    """Of rows whose gate and up lie part by part."""
    gate, up = rows.view(len(rows) * parts, 2, -1).unbind(1)
    return (torch.nn.functional.silu(gate) * up).reshape(len(rows), -1)


def exchanged(sent):
    """An all-to-all of every rank's [sp, ...]."""
    return [torch.stack([other[position] for other in sent]) for position in range(len(sent))]


def tensor_parallel(model, x, parts):
    """The layer as all ranks compute it together; every rank's keys and values."""
    topology, cache, rows = model.heads.topology, [], torch.zeros_like(x)
    for rank in range(topology.world):
        out, kept = attention(model.heads, rank, x @ parts[rank][0].T)
        cache.append(kept)
        rows = rows + out @ parts[rank][1].T
    rows = rows + x
    return rows + sum(swiglu(rows @ p[2].T, 1) @ p[3].T for p in parts), cache


def sequence_parallel(model, x):
    """The same with the tokens shared out in each sequence group."""
    heads, topology = model.heads, model.heads.topology
    tokens = Tokens(len(x), topology.sp)
    whole = torch.nn.functional.pad(x, (0, 0, 0, tokens.padded - tokens.count)).view(topology.sp, -1, HIDDEN)
    own = [whole[topology.position(rank)] for rank in range(topology.world)]
    cache, partial = [], []
    for shard, group in enumerate(topology.sequence_groups()):
        qkv, o, _, _ = model.stored(shard)
        received = exchanged([layout.send_rows(own[rank] @ qkv.T, topology.sp) for rank in group])
        sent = []
        for rank, parts in zip(group, received, strict=True):
            out, kept = attention(heads, rank, layout.received_heads(parts, tokens))
            cache.append(kept)
            sent.append(layout.send_heads(out, tokens))
        partial += [layout.received_rows(parts) @ o.T for parts in exchanged(sent)]
    added = [own[rank] + sum(partial[r] for r in range(topology.position(rank), topology.world, topology.sp))
             for rank in range(topology.world)]  # fmt: skip
    found = []
    for rank in range(topology.sp):
        rows = added[rank]
        stored = [model.stored(shard) for shard in range(topology.tp)]
        found.append(rows + sum(swiglu(rows @ s[2].T, topology.sp) @ s[3].T for s in stored))
    return torch.cat(found)[: tokens.count], cache


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(1, 9))
def test_both_modes_say_the_same_and_leave_the_same_cache(heads, count):
    model = Model(heads, inner=2 * heads.topology.world)
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, HIDDEN, generator=generator, dtype=torch.float64)
    wanted, wanted_cache = tensor_parallel(model, x, [model.of_rank(r) for r in range(heads.topology.world)])
    found, cache = sequence_parallel(model, x)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cache, wanted_cache, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(models())
def test_a_part_is_a_view_of_the_one_copy_and_what_tensor_parallelism_loads(heads):
    model, topology = Model(heads, inner=2 * heads.topology.world), heads.topology
    for shard, group in enumerate(topology.sequence_groups()):
        stored = model.stored(shard)
        for position, rank in enumerate(group):
            for copy, dim, wanted in zip(stored, (0, 1, 0, 1), model.of_rank(rank), strict=True):
                part = weights.part(copy, position, topology.sp, dim)
                assert torch.equal(part, wanted)
                assert part.untyped_storage().data_ptr() == copy.untyped_storage().data_ptr()
            assert weights.part(stored[0], position, topology.sp, 0).is_contiguous()


@settings(deadline=None)
@given(models())
def test_the_way_back_finds_every_row(heads):
    for shard in range(heads.topology.tp):
        order = weights.qkv_order(heads, shard, DIM)
        loaded = np.arange((len(heads.query_of_shard(shard)) + 2 * len(heads.kv_of_shard(shard))) * DIM)
        assert np.array_equal(loaded[order][weights.loaded_order(order)], loaded)
    order = weights.merged_order([12, 24], 3)
    assert np.array_equal(np.arange(36)[order][weights.loaded_order(order)], np.arange(36))


def test_heads_of_other_sizes_than_their_values():
    heads = Heads(Topology(1, 2), 2, 2)
    order = weights.qkv_order(heads, 0, head_dim=3, value_dim=2)
    assert order.tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 3, 4, 5, 9, 10, 11, 14, 15]


def test_rows_of_merged_outputs_lie_part_by_part():
    assert weights.merged_order([4, 4], 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7])
@pytest.mark.parametrize("sp", [1, 2, 3])
def test_the_exchange_there_and_back_changes_nothing(count, sp):
    tokens = Tokens(count, sp)
    heads = [torch.arange(count * 4.0).view(count, 4) + 1000 * part for part in range(sp)]
    rows = [layout.received_rows(parts) for parts in exchanged([layout.send_heads(h, tokens) for h in heads])]
    assert all(r.shape == (tokens.share, sp * 4) for r in rows)
    back = exchanged([layout.send_rows(r, sp) for r in rows])
    for part in range(sp):
        assert torch.equal(layout.received_heads(back[part], tokens), heads[part])
