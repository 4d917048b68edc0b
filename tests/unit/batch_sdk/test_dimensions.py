"""The first components of vectors, scaled where the whole vectors are of length 1."""

import dataclasses

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk import cli
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import OptionError
from batch_sdk.job import EmbedJob
from batch_sdk.manifest import describe_job, differences
from batch_sdk.sources import open_source
from batch_sdk.vectors import is_unit_length

TABLE = pa.table({"text": ["a b", None, "c", "Grüße", "d e f"]})
SIZE = 13


class Longer(DummyEngine):
    """A model that does not normalise; the vector of "c" is of length 1 by chance."""

    @property
    def info(self):
        return dataclasses.replace(super().info, unit_vectors=False)

    def wait(self):
        results = super().wait()
        for result in results:
            result.vectors[:2] *= 3
        return results


def embed(kind=DummyEngine, **options):
    with kind(model="m", task="embed", options={"embedding_size": SIZE}) as engine:
        return batch_sdk.embed(TABLE, column="text", model=engine, progress=False, **options)


def matrix(table):
    return np.array(table.column("embedding").drop_null().to_pylist(), np.float32)


def cut(vectors, dimensions, *, scaled):
    """One vector at a time, in float64."""
    rows = [vector[:dimensions].astype(np.float64) for vector in vectors]
    return np.array([row / np.sqrt(sum(x * x for x in row)) if scaled else row for row in rows])


@pytest.mark.parametrize("dimensions", [1, 5, SIZE - 1])
@pytest.mark.parametrize("block_rows", [2, 64])
def test_the_first_of_unit_vectors_scaled_again(dimensions, block_rows):
    table = embed(dimensions=dimensions, block_rows=block_rows)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), dimensions)
    assert table.column("embedding").is_null().to_pylist() == [False, True, False, False, False]
    np.testing.assert_allclose(matrix(table), cut(matrix(embed()), dimensions, scaled=True), atol=1e-6)


def test_vectors_of_other_lengths_are_cut_alone():
    whole = matrix(embed(Longer))
    assert is_unit_length(whole[2:]), "lengths do not decide row by row"
    assert np.array_equal(matrix(embed(Longer, dimensions=5)), whole[:, :5])
    scaled = matrix(embed(Longer, dimensions=5, normalize=True))
    np.testing.assert_allclose(scaled, cut(whole, 5, scaled=True), atol=1e-6)


def test_all_of_them_are_the_engine_s_own():
    assert embed(dimensions=SIZE).equals(embed())


@pytest.mark.parametrize(("kind", "items"), [("float16", 9), ("int8", 9), ("binary", 2)])
def test_the_types_are_of_what_is_left(kind, items):
    table = embed(dimensions=9, embedding_type=kind)
    assert table.schema.field("embedding").type.list_size == items
    left = matrix(embed(dimensions=9))
    found = matrix(table)
    if kind == "binary":
        assert np.array_equal(np.unpackbits(found.astype(np.uint8), axis=1)[:, :9], left > 0)
    else:
        scale = 1 if kind == "float16" else table["embedding_scale"].drop_null().to_numpy()[:, None]
        np.testing.assert_allclose(found * scale, left, atol=5e-3)


def test_no_row_to_embed():
    nulls = pa.table({"text": pa.array([None, None], pa.string())})
    table = batch_sdk.embed(nulls, column="text", model="m", engine="dummy", dimensions=3, progress=False)
    assert table.column("embedding").null_count == 2
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)


def test_more_than_there_are():
    says = "dimensions=14, but the vectors of the model 'm' have 13; wanted a whole number from 1 to 13"
    with pytest.raises(OptionError, match=says):
        embed(dimensions=14)


@pytest.mark.parametrize("bad", [0, -1, 2.0, "8", True])
def test_nonsense(bad):
    with pytest.raises(OptionError, match=r"dimensions=.*wanted a whole number from 1"):
        EmbedJob(model="m", column="text", dimensions=bad)


def test_other_dimensions_are_another_job():
    source = open_source(TABLE)
    jobs = [EmbedJob(model="m", column="text", dimensions=number) for number in (None, 8)]
    then, now = (
        describe_job(job, source, engine="sglang", engine_options={}, rows_per_file=9) for job in jobs
    )
    assert differences(then, now) == ["dimensions was not given and is 8"]


def test_command_line_and_job_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pq.write_table(TABLE, "in.parquet")
    wanted = embed(dimensions=5)
    options = ["--column", "text", "--engine", "dummy", "--engine-option", f"embedding_size={SIZE}"]
    assert cli.main(["embed", "in.parquet", "-o", "a.parquet", "-m", "m", "--dimensions", "5", *options]) == 0
    assert pq.read_table("a.parquet").equals(wanted)
    job = "command: embed\ninput: in.parquet\noutput: b.parquet\nmodel: m\nengine: dummy\ncolumn: text\n"
    (tmp_path / "job.yaml").write_text(
        f"{job}engine_options: {{embedding_size: {SIZE}}}\ndimensions: 5\n", encoding="utf-8"
    )
    assert cli.main(["run", "job.yaml"]) == 0
    assert pq.read_table("b.parquet").equals(wanted)
    assert (
        cli.main(["embed", "in.parquet", "-o", "c.parquet", "-m", "m", "--dimensions", "14", *options]) == 2
    )
    assert "from 1 to 13" in capsys.readouterr().err


class Counting(DummyEngine):
    """Counts starts."""

    starts = 0

    def start(self):
        type(self).starts += 1
        super().start()


def test_a_lazy_query_knows_its_schema_without_an_engine(monkeypatch):
    monkeypatch.setattr("batch_sdk.polars_ns.create_engine", lambda name, **how: Counting(**how))
    frame = pl.from_arrow(TABLE).lazy()
    options = {"model": "m", "engine": "dummy", "engine_options": {"embedding_size": SIZE}}
    monkeypatch.setattr(Counting, "starts", 0)
    query = frame.arctic.embed("text", dimensions=5, **options)
    assert query.collect_schema()["embedding"] == pl.Array(pl.Float32, 5)
    assert Counting.starts == 0
    assert query.collect().equals(pl.from_arrow(embed(dimensions=5)))
    with pytest.raises(OptionError, match="from 1 to 13"):
        frame.arctic.embed("text", dimensions=14, size=SIZE, **options)
    with pytest.raises(OptionError, match="from 1 to 13"):
        frame.arctic.embed("text", dimensions=14, **options).collect()


def test_unit_length_in_bfloat16():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert is_unit_length(vectors)
    # bfloat16 is float32 without its last 16 bits; cutting them off errs twice as much as rounding.
    halved = (vectors.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert is_unit_length(halved)
    assert not is_unit_length(np.concatenate([vectors, vectors[:1] * 1.02]))
    assert not is_unit_length(np.zeros((1, 4), np.float32))
