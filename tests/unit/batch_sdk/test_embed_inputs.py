"""A column becomes blocks of texts or of token ids, whatever its Arrow type, slices and nulls among them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_sdk
from batch_sdk.chunks import Tally
from batch_sdk.embed_inputs import embed_inputs, is_token_ids
from batch_sdk.errors import ColumnError

LISTS = [pa.list_(pa.int32()), pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.large_list(pa.uint32())]
ROWS = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 99), max_size=5)), max_size=12)


def given_to_engine(block) -> list:
    return block.texts if block.ids is None else block.ids.to_lists()


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, kind=st.sampled_from(LISTS), cut=st.integers(1, 12), before=ROWS)
def test_blocks_of_ids_are_the_rows_without_the_nulls(rows, kind, cut, before):
    column = pa.array([*before, *rows], kind).slice(len(before))
    inputs = embed_inputs(column)
    for first in range(0, len(rows), cut):
        part = rows[first : first + cut]
        block = inputs.block(first, first + len(part))
        wanted = [first + i for i, row in enumerate(part) if row is not None]
        assert np.arange(len(rows))[block.rows].tolist() == wanted
        assert given_to_engine(block) == [rows[row] for row in wanted]
        assert sorted([*block.refused, *wanted]) == list(range(first, first + len(part)))
        assert {error.kind for error in block.refused.values()} <= {"null_input"}
        assert not wanted or block.first == wanted[0]


def test_ids_are_the_columns_own_memory():
    values = np.arange(6, dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array([0, 2, 6], pa.int32()), pa.array(values))
    block = embed_inputs(column).block(0, 2)
    assert np.shares_memory(block.ids.ids, values)
    assert block.rows == slice(0, 2)


def test_what_stands_behind_a_null_is_left_out():
    column = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()),
        pa.array([5, 6, 7, 8], pa.int32()),
        mask=pa.array([False, True, False]),
    )
    assert given_to_engine(embed_inputs(column).block(0, 3)) == [[5], [8]]
    fixed = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    assert given_to_engine(embed_inputs(fixed).block(0, 3)) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("value", [2**31, 2**40, -(2**40), -1, None])
def test_no_wrong_id_becomes_a_right_one(value):
    ids = embed_inputs(pa.array([[1, value]], pa.list_(pa.int64()))).block(0, 1).ids.ids
    assert ids[0] == 1
    assert ids[1] < 0 or ids[1] == 2**31 - 1


def test_texts_that_do_not_decode():
    column = pa.array([b"a", b"\xff", None, b"b"], pa.binary()).view(pa.string())
    block = embed_inputs(column).block(0, 4)
    assert block.texts == ["a", "b"]
    assert {row: error.kind for row, error in block.refused.items()} == {1: "prompt_error", 2: "null_input"}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.list_(pa.float64()), pa.int64(), pa.list_(pa.int8())]
)
def test_other_columns_are_refused(kind):
    assert not is_token_ids(kind)
    table = pa.table({"x": pa.array([None], kind)})
    with pytest.raises(ColumnError, match="a column of strings, or of lists of token ids"):
        batch_sdk.embed(table, column="x", model="m", engine="dummy", progress=False)


def embed(rows, kind=None, **options):
    table = pa.table({"ids": pa.array(rows, kind or pa.list_(pa.int64()))})
    options = {"model": "m", "engine": "dummy", "progress": False} | options
    return batch_sdk.embed(table, column="ids", **options)


def test_a_table_of_ids():
    rows = [[1, 2, 3], None, [], [4], [1, 2, 3], [7] * 9, [-1], [300], [2**35]]
    limits = {"max_input_tokens": 8, "vocabulary": 256}
    out = embed(rows, engine_options=limits, block_rows=2)
    kinds = [error and error["kind"] for error in out["error"].to_pylist()]
    wrong = ["rejected"] * 3
    assert kinds == [None, "null_input", "rejected", None, None, "too_long", *wrong]
    assert out["prompt_tokens"].to_pylist() == [3, None, None, 1, 3, None, None, None, None]
    vectors = out["embedding"].to_pylist()
    assert vectors[0] == vectors[4] != vectors[3]
    assert [vector is None for vector in vectors] == [kind is not None for kind in kinds]
    cut = embed(rows, engine_options=limits, truncate=True)
    assert cut["prompt_tokens"].to_pylist()[5] == 8
    assert cut["embedding"][5] == embed([[7] * 8])["embedding"][0]
    assert cut["ids"].to_pylist() == rows


@pytest.mark.parametrize("kind", [*LISTS, pa.list_(pa.int32(), 3)])
def test_the_type_of_the_list_makes_no_difference(kind):
    rows = [[i, 5, i * i] for i in range(30)]
    assert embed(rows, kind)["embedding"] == embed(rows)["embedding"]


def test_polars_lists():
    frame = pl.DataFrame({"ids": [[1, 2], None, [3]]})
    out = frame.arctic.embed("ids", model="m", engine="dummy", progress=False)
    assert out["prompt_tokens"].to_list() == [2, None, 1]
    assert out["ids"].to_list() == [[1, 2], None, [3]]


def test_a_row_of_ids_that_kills_the_engine():
    rows = [[i] for i in range(40)]
    out = embed(rows, engine_options={"die_on": "[17]"}, block_rows=8)
    kinds = [error and error["kind"] for error in out["error"].to_pylist()]
    assert kinds == [None] * 17 + ["engine_died"] + [None] * 22
    assert out["embedding"].to_pylist()[18:] == embed(rows)["embedding"].to_pylist()[18:]


def test_blocks_are_as_large_as_the_engine_likes(jobs):
    sizes = []

    class Large(batch_sdk.engines.dummy.DummyEngine):
        info = property(lambda self: batch_sdk.engines.base.EngineInfo("m", embedding_size=2, block_rows=300))

        def submit(self, requests):
            sizes.extend(request.rows for request in requests)
            super().submit(requests)

    engine = Large(model="m", task="embed", options={"embedding_size": 2})
    engine.start()
    table = pa.table({"text": ["a"] * 1000})
    options = {"column": "text", "model": engine, "progress": False}
    batch_sdk.embed(table, **options)
    assert sizes == [300, 300, 300, 100]
    for pace, wanted in [({"window_rows": 200}, 200), ({"batch_rows": 125}, 125), ({"block_rows": 50}, 50)]:
        sizes.clear()
        batch_sdk.embed(table, **options, **pace)
        assert set(sizes) == {wanted}


def test_a_block_that_is_the_chunk_is_not_copied(jobs):
    from batch_sdk.chunks import EmbedChunk
    from batch_sdk.engines.base import EmbedResult

    batch = pa.record_batch({"text": ["a", "b"]})
    vectors = np.ones((2, 3), np.float32)
    shape = {
        "size": 3,
        "dimensions": 3,
        "block_rows": 2,
        "normalize": False,
        "truncate": False,
        "prompt": "",
        "embedding_type": "float32",
    }
    chunk = EmbedChunk(0, batch, ["text"], Tally(), column="text", **shape)
    (request,) = chunk.take(2)
    assert request.texts == ["a", "b"]
    chunk.accept(EmbedResult(0, vectors, np.ones(2, np.int32), [None, None]))
    schema = pa.schema([
        ("text", pa.string()), ("embedding", pa.list_(pa.float32(), 3)), ("prompt_tokens", pa.int32()),
        ("error", batch_sdk.schema.ERROR_TYPE),
    ])  # fmt: skip
    column = chunk.to_batch(schema).column("embedding")
    assert column.flatten().buffers()[1].address == vectors.ctypes.data


def test_a_null_in_a_dictionary():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    block = embed_inputs(column).block(0, 4)
    assert block.texts == ["a", "a"]
    assert list(block.refused) == [1, 2]
