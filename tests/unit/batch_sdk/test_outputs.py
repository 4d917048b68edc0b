"""Arrow and JSONL files out, here and behind URLs: whole or not at all, and refused before the engine runs."""

from __future__ import annotations

import datetime
import gc
import gzip
import json
from decimal import Decimal

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk import cli
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError, OutputError
from batch_sdk.show import generated_rows
from batch_sdk.sinks import parquet, place
from batch_sdk.sources import open_source

NAMES = ("o.arrow", "o.jsonl", "o.jsonl.gz", "o.jsonl.zst")
TABLE = pa.table({"id": list(range(10)), "text": [None, "ü\n\u2028🎌", *[f"t{i}" for i in range(8)]]})


def back(spec) -> pa.Table:
    source = open_source(spec)
    return pa.Table.from_batches(source.batches(source.schema.names, 100), schema=source.schema)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


@pytest.mark.parametrize("name", [*NAMES, "o.parquet"])
def test_files_hold_what_memory_holds(jobs, tmp_path, memory, name):
    for run in (jobs.generate, jobs.embed):
        want = run(TABLE, batch_rows=4)
        urls = {"memory": f"memory://out/deep/{run.__name__}-{name}", "file": f"file://{tmp_path}/f/{name}"}
        for output in (tmp_path / "deep" / name, *urls.values()):
            summary = run(TABLE, output=output, batch_rows=4, overwrite=True)
            assert summary.output == str(output).removeprefix("file://")
            got = back(output)
            if "jsonl" in name:  # vectors come back as lists of doubles
                got = got.cast(want.schema)
            assert got.schema == want.schema
            assert got.equals(want)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]
    assert sorted(memory.find("/")) == sorted(f"/out/deep/{kind}-{name}" for kind in ("generate", "embed"))


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_one_row(jobs, tmp_path, name):
    jobs.generate(TABLE, output=tmp_path / name, limit_rows=1)
    assert back(tmp_path / name)["error"].to_pylist()[0]["kind"] == "null_input"
    jobs.embed(TABLE.slice(0, 0), output=tmp_path / name, overwrite=True)
    if name == "o.arrow":
        assert back(tmp_path / name).schema.field("embedding").type == pa.list_(pa.float32(), 16)
    else:
        raw = (tmp_path / name).read_bytes()
        raw = {"gz": gzip.decompress, "zst": lambda b: pa.input_stream(pa.py_buffer(b), "zstd").read()}.get(
            name.split(".")[-1], bytes
        )(raw)
        assert raw == b""


def test_polars_reads_the_arrow_file(jobs, tmp_path):
    frame = pl.DataFrame({"text": ["a", "b", "a", "c"]}, schema={"text": pl.Categorical})
    jobs.generate(frame, output=tmp_path / "o.arrow", batch_rows=2)
    assert pl.read_ipc(tmp_path / "o.arrow")["text"].to_list() == ["a", "b", "a", "c"]


def test_dictionaries_that_change_from_batch_to_batch(jobs, tmp_path):
    chunks = [pa.array(values).dictionary_encode() for values in (["a", "b"], ["c"], ["b", None, "d"])]
    table = pa.table({"text": pa.chunked_array(chunks)})
    for name in ("o.arrow", "o.jsonl"):
        jobs.generate(table, "x", output=tmp_path / name, batch_rows=1)
        assert back(tmp_path / name)["text"].to_pylist() == ["a", "b", "c", "b", None, "d"]


