"""What a row can be, and what becomes of it."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batch_sdk
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.sources import open_source


def kinds(out: pa.Table) -> list[str | None]:
    return [error and error["kind"] for error in out.column("error").to_pylist()]


def test_null_text_is_a_null_result_with_a_typed_error(jobs):
    table = pa.table({"text": ["a", None, "b"]})
    out, summary = jobs.generate(table, return_summary=True)
    assert kinds(out) == [None, "null_input", None]
    row = out.to_pylist()[1]
    assert row["response"] is row["prompt_tokens"] is row["completion_tokens"] is row["finish_reason"] is None
    assert "'text' is null" in row["error"]["message"]
    assert summary.errors == {"null_input": 1}

    out, summary = jobs.embed(table, return_summary=True)
    assert kinds(out) == [None, "null_input", None]
    assert [v is None for v in out.column("embedding").to_pylist()] == [False, True, False]
    assert out.column("prompt_tokens").to_pylist() == [1, None, 1]
    assert (summary.rows, summary.prompt_tokens) == (3, 2)


def test_only_nulls(jobs):
    for column in (pa.array([None, None], pa.string()), pa.nulls(2)):
        table = pa.table({"text": column})
        assert kinds(jobs.generate(table)) == ["null_input"] * 2
        out = jobs.embed(table, options={"embedding_size": 3})
        assert kinds(out) == ["null_input"] * 2
        assert out.schema.field("embedding").type == pa.list_(pa.float32(), 3)


def test_a_poison_row_is_one_error_row(jobs):
    table = pa.table({"text": ["fine", "poison here", "fine too"]})
    for run in (jobs.generate, jobs.embed):
        out = run(table, options={"fail_on": "poison"})
        assert kinds(out) == [None, "rejected", None]


def test_over_long_rows(jobs):
    table = pa.table({"text": ["a b", "a b c d e f g"]})
    assert kinds(jobs.generate(table, "{{ text }}", chat=False, options={"max_input_tokens": 3})) == [
        None,
        "too_long",
    ]
    assert kinds(jobs.embed(table, options={"max_input_tokens": 3})) == [None, "too_long"]


def test_invalid_utf8_is_an_error_row(jobs):
    good = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.StringArray.from_buffers(3, good.buffers()[1], good.buffers()[2])
    table = pa.table({"id": [0, 1, 2], "text": text})
    assert kinds(jobs.generate(table, keep=["id"])) == [None, "prompt_error", None]
    assert kinds(jobs.embed(table, keep=["id"])) == [None, "prompt_error", None]


FAR_DATES = {
    "zone": (253402300799 * 10**6, pa.timestamp("us", "Europe/Berlin")),
    "year": (2**50, pa.timestamp("s")),
    "duration": (2**50, pa.duration("s")),
    "date": (2**30, pa.date32()),
}


@pytest.mark.parametrize("case", FAR_DATES)
def test_a_date_that_python_cannot_hold_is_an_error_row(jobs, case):
    number, kind = FAR_DATES[case]
    plain = pa.int32() if kind.bit_width == 32 else pa.int64()
    until = pa.array([0, number, 0], plain).view(kind)
    nested = pa.StructArray.from_arrays([until], ["x"])
    table = pa.table({"text": list("abc"), "until": until, "nested": nested})
    for prompt, column in (("{{ until }}", "until"), ("{{ nested.x }}", "nested")):
        out = jobs.generate(table, prompt)
        assert kinds(out) == [None, "prompt_error", None]
        assert f"column '{column}': " in out["error"].to_pylist()[1]["message"]
        assert "UTF-8" not in out["error"].to_pylist()[1]["message"]
    assert kinds(jobs.generate(table, "{{ text }}")) == [None] * 3


TEXTS = ["plain", "Grüße, 世界 🌍", "a\x00b\nc", "", "e\u0301 \u202e right to left", "😀" * 50, " "]


@pytest.mark.parametrize(
    "make",
    [
        pa.array,
        lambda v: pa.array(v, pa.large_string()),
        lambda v: pa.array(v, pa.string_view()),
        lambda v: pa.array(v).dictionary_encode(),
        lambda v: pa.array(["junk", *v, "junk"]).slice(1, len(v)),
        lambda v: pa.chunked_array([v[:2], [], v[2:]], pa.string()),
    ],
    ids=["string", "large", "view", "dictionary", "sliced", "chunked"],
)
def test_text_types_and_unicode(jobs, make):
    table = pa.table({"text": make(TEXTS)})
    plain = pa.table({"text": TEXTS})
    for run in (jobs.generate, jobs.embed):
        out, reference = run(table, batch_rows=3, window_rows=64), run(plain)
        assert out.column("text").to_pylist() == TEXTS
        assert out.schema.field("text").type == table.schema.field("text").type
        assert out.drop_columns(["text"]).to_pylist() == reference.drop_columns(["text"]).to_pylist()


def test_zero_row_batches_and_changing_dictionaries(jobs):
    kind = pa.dictionary(pa.int8(), pa.string())
    schema = pa.schema([("text", kind)])
    words = [["a", "b"], [], ["c"], [], ["d", "a", None], []]
    batches = [
        pa.record_batch([pa.array(w, pa.string()).dictionary_encode().cast(kind)], schema=schema)
        for w in words
    ]
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    out = jobs.generate(reader, batch_rows=4)
    assert out.column("text").to_pylist() == ["a", "b", "c", "d", "a", None]
    assert kinds(out)[-1] == "null_input"


def test_a_dictionary_of_views_is_there_once(jobs):
    """As which pyarrow gets a Polars Categorical: of as many values as there are rows, maybe."""
    values = pl.Series("u", [f"user {i}" for i in range(100)] * 2).cast(pl.Categorical)
    table = pa.table(pl.DataFrame({"text": ["x"] * 200, "u": values}))
    table = pa.concat_tables([table.slice(0, 90), table.slice(90)])
    source = open_source(table)
    batches = [*source.batches(["u"], 10), *source.batches_from(["u"], 10, 50)]
    out = jobs.generate(table, batch_rows=10)
    assert out["u"].type == table["u"].type
    assert out["u"].to_pylist() == table["u"].to_pylist()
    for chunks in ([batch.column(0) for batch in batches], out["u"].chunks):
        assert len(chunks) >= 20
        assert len({chunk.dictionary.buffers()[-1].address for chunk in chunks}) == 1
    few = pa.chunked_array(
        [
            pa.DictionaryArray.from_arrays(pa.array(at), pa.array(of, pa.string_view()))
            for at, of in (([0, None, 1], ["a", "b"]), ([1], ["q", "c"]))
        ]
    )
    out = jobs.generate(pa.table({"u": few, "text": ["x"] * 4}).slice(1), batch_rows=1)
    assert out["u"].to_pylist() == [None, "b", "c"]
    none = pa.table({"u": few.slice(0, 0), "text": pa.array([], pa.string())})
    assert jobs.generate(none).num_rows == 0


def test_values_reach_the_template_as_python_values(jobs):
    table = pa.table(
        {
            "day": [dt.date(2024, 5, 17)],
            "tags": [["x", "y"]],
            "who": [{"name": "Ada", "age": 36}],
            "n": [1234.5],
        }
    )
    prompt = "{{ day.isoformat() }} {{ tags | join('+') }} {{ who.name }} {{ '%.1f' | format(n) }}"
    out = jobs.generate(table, prompt, chat=False)
    same = jobs.generate(pa.table({"text": ["2024-05-17 x+y Ada 1234.5"]}), "{{ text }}", chat=False)
    assert out.column("response").to_pylist() == same.column("response").to_pylist()


def test_vectors_are_unit_length_typed_and_rescaled_on_request(jobs):
    out = jobs.embed(pa.table({"text": ["a", "b"]}), normalize=True)
    vectors = np.stack(out.column("embedding").to_pylist())
    assert out.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.large_string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.list_(pa.string()): st.lists(st.text(max_size=3) | st.none(), max_size=3),
    pa.struct([("x", pa.int32()), ("y", pa.list_(pa.int8()))]): st.fixed_dictionaries(
        {"x": st.integers(-5, 5) | st.none(), "y": st.lists(st.integers(-5, 5), max_size=2)}
    ),
}


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 12))
    text = draw(st.lists(st.text(max_size=6) | st.none(), min_size=rows, max_size=rows))
    arrays = {"text": pa.array(text, pa.string())}
    for i, kind in enumerate(draw(st.lists(st.sampled_from(list(VALUES)), max_size=3))):
        values = draw(st.lists(VALUES[kind] | st.none(), min_size=rows, max_size=rows))
        arrays[f"c{i}"] = pa.array(values, kind)
    table = pa.table(arrays)
    cut = draw(st.integers(0, rows))
    return pa.concat_tables([table.slice(0, cut), table.slice(0, 0), table.slice(cut)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=tables(), window=st.integers(1, 6), batch=st.integers(1, 6), seed=st.integers(0, 5))
def test_any_table_comes_back_row_for_row(table, window, batch, seed):
    engine = DummyEngine(model="m", task="generate", options={"shuffle": True, "seed": seed})
    engine.start()
    out = batch_sdk.generate(
        table, prompt="{{ text }}", model=engine, window_rows=window, batch_rows=batch, progress=False
    )
    assert out.select(table.column_names).equals(table)
    assert out.schema.names[: len(table.column_names)] == table.column_names
    for text, response, kind in zip(
        table.column("text").to_pylist(), out.column("response").to_pylist(), kinds(out), strict=True
    ):
        assert (text is None) == (response is None) == (kind == "null_input")


def test_polars_dtypes_survive(jobs):
    frame = pl.DataFrame(
        {
            "text": ["a", None],
            "enum": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])),
            "cat": pl.Series(["x", "y"], dtype=pl.Categorical),
            "when": pl.Series([dt.datetime(2024, 1, 1), None], dtype=pl.Datetime("ms", "UTC")),
            "price": pl.Series(["1.50", None]).cast(pl.Decimal(10, 2)),
            "vec": pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)),
            "nested": [{"a": [1]}, None],
        }
    )
    for out in (jobs.generate(frame), jobs.generate(frame.lazy()), jobs.embed(frame)):
        assert isinstance(out, pl.DataFrame)
        assert out.select(frame.columns).equals(frame)
        assert out.select(frame.columns).schema == frame.schema
    assert jobs.embed(frame).schema["embedding"] == pl.Array(pl.Float32, 16)
