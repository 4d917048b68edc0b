"""Parquet in and out, the same kind back, and nothing half-written anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError, OutputError, SourceError
from batch_sdk.sinks import parquet as parquet_sink
from batch_sdk.sources import open_source


def write(path: Path, ids: range, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"id": list(ids), "text": [f"t{i}" for i in ids], **more}), path, row_group_size=3
    )
    return path


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "in"
    write(folder / "b.parquet", range(10, 17))
    write(folder / "a.parquet", range(10))
    write(folder / "sub" / "c.parquet", range(17, 20))
    (folder / "_SUCCESS").touch()
    write(folder / "_tmp" / "d.parquet", range(99, 100))
    (folder / "notes.txt").write_text("not a table")
    return folder


def test_ways_to_name_files(jobs, files):
    ids = {
        str(files): range(20),
        files: range(20),
        str(files / "*.parquet"): range(17),
        str(files / "**" / "[abc].parquet"): range(20),
        str(files / "a.parquet"): range(10),
    }
    for spec, expected in ids.items():
        out = jobs.generate(spec, batch_rows=4)
        assert isinstance(out, pa.Table)
        assert out.column("id").to_pylist() == list(expected)
    out = jobs.generate([files / "b.parquet", str(files / "a.parquet")], batch_rows=4)
    assert out.column("id").to_pylist() == [*range(10, 17), *range(10)]


def test_only_needed_columns_are_read(files):
    source = open_source(files)
    assert source.num_rows == 20
    assert all(b.schema.names == ["text"] for b in source.batches(["text"], 5))


def test_nested_and_dotted_column_names(jobs, tmp_path):
    table = pa.table({"a": [{"b": "in"}], "a.b": ["flat"], "text": ["x"]})
    pq.write_table(table, tmp_path / "t.parquet")
    out = jobs.generate(tmp_path / "t.parquet", "{{ a.b }}", keep=["a.b"])
    assert out.column("a.b").to_pylist() == ["flat"]
    assert out.column("error").to_pylist() == [None]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"extra": [1] * 5}, "has column 'extra'"),
        ({"text": pa.array([b"x"] * 5)}, "column 'text'.*type binary"),
    ],
)
def test_files_of_different_schemas_name_the_odd_one(files, more, says):
    table = pa.table({"id": list(range(5)), "text": ["x"] * 5} | more)
    pq.write_table(table, files / "z.parquet")
    with pytest.raises(SourceError, match=says) as caught:
        open_source(str(files / "*.parquet"))
    assert "z.parquet" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    for spec in (tmp_path / "none.parquet", tmp_path / "*.parquet", tmp_path, "s3://bucket/x.parquet"):
        with pytest.raises(SourceError):
            open_source(spec)
    (tmp_path / "bad.parquet").write_text("hello")
    with pytest.raises(SourceError, match=r"bad.parquet"):
        open_source(tmp_path)


def test_a_damaged_file_stops_the_job_and_leaves_no_output(jobs, tmp_path):
    path = write(tmp_path / "in.parquet", range(3000))
    data = bytearray(path.read_bytes())
    data[200:2000] = os.urandom(1800)
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError, match=r"in.parquet"):
        jobs.generate(path, output=tmp_path / "out.parquet", batch_rows=64)
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_single_file(jobs, files, tmp_path):
    out = tmp_path / "deep" / "er" / "out.parquet"
    summary = jobs.embed(files, output=out, batch_rows=6)
    assert summary.output == str(out)
    assert summary.rows == 20
    table = pq.read_table(out)
    assert table.column("id").to_pylist() == list(range(20))
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert pl.read_parquet(out).schema["embedding"] == pl.Array(pl.Float32, 16)
    assert [p.name for p in out.parent.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize(("rows_per_file", "counts"), [(7, [7, 7, 6]), (10, [10, 10]), (1000, [20])])
def test_directory_of_parts(jobs, files, tmp_path, rows_per_file, counts):
    out = tmp_path / "out"
    jobs.generate(files, output=out, batch_rows=3, rows_per_file=rows_per_file)
    parts = sorted(out.glob("*.parquet"))
    assert sorted(p.name for p in out.iterdir()) == ["_manifest.json", *(p.name for p in parts)]
    assert [p.name for p in parts] == [f"part-{i:05d}.parquet" for i in range(len(counts))]
    assert [pq.read_metadata(p).num_rows for p in parts] == counts
    assert jobs.generate(out, response_column="again", details_prefix="b_")["id"].to_pylist() == list(
        range(20)
    )


def test_empty_output_has_a_schema(jobs, tmp_path):
    empty = pa.table({"text": pa.array([], pa.string())})
    jobs.embed(empty, output=tmp_path / "e.parquet")
    jobs.embed(empty, output=tmp_path / "e")
    for path in (tmp_path / "e.parquet", tmp_path / "e" / "part-00000.parquet"):
        assert pq.read_schema(path).names == ["text", "embedding", "prompt_tokens", "error"]
        assert pq.read_metadata(path).num_rows == 0


def test_overwriting_is_asked_for(jobs, files, tmp_path):
    for name in ("o.parquet", "o"):
        out = tmp_path / name
        jobs.generate(files, output=out, limit_rows=3)
        with pytest.raises(OutputError, match=r"exists.*overwrite"):
            jobs.generate(files, output=out)
        assert jobs.engine.answered == 0
        jobs.generate(files, output=out, overwrite=True, limit_rows=5)
        assert pq.read_table(out).num_rows == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "o", "o.parquet"]


def test_outputs_that_would_destroy_something(jobs, files, tmp_path):
    for output in (files, files / "a.parquet", f"local://{files}/a.parquet", tmp_path):
        with pytest.raises(OutputError, match="input's own place"):
            jobs.generate(files, output=output, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").touch()
    with pytest.raises(OutputError, match=r"thesis\.doc"):
        jobs.generate(files, output=tmp_path / "mine", overwrite=True)
    (tmp_path / "d.parquet").mkdir()
    for output in (tmp_path / "d.parquet", "s3://b/x", "", 7):
        with pytest.raises(OutputError):
            jobs.generate(files, output=output, overwrite=True)
    (tmp_path / "empty").mkdir()
    jobs.generate(files, output=tmp_path / "empty")
    assert (files / "a.parquet").exists()


UNKNOWN = {
    "lazy": lambda out: pl.scan_parquet(out / "*.parquet"),
    "reader": lambda out: ds.dataset(out, exclude_invalid_files=True).scanner().to_reader(),
    "memory": lambda out: ds.dataset(pq.read_table(out)),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_may_read_an_output_does_not_overwrite_it(jobs, files, tmp_path, kind):
    out = tmp_path / "o"
    jobs.generate(files, output=out, rows_per_file=7)
    there = sorted(path.name for path in out.iterdir())
    more = {"response_column": "again", "details_prefix": "b_"}
    with pytest.raises(OutputError, match=r"which the input may read.*delete the directory"):
        jobs.generate(UNKNOWN[kind](out), output=out, overwrite=True, **more)
    assert sorted(path.name for path in out.iterdir()) == there
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "new", tmp_path / "empty", tmp_path / "new.parquet"):
        jobs.generate(UNKNOWN[kind](out), output=output, overwrite=True, **more)
        assert pq.read_table(output).num_rows == 20


def test_a_union_knows_its_files(jobs, files, tmp_path):
    jobs.generate(files, output=tmp_path / "o")
    paths = [str(tmp_path / "o" / "part-00000.parquet"), str(files / "a.parquet")]
    data = ds.dataset([ds.dataset(path) for path in paths])
    for own in (tmp_path / "o", files):
        with pytest.raises(OutputError, match="input's own place"):
            jobs.generate(data, output=own, overwrite=True, response_column="r", details_prefix="b_")
    jobs.generate(files, output=tmp_path / "other")
    jobs.generate(ds.dataset([ds.dataset(paths[1])]), output=tmp_path / "other", overwrite=True)
    assert pq.read_table(tmp_path / "other").num_rows == 10


def test_a_type_that_parquet_lacks_is_found_before_the_engine_runs(jobs, tmp_path):
    table = pa.table({"text": ["x"], "odd": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(OutputError, match="keep"):
        jobs.generate(table, output=tmp_path / "o.parquet")
    assert jobs.engine.answered == 0
    assert jobs.generate(table).num_rows == 1


class Interrupting(DummyEngine):
    """Ctrl-C arrives while the job waits."""

    def wait(self):
        if self.answered >= 8:
            raise KeyboardInterrupt
        return super().wait()


def test_death_and_interruption_leave_no_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_sink, "_GROUP_ROWS", 1)
    out = tmp_path / "o.parquet"
    engine = DummyEngine(model="m", task="generate", options={"die_after_requests": 8})
    engine.start()
    with pytest.raises(EngineError, match="died after 8"):
        batch_sdk.generate(files, prompt="{{ text }}", model=engine, output=out, window_rows=4, batch_rows=2)
    interrupting = Interrupting(model="m", task="generate", options={})
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        batch_sdk.generate(
            files,
            prompt="{{ text }}",
            model=interrupting,
            output=out,
            window_rows=4,
            batch_rows=2,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert interrupting._in_flight == {}, "a shared engine must not keep rows of a job that is gone"


def test_an_engine_that_the_job_started_is_closed_whatever_happens(monkeypatch, files):
    made = []
    real = batch_sdk.api.create_engine
    monkeypatch.setattr(
        batch_sdk.api, "create_engine", lambda *a, **k: made.append(real(*a, **k)) or made[-1]
    )
    options = {"prompt": "{{ text }}", "model": "m", "engine": "dummy", "progress": False}
    batch_sdk.generate(files, **options)
    with pytest.raises(EngineError):
        batch_sdk.generate(files, **options, engine_options={"die_after_requests": 2})
    with pytest.raises(batch_sdk.PromptError):
        batch_sdk.generate(files, **options, chat=True, engine_options={"chat_template": False})
    assert [engine.closed for engine in made] == [True] * 3


def test_a_full_disk_is_an_output_error(jobs, files, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OutputError, match="No space left"):
        jobs.generate(files, output=tmp_path / "o.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


INPUTS = {
    "table": (lambda path: pq.read_table(path), pa.Table),
    "record batch": (
        lambda path: pq.read_table(path, partitioning=None).combine_chunks().to_batches()[0],
        pa.Table,
    ),
    "reader": (lambda path: pq.read_table(path).to_reader(), pa.Table),
    "path": (lambda path: str(path), pa.Table),
    "frame": (lambda path: pl.read_parquet(path), pl.DataFrame),
    "lazy": (lambda path: pl.read_parquet(path).lazy(), pl.DataFrame),
    "scan": (lambda path: pl.scan_parquet(path).filter(pl.col("id") < 100), pl.DataFrame),
}


@pytest.mark.parametrize(("make", "kind"), INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("limit_rows", [None, 6])
def test_same_kind_back(jobs, files, make, kind, limit_rows):
    for run in (jobs.generate, jobs.embed):
        out = run(make(files / "a.parquet"), batch_rows=4, limit_rows=limit_rows)
        assert isinstance(out, kind)
        ids = out["id"].to_list() if isinstance(out, pl.DataFrame) else out["id"].to_pylist()
        assert ids == list(range(limit_rows or 10))


def test_empty_frames_keep_kind_and_schema(jobs):
    for frame in (pl.DataFrame({"text": []}, schema={"text": pl.String}), pl.LazyFrame({"text": []})):
        out = jobs.embed(frame)
        assert isinstance(out, pl.DataFrame)
        assert out.columns == ["text", "embedding", "prompt_tokens", "error"]
        assert out.height == 0


def test_a_stream_can_be_read_once(jobs):
    source = open_source(pa.table({"text": ["x"]}).to_reader())
    jobs.generate(source)
    with pytest.raises(SourceError, match="read before"):
        jobs.generate(source)


def test_a_failing_lazy_frame_is_a_source_error(jobs, tmp_path):
    write(tmp_path / "x.parquet", range(3))
    lazy = pl.scan_parquet(tmp_path / "x.parquet").with_columns(
        bad=pl.col("text").cast(pl.Int64, strict=True)
    )
    with pytest.raises(SourceError, match="lazy frame failed"):
        jobs.generate(lazy)
    with pytest.raises(SourceError, match="cannot be resolved"):
        jobs.generate(pl.scan_parquet(tmp_path / "x.parquet").select("nope"))


def test_links_are_followed_in_directories_as_in_globs(jobs, tmp_path):
    write(tmp_path / "d" / "a" / "1.parquet", range(3))
    write(tmp_path / "e" / "2.parquet", range(3, 5))
    (tmp_path / "d" / "b").symlink_to("../e")
    (tmp_path / "d" / "c.parquet").symlink_to("../e/2.parquet")
    wanted = [0, 1, 2, 3, 4, 3, 4]
    for spec in (tmp_path / "d", f"{tmp_path}/d/**/*.parquet"):
        assert jobs.generate(spec)["id"].to_pylist() == wanted
    (tmp_path / "e" / "round").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "itself").symlink_to(tmp_path / "d")
    assert jobs.generate(tmp_path / "d")["id"].to_pylist() == wanted


def test_a_folder_comes_once_whatever_links_lead_to_it(jobs, tmp_path):
    write(tmp_path / "d" / "2026-11-22" / "1.parquet", range(3))
    write(tmp_path / "d" / "2026-11-23" / "2.parquet", range(3, 5))
    (tmp_path / "d" / "latest").symlink_to("2026-11-23")
    write(tmp_path / "e" / "new" / "3.parquet", range(5, 6))
    (tmp_path / "e" / "latest").symlink_to("new")
    (tmp_path / "d" / "other").symlink_to(tmp_path / "e")
    write(tmp_path / "d" / "_store" / "4.parquet", range(6, 8))
    (tmp_path / "d" / "stored").symlink_to("_store")
    assert jobs.generate(tmp_path / "d")["id"].to_pylist() == list(range(8))


def test_folders_that_cannot_be_read(jobs, tmp_path, monkeypatch):
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) in ("lost+found", "mine"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    write(tmp_path / "1.parquet", range(3))
    (tmp_path / "lost+found").mkdir()
    with pytest.warns(
        UserWarning, match=r"lost\+found' cannot be read \(Permission denied\) and is left out"
    ):
        assert jobs.generate(tmp_path)["id"].to_pylist() == [0, 1, 2]
    with pytest.raises(SourceError, match="cannot be read"):
        jobs.generate(tmp_path / "lost+found")
    (tmp_path / "lost+found").rename(tmp_path / "mine")
    with pytest.raises(SourceError, match=r"mine' cannot be read: Permission denied; .* by a glob"):
        jobs.generate(tmp_path)


def test_unfinished_outputs_are_no_input_by_their_parents_either(jobs, files, tmp_path):
    dying = {"options": {"die_after_requests": 2}, "batch_rows": 1, "window_rows": 1}
    with pytest.raises(EngineError):
        jobs.generate(files, output=tmp_path / "p" / "deep" / "job", **dying)
    write(tmp_path / "p" / "other" / "1.parquet", range(3))
    for spec in ("p", "p/deep", "p/deep/job"):
        with pytest.raises(SourceError, match=r"p/deep/job' is the output of a job that has not finished"):
            jobs.generate(tmp_path / spec, response_column="r", details_prefix="q_")
    (tmp_path / "p" / "deep").rename(tmp_path / "p" / "_deep")
    assert jobs.generate(tmp_path / "p").num_rows == 3


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_column_may_have_nulls_if_it_may_in_any_file(jobs, tmp_path, kind):
    required = pa.schema([pa.field("id", pa.int64(), nullable=False), ("text", pa.string())])
    tables = [
        pa.table({"id": [1], "text": ["a"]}, schema=required),
        pa.table({"id": pa.array([None], pa.int64()), "text": ["b"]}),
        pa.table(
            {"text": ["c"], "id": [3]}, schema=pa.schema([required.field("text"), required.field("id")])
        ),
    ]
    for index, table in enumerate(tables):
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{index}.parquet")
        else:
            with pa.ipc.new_file(tmp_path / f"{index}.arrow", table.schema) as writer:
                writer.write_table(table)
    out = jobs.generate(tmp_path)
    assert out["id"].to_pylist() == [1, None, 3]
    assert out.schema.field("id").nullable
    assert not jobs.generate(tmp_path / f"0.{kind}").schema.field("id").nullable
    for output in ("o.parquet", "o", "o.arrow"):
        jobs.generate(tmp_path, output=tmp_path / "_out" / output)
        assert [row["id"] for row in jobs.generate(tmp_path / "_out" / output, keep=["id"]).to_pylist()] == [
            1,
            None,
            3,
        ]


def test_links_into_a_store_are_found_again(jobs, tmp_path):
    """As in the Hugging Face cache: the name with the ending is a link, what it points to has none."""
    store = write(tmp_path / "blobs" / "0123", range(6))
    (tmp_path / "x.parquet").symlink_to(store)
    with pytest.raises(EngineError):
        jobs.generate(
            tmp_path / "x.parquet",
            output=tmp_path / "job",
            options={"die_after_requests": 2},
            batch_rows=1,
            window_rows=1,
        )
    batch_sdk.resume(tmp_path / "job", model=jobs.start("generate"), progress=False)
    assert pq.read_table(tmp_path / "job")["id"].to_pylist() == list(range(6))