def test_what_json_makes_of_values(jobs, tmp_path):
    table = pa.table(
        {
            "f": pa.array([0.1, float("nan"), float("inf")], pa.float32()),
            "day": [datetime.date(2024, 1, 2), None, None],
            "at": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5), None, None], pa.timestamp("us", "UTC")),
            "money": [Decimal("1.10"), None, None],
            "big": pa.array([2**64 - 1, None, None], pa.uint64()),
            "nest": [{"a": [1, None]}, None, {"a": []}],
        }
    )
    jobs.generate(table, "{{ f }}", output=tmp_path / "o.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["f"] for row in rows] == [0.1, None, None]
    assert rows[0]["day"] == "2024-01-02"
    assert rows[0]["at"] == "2024-01-02T03:04:05+00:00"
    assert (rows[0]["money"], rows[0]["big"]) == ("1.10", 2**64 - 1)
    assert [row["nest"] for row in rows] == [{"a": [1, None]}, None, {"a": []}]


ODD = {
    "bytes": (pa.array([b"x"]), ("jsonl",)),
    "bytes inside": (pa.array([[{"b": b"x"}]]), ("jsonl",)),
    "map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), ("jsonl",)),
    "duration": (pa.array([datetime.timedelta(1)]), ("jsonl",)),
    "interval": (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), ("jsonl", "parquet")),
    "zone": (pa.array([0], pa.timestamp("us", "+05:30")), ("jsonl",)),
    "dictionary inside": (
        pa.array([["a"]], pa.list_(pa.string())).cast(pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        ("arrow",),
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_types_a_format_lacks_are_found_before_the_engine_runs(jobs, tmp_path, memory, odd):
    column, lacking = ODD[odd]
    table = pa.table({"text": ["x"], "odd": column})
    for kind in ("jsonl", "arrow", "parquet"):
        output = f"memory://odd/o.{kind}"
        if kind not in lacking:
            jobs.generate(table, output=output)
            assert back(output).num_rows == 1
            continue
        with pytest.raises(OutputError, match="keep"):
            jobs.generate(table, output=output)
        assert jobs.engine.answered == 0
        jobs.generate(table, output=output, keep=["text"])


def test_dates_that_json_cannot_hold_stop_it(jobs, tmp_path):
    table = pa.table({"text": ["x"], "bad": pa.array([2**50], pa.int64()).view(pa.timestamp("s"))})
    with pytest.raises(OutputError, match=r"JSON cannot hold .*keep"):
        jobs.generate(table, output=tmp_path / "o.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_nulls_in_slices_of_vectors(jobs, tmp_path):
    table = jobs.embed(
        pa.table({"text": [None if i % 7 == 3 else "t" for i in range(20)]}), details_prefix="e_"
    )
    jobs.generate(table, "{{ text or '' }}", output=tmp_path / "o.jsonl", batch_rows=8)
    assert back(tmp_path / "o.jsonl")["embedding"].null_count == 3
    frame = pl.from_arrow(table)
    for piece in (frame, frame.lazy()):
        out = jobs.generate(piece, "{{ text or '' }}", batch_rows=8, limit_rows=11)
        assert out["embedding"].to_list() == table["embedding"].to_pylist()[:11]
        assert out["embedding"].dtype == pl.Array(pl.Float32, 16)


VIEWS = [f"{i} " + "x" * 500 for i in range(400)]


@pytest.mark.parametrize("name", ["o.arrow", "o.parquet"])
def test_views_are_written_row_by_row(jobs, tmp_path, monkeypatch, name):
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 300_000)
    kinds = {"text": pa.string_view(), "in": pa.list_(pa.struct([("x", pa.binary_view())]))}
    plain = pa.table({"text": VIEWS, "in": [[{"x": text.encode()}] for text in VIEWS]})
    views = plain.cast(pa.schema(kinds)).combine_chunks()
    for file, table in ((name, views), (f"plain-{name}", plain)):
        jobs.generate(table, "{{ text }}", output=tmp_path / file, batch_rows=20)
    assert (tmp_path / name).stat().st_size < 1.2 * (tmp_path / f"plain-{name}").stat().st_size
    if name == "o.parquet":
        groups = [pq.read_metadata(tmp_path / file).num_row_groups for file in (name, f"plain-{name}")]
        assert groups[0] == groups[1]
    want = jobs.generate(views, "{{ text }}")
    assert back(tmp_path / name).to_pylist() == want.to_pylist()
    assert want.select(views.schema.names).equals(views), "in memory the types are the input's own"


def test_text_that_is_no_text_stops_a_json_output(jobs, tmp_path):
    raw = pa.array([b"\xff\xfe"])
    bad = pa.StringArray.from_buffers(1, *raw.buffers()[1:])
    with pytest.raises(OutputError, match=r"UTF-?8"):
        jobs.generate(pa.table({"text": ["x"], "bad": bad}), output=tmp_path / "o.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["o.csv", "o.tsv.gz", "o.jsonl.xz", "o.jsonl.bz2", "o.feather.gz/o.csv"])
def test_kinds_that_are_not_written(jobs, tmp_path, name):
    for output in (tmp_path / name, f"memory://x/{name}"):
        with pytest.raises(OutputError, match=r"wanted a name that ends in \.parquet, \.arrow, \.jsonl"):
            jobs.generate(TABLE, output=output)
    with pytest.raises(OutputError, match=r"wanted a name that ends in"):
        jobs.generate(TABLE, output="memory://x/directory")
    assert jobs.engine.answered == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_overwriting_is_asked_for(jobs, tmp_path, memory, name):
    for output in (tmp_path / name, f"memory://over/{name}"):
        jobs.generate(TABLE, output=output, limit_rows=3)
        with pytest.raises(OutputError, match=r"exists.*overwrite"):
            jobs.generate(TABLE, output=output)
        assert jobs.engine.answered == 0
        jobs.generate(TABLE, output=output, overwrite=True, limit_rows=5)
        assert back(output).num_rows == 5
        with pytest.raises(OutputError, match="own place"):
            jobs.generate(output, output=output, overwrite=True, response_column="r", details_prefix="p_")
    assert memory.find("/") == [f"/over/{name}"]
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match="not a file"):
        jobs.generate(TABLE, output=tmp_path / "folder" / name, overwrite=True)


class Interrupting(DummyEngine):
    def wait(self):
        if self.answered >= 4:
            raise KeyboardInterrupt
        return super().wait()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*NAMES, "o.parquet"])
def test_death_and_interruption_leave_nothing(tmp_path, memory, name):
    dying = DummyEngine(model="m", task="generate", options={"die_after_requests": 4})
    for engine, error in (
        (dying, EngineError),
        (Interrupting(model="m", task="generate", options={}), KeyboardInterrupt),
    ):
        engine.start()
        for output in (tmp_path / name, f"memory://dead/{name}"):
            options = {"window_rows": 2, "batch_rows": 2, "progress": False}
            with pytest.raises(error):
                batch_sdk.generate(TABLE, prompt="{{ id }}", model=engine, output=output, **options)
    assert list(tmp_path.iterdir()) == []
    assert memory.find("/") == []
    gc.collect()  # a writer that was left open complains when it goes


def test_an_engine_that_does_not_start_leaves_nothing(tmp_path, memory):
    class Broken(DummyEngine):
        def start(self):
            raise EngineError("no such model")

    for output in (tmp_path / "o.jsonl", "memory://dead/o.jsonl"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_sdk.api, "create_engine", lambda name, **kw: Broken(options={}, **_model(kw)))
            with pytest.raises(EngineError, match="no such model"):
                batch_sdk.generate(TABLE, prompt="x", model="m", output=output, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert memory.find("/") == []


def _model(options: dict) -> dict:
    return {name: options[name] for name in ("model", "task")}


def test_someone_else_takes_the_name_meanwhile(tmp_path, memory):
    class Sneaky(DummyEngine):
        def wait(self):
            (tmp_path / "o.jsonl").write_text("mine")
            memory.pipe("/sneak/o.jsonl", b"mine")
            return super().wait()

    engine = Sneaky(model="m", task="generate", options={})
    engine.start()
    for output in (tmp_path / "o.jsonl", "memory://sneak/o.jsonl"):
        (tmp_path / "o.jsonl").unlink(missing_ok=True)
        memory.store.clear()
        with pytest.raises(OutputError, match="exists"):
            batch_sdk.generate(TABLE, prompt="{{ id }}", model=engine, output=output, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]
        assert (tmp_path / "o.jsonl").read_text() == "mine"
        assert memory.find("/") == ["/sneak/o.jsonl"]


def test_a_full_disk_is_an_output_error(jobs, tmp_path, monkeypatch, memory):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place.os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        jobs.generate(TABLE, output=tmp_path / "o.arrow")
    monkeypatch.setattr(type(memory), "mv", full)
    with pytest.raises(OutputError, match="No space left"):
        jobs.generate(TABLE, output="memory://full/o.arrow")
    assert list(tmp_path.iterdir()) == []
    assert memory.find("/") == []


def test_a_place_that_takes_no_files_is_found_before_the_engine_runs(jobs, monkeypatch, memory):
    def refuse(self, path, mode="rb", **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(type(memory), "_open", refuse)
    with pytest.raises(OutputError, match=r"ro/o\.jsonl' cannot be used: NotImplementedError"):
        jobs.generate(TABLE, output="memory://ro/o.jsonl")
    assert jobs.engine.answered == 0


def test_a_large_parquet_url_is_written_in_batches(jobs, memory):
    table = pa.table({"text": ["x"] * 50})
    jobs.generate(table, output="memory://p/o.parquet", batch_rows=20)
    with fsspec.open("memory://p/o.parquet") as file:
        assert pq.ParquetFile(file).metadata.num_row_groups == 3


@pytest.mark.parametrize("output", ["o.arrow", "o.jsonl.zst", "memory://shown/o.jsonl"])
def test_rows_are_shown_from_every_kind(capsys, tmp_path, monkeypatch, memory, output):
    monkeypatch.chdir(tmp_path)
    pq.write_table(TABLE, "in.parquet")
    common = ["in.parquet", "-o", output, "--model", "m", "--engine", "dummy", "--overwrite", "--show", "2"]
    assert cli.main(["generate", *common, "--prompt", "{{ text }}"]) == 0
    shown = capsys.readouterr().out
    assert "-- row 1" in shown
    assert "null_input" in shown
    for rows, says in ((TABLE, "row 1: 16 floats, length 1.000"), (TABLE.slice(0, 1), "row 0: 0 floats")):
        pq.write_table(rows, "in.parquet")
        assert cli.main(["embed", *common, "--column", "text"]) == 0
        assert says in capsys.readouterr().out


def test_values_that_python_cannot_hold_are_shown_as_such(jobs, tmp_path):
    far = pa.array([0, 2**50], pa.int64()).view(pa.timestamp("s"))
    jobs.generate(pa.table({"text": ["a", "b"], "far": far}), output=tmp_path / "o.parquet")
    shown = generated_rows(str(tmp_path / "o.parquet"), 2)
    assert "1970-01-01" in shown
    assert "cannot hold" in shown
