import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arctic_sglang.shift.topology import Heads, Tokens, Topology, check_divides

sizes = st.integers(1, 8)


@st.composite
def heads(draw):
    """Every combination that divides: grouped heads, one head for all, fewer of them than ranks."""
    topology = Topology(draw(sizes), draw(sizes))
    kv = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 16]))
    assume(all(kv % ranks == 0 or ranks % kv == 0 for ranks in (topology.world, topology.tp)))
    query = kv * topology.world * draw(st.integers(1, 2))
    return Heads(topology, query, kv)


@given(sizes, sizes)
def test_groups_share_out_the_ranks(tp, sp):
    topology = Topology(tp, sp)
    for groups, size in ((topology.sequence_groups(), sp), (topology.tensor_groups(), tp)):
        assert sorted(rank for group in groups for rank in group) == list(range(topology.world))
        assert {len(group) for group in groups} == {size}
    for group in topology.sequence_groups():
        assert len({topology.shard(rank) for rank in group}) == 1
        assert [topology.position(rank) for rank in group] == list(range(sp))
    for group in topology.tensor_groups():
        assert len({topology.position(rank) for rank in group}) == 1
        assert [topology.shard(rank) for rank in group] == list(range(tp))


@given(heads())
def test_blocks_of_ranks_are_those_of_plain_tensor_parallelism(heads):
    ranks, each = heads.topology.world, heads.query // heads.topology.world
    repeats = max(1, ranks // heads.kv)  # as SGLang's QKVParallelLinear counts
    for rank in range(ranks):
        assert heads.query_of_rank(rank) == range(rank * each, (rank + 1) * each)
        own = max(1, heads.kv // ranks)
        assert heads.kv_of_rank(rank) == range(rank // repeats * own, rank // repeats * own + own)


@given(heads())
def test_a_rank_has_what_its_attention_needs_and_its_shard_has_it_all(heads):
    group = heads.query // heads.kv
    for rank in range(heads.topology.world):
        shard = heads.topology.shard(rank)
        assert {head // group for head in heads.query_of_rank(rank)} <= set(heads.kv_of_rank(rank))
        assert set(heads.kv_of_rank(rank)) <= set(heads.kv_of_shard(shard))
    for shard, ranks in enumerate(heads.topology.sequence_groups()):
        assert [h for rank in ranks for h in heads.query_of_rank(rank)] == list(heads.query_of_shard(shard))
        assert {h for rank in ranks for h in heads.kv_of_rank(rank)} == set(heads.kv_of_shard(shard))


@pytest.mark.parametrize(
    ("tp", "sp", "query", "kv", "told"),
    [
        (
            1,
            8,
            12,
            12,
            r"12 query heads do not divide over 8 ranks .*take as many ranks as one of 1, 2, 3, 4, 6, 12",
        ),
        (1, 6, 24, 8, "8 key/value heads neither divide over 6 ranks"),
        (3, 2, 48, 2, "2 key/value heads neither divide over --tp-size 3"),
        (1, 2, 6, 4, "6 query heads and 4 key/value heads: they must divide"),
        (1, 2, 4, 0, "they must divide"),
    ],
)
def test_heads_that_do_not_divide_are_refused(tp, sp, query, kv, told):
    with pytest.raises(ValueError, match=told):
        Heads(Topology(tp, sp), query, kv)


def test_sizes_that_do_not_divide_are_refused():
    check_divides("intermediate_size", 12, Topology(2, 3))
    with pytest.raises(ValueError, match=r"intermediate_size 10 does not divide over 4 ranks .*1, 2, 5, 10"):
        check_divides("intermediate_size", 10, Topology(1, 4))
    with pytest.raises(ValueError, match="--ulysses-sequence-parallel-size is 0"):
        Topology(1, 0)


@given(st.integers(0, 100), st.integers(1, 9))
def test_tokens_are_shared_out_in_order(count, sp):
    tokens = Tokens(count, sp)
    parts = [tokens.of_position(position) for position in range(sp)]
    assert [token for part in parts for token in part] == list(range(count))
    assert all(len(part) <= tokens.share for part in parts)
    assert tokens.padded == sp * tokens.share < count + sp
