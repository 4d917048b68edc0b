"""The manifest as data: there and back, and what makes two jobs different ones."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_sdk.errors import OutputError
from batch_sdk.job import EmbedJob, GenerateJob
from batch_sdk.manifest import Manifest, Part, describe_job, describe_schema, differences
from batch_sdk.sampling import SamplingParams
from batch_sdk.sources import open_source

TABLE = pa.table({"text": ["a", "ü", None], "n": [1, 2, 3]})


def describe(job=None, data=TABLE, engine="dummy", **options) -> Manifest:
    job = job or GenerateJob(model="m", prompt="say {{ text }}")
    return describe_job(job, open_source(data), engine=engine, engine_options=options, rows_per_file=10)


def test_there_and_back():
    job = GenerateJob(
        model="m", prompt="größer {{ text }}", keep=["n"], sampling=SamplingParams(stop="\n", temperature=0)
    )
    manifest = replace(describe(job, words=3), output_schema=describe_schema(TABLE.schema))
    manifest = manifest.with_part(Part("part-00000.parquet", 0, 3, 7, 8, {"null_input": 1}))
    assert Manifest.from_json(manifest.to_json(), "x") == manifest
    assert manifest.kept == ("n",)
    assert manifest.job["sampling"]["stop"] == ["\n"]
    assert (manifest.tally().prompt_tokens, manifest.tally().errors) == (7, {"null_input": 1})
    assert differences(Manifest.from_json(manifest.to_json(), "x"), describe(job, words=3)) == []


def test_a_part_replaces_the_one_of_its_name():
    parts = [Part("a", 0, 2), Part("b", 2, 3)]
    manifest = replace(describe(), parts=tuple(parts))
    changed = manifest.with_part(Part("a", 0, 2, errors={"rejected": 1}))
    assert [p.name for p in changed.parts] == ["a", "b"]
    assert changed.tally().errors == {"rejected": 1}
    assert (manifest.rows, changed.with_part(Part("c", 5, 1)).rows) == (5, 6)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "parts": 3}', "null"])
def test_damaged_manifests(text):
    with pytest.raises(OutputError, match="no manifest"):
        Manifest.from_json(text, "x")


def test_a_later_format_is_refused():
    text = describe().to_json().replace('"format": 1', '"format": 2')
    with pytest.raises(OutputError, match=r"has format 2.*wanted format 1"):
        Manifest.from_json(text, "x")


GENERATE = {"model": "m", "prompt": "say {{ text }}"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": "tell {{ text }}"}, "prompt was 'say {{ text }}' and is 'tell {{ text }}'"),
        ({"model": "n"}, "model was 'm' and is 'n'"),
        ({"system": "x"}, "system was not given and is 'x'"),
        ({"keep": ["n"]}, "keep was not given and is ['n']"),
        ({"limit_rows": 2}, "limit_rows"),
        ({"chat": False}, "chat"),
        ({"response_column": "r"}, "response_column"),
        ({"sampling": SamplingParams(temperature=1)}, "temperature was not given and is 1"),
        ({"sampling": SamplingParams(stop=("a",))}, "stop was [] and is ['a']"),
    ],
)
def test_what_shapes_the_output_differs(change, says):
    found = differences(describe(), describe(GenerateJob(**{**GENERATE, **change})))
    assert len(found) == 1
    assert says in found[0]


def test_commands_engines_versions_and_columns_differ():
    embed = describe(EmbedJob(model="m", column="text"))
    assert differences(describe(), embed) == ["the command was 'generate' and is 'embed'"]
    assert differences(describe(), describe(engine="sglang")) == ["engine was 'dummy' and is 'sglang'"]
    assert differences(describe(revision="a"), describe()) == [
        "engine option revision was 'a' and is not given"
    ]
    pooled = [describe(embedding_pooling=kind) for kind in ("cls", "mean")]
    assert differences(*pooled) == ["engine option embedding_pooling was 'cls' and is 'mean'"]
    old = replace(describe(), versions={**describe().versions, "sglang": "0.4"})
    assert "the version of sglang was '0.4'" in differences(old, describe())[0]
    columns = describe_schema(TABLE.schema)
    one, other = (replace(describe(), output_schema=c) for c in (columns, columns[::-1]))
    assert differences(one, other) == ["the order of the columns"]
    assert differences(one, replace(other, output_schema=())) == []
    cast = replace(other, output_schema=(("text", "string"), ("n", "int32")))
    assert differences(one, cast) == ["the type of column 'n' was 'int64' and is 'int32'"]


def test_pace_may_differ():
    fast = GenerateJob(**GENERATE, window_rows=7, batch_rows=3)
    assert differences(describe(tp_size=1), describe(fast, tp_size=8, mem_fraction_static=0.5)) == []


def test_secrets_are_not_written_down():
    text = describe(api_key="s3cret", headers={"a": "s3cret"}, max_total_tokens=77).to_json()
    assert "s3cret" not in text
    assert "77" in text


def test_options_that_are_no_data_are_refused():
    with pytest.raises(OutputError, match="engine option hook is a function"):
        describe(hook=lambda: None)


def test_tables_are_known_by_their_contents():
    same = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(0, 0), TABLE.slice(1)])
    assert open_source(same).fingerprint() == open_source(TABLE).fingerprint()
    assert open_source(TABLE.to_batches()[0]).fingerprint() == open_source(TABLE).fingerprint()
    for other in (
        TABLE.slice(1),
        TABLE.rename_columns(["text", "m"]),
        TABLE.set_column(1, "n", pa.array([1, 2, 4])),
        TABLE.set_column(0, "text", pa.array(["a", None, "ü"])),
        TABLE.set_column(1, "n", pa.array([1, 2, 3], pa.int32())),
    ):
        found = differences(describe(), describe(data=other))
        assert found, other
        assert "input's" in found[0]
    frame = pl.DataFrame({"text": ["a", "b"]})
    assert open_source(frame).fingerprint() == open_source(frame.clone()).fingerprint()
    assert open_source(frame).fingerprint() != open_source(frame.reverse()).fingerprint()
    empty = pa.table({"text": pa.array([], pa.string())})
    assert open_source(empty).fingerprint()["rows"] == 0


def test_streams_and_queries_cannot_be_recognised():
    for data in (TABLE.to_reader(), pl.from_arrow(TABLE).lazy()):
        manifest = describe(data=data)
        assert manifest.input is None
        assert "cannot be recognised" in differences(manifest, manifest)[0]


def test_changed_files_are_named(tmp_path):
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for path in paths:
        pq.write_table(TABLE, path)
    before = describe(data=paths)
    assert differences(before, describe(data=paths)) == []
    assert "order" in differences(before, describe(data=paths[::-1]))[0]
    assert differences(before, describe(data=paths[:1])) == [f"input file {str(paths[1])!r} is gone"]
    assert differences(describe(data=paths[:1]), before) == [f"input file {str(paths[1])!r} is new"]
    assert differences(before, describe()) == ["the input was files and is a table in memory"]
    pq.write_table(TABLE.slice(1), paths[0])
    (found,) = differences(before, describe(data=paths))
    assert "a.parquet" in found
    assert "has changed" in found
    assert "rows 3" in found


@pytest.mark.parametrize("start", range(13))
def test_sources_begin_at_any_row(tmp_path, start):
    table = pa.table({"text": [f"t{i}" for i in range(11)], "n": range(11)})
    for name, part in (("a", table.slice(0, 7)), ("b", table.slice(0, 0)), ("c", table.slice(7))):
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=3)
    for data in (tmp_path, table, pl.from_arrow(table), pl.from_arrow(table).lazy(), table.to_reader()):
        batches = list(open_source(data).batches_from(["n"], 2, start))
        assert all(b.schema.names == ["n"] for b in batches)
        assert [n for b in batches for n in b.column(0).to_pylist()] == list(range(start, 11)), type(data)


def test_skipped_files_and_row_groups_are_not_read(tmp_path):
    table = pa.table({"text": [f"{i} " + "x" * 100 for i in range(60)]})
    for name, part in (("a", table.slice(0, 30)), ("b", table.slice(30))):
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=10, use_dictionary=False)
    source = open_source(tmp_path)
    for name, keep_from in (("a", None), ("b", 2)):
        path = tmp_path / f"{name}.parquet"
        meta = pq.read_metadata(path)
        data = bytearray(path.read_bytes())
        stop = len(data) if keep_from is None else meta.row_group(keep_from).column(0).data_page_offset
        data[4:stop] = b"\0" * (stop - 4)
        path.write_bytes(bytes(data))
    (batch,) = source.batches_from(["text"], 100, 55)
    assert [text.split()[0] for text in batch.column(0).to_pylist()] == ["55", "56", "57", "58", "59"]
