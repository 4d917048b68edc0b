"""Vectors as half floats, bytes and bits."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk import cli
from batch_sdk.errors import OptionError
from batch_sdk.vectors import vector_arrays

TEXTS = pa.table({"text": ["a b", None, "c", "Grüße", "d e f"]})
SIZE = 13


def embed(data=TEXTS, **more):
    options = {"column": "text", "model": "m", "engine": "dummy", "engine_options": {"embedding_size": SIZE}}
    return batch_sdk.embed(data, **{**options, **more})


def matrix(column, rows=(0, 2, 3, 4)):
    values = column.to_pylist()
    return np.array([values[row] for row in rows])


@pytest.fixture
def exact():
    return matrix(embed().column("embedding"))


def test_float16(exact):
    out = embed(embedding_type="float16")
    assert out.schema.field("embedding").type == pa.list_(pa.float16(), SIZE)
    assert np.array_equal(matrix(out.column("embedding")), exact.astype(np.float16))
    assert out.column("embedding").is_null().to_pylist() == [False, True, False, False, False]


def test_int8_and_its_scale(exact):
    out = embed(embedding_type="int8", details_prefix="x_")
    assert out.schema.field("embedding").type == pa.list_(pa.int8(), SIZE)
    assert out.column_names == ["text", "embedding", "x_embedding_scale", "x_prompt_tokens", "x_error"]
    items, scales = matrix(out.column("embedding")), matrix(out.column("x_embedding_scale"))
    assert (np.abs(items).max(axis=1) == 127).all()
    assert (np.abs(items * scales[:, None] - exact) <= 0.5001 * scales[:, None]).all()
    assert out.column("x_embedding_scale")[1].as_py() is None


def test_binary(exact):
    out = embed(embedding_type="binary")
    assert out.schema.field("embedding").type == pa.list_(pa.uint8(), 2)
    bits = np.unpackbits(matrix(out.column("embedding")).astype(np.uint8), axis=1)[:, :SIZE]
    assert np.array_equal(bits, exact > 0)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "binary"])
def test_zeros_and_no_rows(kind):
    arrays = vector_arrays(np.zeros((2, 9), np.float32), np.array([False, True]), kind)
    assert not any(arrays[0][0].as_py())
    assert all(array.null_count == 1 for array in arrays)
    empty = vector_arrays(np.zeros((0, 9), np.float32), np.zeros(0, bool), kind)
    assert [len(array) for array in empty] == [0] * len(arrays)
    assert len(embed(TEXTS.slice(0, 0), embedding_type=kind)) == 0


@pytest.mark.parametrize("kind", ["float16", "int8", "binary"])
def test_there_and_back(tmp_path, kind, capsys):
    wanted = embed(embedding_type=kind)
    embed(embedding_type=kind, output=tmp_path / "out", rows_per_file=2)
    found = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*"))])
    assert found.equals(wanted)
    lazy = pl.from_arrow(TEXTS).lazy().arctic.embed(
        "text", model="m", engine="dummy", engine_options={"embedding_size": SIZE}, embedding_type=kind
    )  # fmt: skip
    assert lazy.collect().equals(pl.from_arrow(wanted))
    pq.write_table(TEXTS, tmp_path / "t.parquet")
    args = [
        "embed",
        tmp_path / "t.parquet",
        "-o",
        tmp_path / "v.parquet",
        "--model",
        "m",
        "--engine",
        "dummy",
    ]
    more = [
        "--column",
        "text",
        "--embedding-type",
        kind,
        "--engine-option",
        f"embedding_size={SIZE}",
        "--show",
        "2",
    ]
    assert cli.main([str(arg) for arg in [*args, *more]]) == 0
    assert "row 0" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "v.parquet").equals(wanted)


def test_nonsense():
    with pytest.raises(OptionError, match="embedding_type='int4'"):
        embed(embedding_type="int4")
