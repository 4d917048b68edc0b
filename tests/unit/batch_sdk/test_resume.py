"""Stopping and going on in one process: every way to stop, every moment to die, odd tables, error rows again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batch_sdk
from batch_sdk import cli
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError, OptionError, OutputError, SourceError
from batch_sdk.folder import Folder, load_manifest
from batch_sdk.outputs import hint
from batch_sdk.sinks import parquet
from batch_sdk.sinks.parquet import RowGroupWriter
from batch_sdk.sinks.patch import PatchSink
from batch_sdk.sources import open_source

SMALL = {"window_rows": 4, "batch_rows": 2, "progress": False}


def engine_for(task: str, **options) -> DummyEngine:
    engine = DummyEngine(model="m", task=task, options=options)
    engine.start()
    return engine


def run(task: str, data, out, engine=None, **more):
    """One job; `more` wins over the small window."""
    options = {"rows_per_file": 7, **SMALL, "output": out, "model": engine or engine_for(task), **more}
    if task == "embed":
        return batch_sdk.embed(data, column="text", block_rows=2, **options)
    return batch_sdk.generate(data, prompt="say {{ text }}", **options)


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(out).glob("part-*.parquet"))])


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"id": range(20), "text": [None if i == 3 else f"text {i}" for i in range(20)]})
    for name, start, rows in (("a", 0, 9), ("b", 9, 0), ("c", 9, 11)):
        pq.write_table(table.slice(start, rows), folder / f"{name}.parquet", row_group_size=4)
    return folder


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize("after", range(10))
def test_an_engine_that_dies_leaves_a_job_to_resume(files, tmp_path, task, after):
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(task, files, whole)
    with pytest.raises(EngineError, match=f"died after {after}"):
        run(task, files, out, engine_for(task, die_after_requests=after))
    found = batch_sdk.status(out)
    assert (found.state, found.total_rows) == ("stopped", 20)
    summary = run(task, files, out, resume=True)
    assert read(out).equals(read(whole))
    assert (summary.rows, summary.earlier_rows, summary.errors) == (20, found.rows, {"null_input": 1})
    done = batch_sdk.status(out)
    assert (done.state, done.rows, done.errors) == ("complete", 20, {"null_input": 1})
    assert done.prompt_tokens == sum(t or 0 for t in read(out).column("prompt_tokens").to_pylist())
    assert sorted(os.listdir(out)) == ["_manifest.json", *sorted(p.name for p in out.glob("part-*"))]


def test_finished_rows_are_kept_when_the_engine_dies(files, tmp_path):
    with pytest.raises(EngineError):
        run(
            "generate",
            files,
            tmp_path / "o",
            engine_for("generate", die_after_requests=14),
            rows_per_file=999,
        )
    assert batch_sdk.status(tmp_path / "o").rows >= 10


def test_a_finished_job_starts_no_engine(files, tmp_path):
    run("generate", files, tmp_path / "o")
    engine = engine_for("generate", die_after_requests=0)
    summary = run("generate", files, tmp_path / "o", engine, resume=True)
    assert (summary.rows, summary.earlier_rows, summary.rows_per_second) == (20, 20, 0)
    assert "20 of them before" in str(summary)
    with pytest.raises(OutputError, match="exists"):
        run("generate", files, tmp_path / "o")


def test_an_unfinished_job_is_not_written_over_unasked(files, tmp_path):
    out = tmp_path / "o"
    with pytest.raises(EngineError):
        run("generate", files, out, engine_for("generate", die_after_requests=9))
    with pytest.raises(OutputError, match=r"unfinished job with \d+ rows.*resume=True"):
        run("generate", files, out)
    with pytest.raises(SourceError, match="not finished"):
        run("generate", out, tmp_path / "p", response_column="again", details_prefix="x_")
    assert run("generate", files, out, overwrite=True, limit_rows=3).rows == 3
    assert read(out).num_rows == 3
    assert batch_sdk.status(out).total_rows == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0.5}, "temperature was not given and is 0.5"),
        ({"keep": ["id"]}, r"keep was not given and is \['id'\]"),
        ({"limit_rows": 19}, "limit_rows was not given and is 19"),
        ({"response_column": "x"}, "response_column was 'response' and is 'x'"),
    ],
)
def test_another_job_is_refused_by_what_differs(files, tmp_path, change, says):
    with pytest.raises(EngineError):
        run("generate", files, tmp_path / "o", engine_for("generate", die_after_requests=9))
    before = (tmp_path / "o" / "_manifest.json").read_text()
    engine = engine_for("generate")
    with pytest.raises(OutputError, match=says):
        run("generate", files, tmp_path / "o", engine, resume=True, **change)
    assert engine.answered == 0
    with pytest.raises(OutputError, match="the command was 'generate'"):
        run("embed", files, tmp_path / "o", resume=True)
    assert (tmp_path / "o" / "_manifest.json").read_text() == before
    run("generate", files, tmp_path / "o", resume=True, window_rows=9, batch_rows=5, rows_per_file=3)


def test_a_changed_input_is_refused(files, tmp_path):
    with pytest.raises(EngineError):
        run("generate", files, tmp_path / "o", engine_for("generate", die_after_requests=9))
    pq.write_table(pa.table({"id": [1], "text": ["new"]}), files / "b.parquet")
    for resume in (
        lambda: run("generate", files, tmp_path / "o", resume=True),
        lambda: batch_sdk.resume(tmp_path / "o", model=engine_for("generate"), progress=False),
    ):
        with pytest.raises(OutputError, match=r"b.parquet' has changed"):
            resume()


def test_another_vector_length_is_refused(files, tmp_path):
    with pytest.raises(EngineError):
        run("embed", files, tmp_path / "o", engine_for("embed", die_after_requests=5))
    other = engine_for("embed", embedding_size=3)
    with pytest.raises(OutputError, match="option embedding_size was not given and is 3"):
        run("embed", files, tmp_path / "o", other, resume=True)
    other.engine_options = {}  # as with new weights at the same path
    with pytest.raises(OutputError, match="type of column 'embedding'"):
        run("embed", files, tmp_path / "o", other, resume=True)
    run("embed", files, tmp_path / "o", resume=True)


@pytest.mark.parametrize("harm", ["delete", "shorten", "manifest"])
def test_a_damaged_output_is_refused(files, tmp_path, harm):
    out = tmp_path / "o"
    run("generate", files, out)
    if harm == "delete":
        (out / "part-00001.parquet").unlink()
    elif harm == "shorten":
        pq.write_table(pq.read_table(out / "part-00001.parquet").slice(1), out / "part-00001.parquet")
    else:
        (out / "_manifest.json").write_text("{")
    name = "manifest" if harm == "manifest" else "part-00001"
    with pytest.raises(OutputError, match=name):
        run("generate", files, out, resume=True)


def test_resume_by_the_manifest_alone(files, tmp_path, monkeypatch):
    out, whole = tmp_path / "o", tmp_path / "whole"
    options = {"prompt": "say {{ text }}", "model": "m", "engine": "dummy", "stop": ["x"], **SMALL}
    batch_sdk.generate(files, output=whole, **options)
    with pytest.raises(EngineError):
        batch_sdk.generate(
            files, output=out, engine_options={"die_after_requests": 9}, max_restarts=0, **options
        )
    monkeypatch.chdir(files)
    summary = batch_sdk.resume(out, engine_options={"die_after_requests": None}, progress=False)
    assert summary.rows == 20
    assert read(out).equals(read(whole))


def stopped(files, out, **options) -> None:
    """A job on a started engine with these options that dies half-way."""
    with pytest.raises(EngineError):
        run("generate", files, out, engine_for("generate", die_after_requests=9, **options))


def test_a_started_engines_options_are_those_of_the_resumed_job(files, tmp_path):
    stopped(files, tmp_path / "o", words=3)
    recorded = json.loads((tmp_path / "o" / "_manifest.json").read_text())
    assert recorded["engine_options"] == {"die_after_requests": 9, "words": 3}
    with pytest.raises(OutputError, match="engine option words was 3 and is 5"):
        batch_sdk.resume(tmp_path / "o", engine_options={"words": 5})
    with pytest.raises(OutputError, match="engine option words was 3 and is not given"):
        batch_sdk.resume(tmp_path / "o", model=engine_for("generate"))
    batch_sdk.resume(tmp_path / "o", engine_options={"die_after_requests": None}, progress=False)
    assert set(read(tmp_path / "o")["completion_tokens"].to_pylist()) == {3, None}


def test_a_started_engine_goes_on_with_a_job_that_had_options(files, tmp_path):
    options = {"words": 3, "die_after_requests": 9}
    with pytest.raises(EngineError):
        batch_sdk.generate(
            files,
            prompt="say {{ text }}",
            model="m",
            engine="dummy",
            engine_options=options,
            max_restarts=0,
            output=tmp_path / "o",
            **SMALL,
        )
    same = engine_for("generate", words=3)
    with pytest.raises(OptionError, match="engine_options together with a running engine"):
        batch_sdk.resume(tmp_path / "o", model=same, engine_options={"nonsense": 1})
    batch_sdk.resume(tmp_path / "o", model=same, progress=False)
    assert set(read(tmp_path / "o")["completion_tokens"].to_pylist()) == {3, None}


def test_an_option_that_is_no_data_is_given_again(files, tmp_path):
    stopped(files, tmp_path / "o")
    path = tmp_path / "o" / "_manifest.json"
    recorded = json.loads(path.read_text())
    recorded["engine_options"] = {"words": {"$object": "my.module:words"}, "seed": {"$object": "my:seed"}}
    path.write_text(json.dumps(recorded))
    with pytest.raises(OutputError, match=r"option words, my.module:words, .*pass it again: engine_options="):
        batch_sdk.resume(tmp_path / "o")
    with pytest.raises(OutputError, match=r"option words was .* and is 3"):
        batch_sdk.resume(tmp_path / "o", engine_options={"words": 3})


def test_resume_finds_the_folders_that_are_columns(tmp_path):
    for year in (2023, None):
        folder = tmp_path / "in" / f"year={year or '__HIVE_DEFAULT_PARTITION__'}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": [f"{year} {i}" for i in range(10)]}), folder / "a.parquet")
    options = {"prompt": "{{ year or 'no year' }}: {{ text }}", "rows_per_file": 3, **SMALL}
    whole = batch_sdk.generate(tmp_path / "in", **options, model=engine_for("generate"))
    out = tmp_path / "out"
    dying = {"engine": "dummy", "engine_options": {"die_after_requests": 12}, "max_restarts": 0}
    with pytest.raises(EngineError):
        batch_sdk.generate(tmp_path / "in", **options, **dying, model="m", output=out)
    batch_sdk.resume(out, engine_options={"die_after_requests": None})
    assert read(out).equals(whole)
    (tmp_path / "in" / "year=2023" / "a.parquet").unlink()
    with pytest.raises(SourceError, match=r"year=2023/a.parquet' is no longer there"):
        batch_sdk.resume(out, errors=True)


def test_tables_in_memory_are_passed_again(tmp_path):
    table = pa.table({"id": range(20), "text": [f"t{i}" for i in range(20)]})
    for name, data in (("arrow", table), ("polars", pl.from_arrow(table))):
        out = tmp_path / name
        with pytest.raises(EngineError):
            run("generate", data, out, engine_for("generate", die_after_requests=9))
        with pytest.raises(OutputError, match="pass it"):
            batch_sdk.resume(out, model=engine_for("generate"))
        with pytest.raises(OutputError, match="input's rows was 20"):
            batch_sdk.resume(out, data[:19], model=engine_for("generate"))
        batch_sdk.resume(out, data, model=engine_for("generate"), progress=False)
        assert read(out).column("id").to_pylist() == list(range(20))


def test_streams_run_and_cannot_be_resumed(tmp_path):
    table = pa.table({"text": [f"t{i}" for i in range(20)]})
    lazy = pl.from_arrow(table).lazy()
    with pytest.raises(EngineError):
        run("generate", lazy, tmp_path / "o", engine_for("generate", die_after_requests=9))
    assert batch_sdk.status(tmp_path / "o").total_rows is None
    with pytest.raises(OutputError, match="cannot be recognised again"):
        run("generate", lazy, tmp_path / "o", resume=True)
    assert run("generate", table.to_reader(), tmp_path / "p").rows == 20
    assert batch_sdk.status(tmp_path / "p").total_rows == 20


def test_nobody_is_told_to_resume_what_cannot_be_resumed(tmp_path):
    table = pa.table({"text": [f"text {i}" for i in range(20)]})
    with pytest.raises(EngineError):
        run("generate", table.to_reader(), tmp_path / "o", engine_for("generate", die_after_requests=9))
    said = hint(str(tmp_path / "o"))
    assert "8 rows are in" in said
    assert "arctic-batch resume" not in said
    for data in (None, table):
        with pytest.raises(
            OutputError, match=r"a URL, a dataset, a stream or a lazy query, .* delete the directory"
        ):
            batch_sdk.resume(tmp_path / "o", data)
    with pytest.raises(
        OutputError, match=r"the input is a URL, .* cannot be recognised again.* delete the directory"
    ):
        run("generate", table.to_reader(), tmp_path / "o", resume=True)
    with pytest.raises(OutputError, match=r"8 rows; wanted a new path; delete the directory and begin anew"):
        run("generate", table.to_reader(), tmp_path / "o")
    assert "delete the directory and begin anew, or choose another output" in said
    with pytest.raises(OutputError, match="delete the directory first"):
        run("generate", table.to_reader(), tmp_path / "o", overwrite=True)
    with pytest.raises(OutputError, match=r"8 rows; wanted a new path; pass overwrite=True"):
        run("generate", table, tmp_path / "o")  # of this it is known what it reads
    shutil.rmtree(tmp_path / "o")
    assert run("generate", table.to_reader(), tmp_path / "o").rows == 20
    with pytest.raises(OutputError, match=r"o' exists; wanted a new path; delete the directory"):
        run("generate", table.to_reader(), tmp_path / "o")


def test_nonsense(files, tmp_path):
    run("generate", files, tmp_path / "o.parquet")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").touch()
    for error, says, options in (
        (OutputError, "one file", {"out": tmp_path / "o.parquet", "resume": True}),
        (OutputError, "no manifest", {"out": tmp_path / "mine", "resume": True}),
        (OptionError, "one of them", {"out": tmp_path / "q", "resume": True, "overwrite": True}),
        (OptionError, "resume='yes'", {"out": tmp_path / "q", "resume": "yes"}),
        (OptionError, "without an output", {"out": None, "resume": True}),
        (OptionError, "max_restarts=-1", {"out": tmp_path / "q", "max_restarts": -1}),
        (OutputError, "part_seconds=0", {"out": tmp_path / "q", "part_seconds": 0}),
        (OutputError, "rows_per_file=0", {"out": tmp_path / "q", "rows_per_file": 0}),
        (OutputError, "no output of a batch job", {"out": tmp_path / "q", "resume": "errors"}),
    ):
        with pytest.raises(error, match=says):
            run("generate", files, **options)
        assert not (tmp_path / "q").exists()
    for path, says in (
        (tmp_path / "o.parquet", "never unfinished"),
        (tmp_path / "mine", "holds no batch job"),
    ):
        with pytest.raises(OutputError, match=says):
            batch_sdk.status(path)
        with pytest.raises(OutputError, match=says):
            batch_sdk.resume(path)


def test_somebody_elses_manifest_in_an_input(files, tmp_path):
    (files / "_manifest.json").write_text('{"entries": []}')
    assert run("generate", files, tmp_path / "o").rows == 20


@pytest.mark.parametrize(("module", "name"), [(fcntl, "flock"), (os, "open")])
def test_a_directory_that_goes_while_it_is_locked_is_made_again(tmp_path, monkeypatch, module, name):
    first, second = (Folder(tmp_path / "o") for _ in range(2))
    first.lock()
    real = getattr(module, name)

    def late(*args):
        first.unlock()  # between the second's making, its opening and its lock
        return real(*args)

    monkeypatch.setattr(module, name, late)
    second.lock()
    assert first.locked_elsewhere()
    (tmp_path / "o" / "file").touch()
    second.unlock()
    assert not first.locked_elsewhere()


def test_parts_are_bound_in_time(files, tmp_path):
    run("generate", files, tmp_path / "o", part_seconds=1e-9, rows_per_file=1000)
    assert batch_sdk.status(tmp_path / "o").parts == 10
    run("generate", files, tmp_path / "p", part_seconds=1e9, rows_per_file=1000)
    assert batch_sdk.status(tmp_path / "p").parts == 1


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_an_empty_table(tmp_path, task):
    empty = pa.table({"text": pa.array([], pa.string()), "x": pa.array([], pa.int8())})
    out = tmp_path / "o"
    assert run(task, empty, out).rows == 0
    assert run(task, empty, out, resume=True).rows == 0
    assert read(out).schema.names[:2] == ["text", "x"]
    assert batch_sdk.status(out).state == "complete"


TOUCHES = ((os, "replace"), (os, "fsync"), (Path, "write_text"), (Path, "unlink"))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Processes die here, not the machine: nothing has to reach the platter."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("calls", range(5))
@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(RowGroupWriter, "write"), (RowGroupWriter, "close"), (pq.ParquetWriter, "write_table")],
)
def test_ctrl_c_in_the_middle_of_a_write(files, tmp_path, monkeypatch, owner, name, effect, calls):
    """A part that may hold a row twice, or lack one, is dropped and not kept as a short one."""
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 1)
    run("generate", files, tmp_path / "whole")
    expected = read(tmp_path / "whole")
    real, left = getattr(owner, name), calls

    def interrupted(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == -1 and not effect:
            raise KeyboardInterrupt
        real(*args, **kwargs)
        if left == -1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        try:
            run("generate", files, tmp_path / "o")
        except KeyboardInterrupt:
            assert batch_sdk.status(tmp_path / "o").state == "stopped"
        else:
            assert name == "close", "a part is closed three times only"
    assert not list((tmp_path / "o").glob(".*"))
    run("generate", files, tmp_path / "o", resume=True)
    assert read(tmp_path / "o").equals(expected)


class Dead(BaseException):
    """The process is gone: nothing it does has an effect any more."""


class Reaper:
    """Lets a job do so many things to the disk, then kills it: that call has its effect, or not."""

    def __init__(self, patch: pytest.MonkeyPatch, life: int, effect: bool) -> None:
        self.life, self.effect, self.dead = life, effect, False
        for owner, name in TOUCHES:
            patch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, real):
        def call(*args, **kwargs):
            if self.dead:
                raise Dead
            self.life -= 1
            if self.life < 0:
                self.dead = True
                if self.effect:
                    real(*args, **kwargs)
                raise Dead
            return real(*args, **kwargs)

        return call


def sweep(job, check) -> int:
    """Run `job` once for every moment it can die at, then `check`. Returns how many there were."""
    for life in range(1000):
        for effect in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                Reaper(patch, life, effect)
                try:
                    job(life, effect)
                except Dead:
                    pass
                else:
                    return life
            check(life, effect)
    raise AssertionError("never done")


@pytest.mark.parametrize("task", ["generate"])
def test_death_at_every_touch_of_the_disk(files, tmp_path, task):
    run(task, files, tmp_path / "whole")
    expected = read(tmp_path / "whole")

    def check(life, effect):
        out = tmp_path / f"{life}-{effect}"
        if (out / "_manifest.json").exists():
            assert batch_sdk.status(out).rows <= 20
        run(task, files, out, resume=True)
        assert read(out).equals(expected), (life, effect)
        assert batch_sdk.status(out).state == "complete"
        assert not list(out.glob(".*"))

    moments = sweep(lambda life, effect: run(task, files, tmp_path / f"{life}-{effect}"), check)
    assert moments > 20


def test_death_while_an_old_output_is_replaced(files, tmp_path):
    run("generate", files, tmp_path / "whole", limit_rows=9)
    run("generate", files, tmp_path / "old", rows_per_file=9)
    expected = read(tmp_path / "whole")

    def job(life, effect):
        out = tmp_path / f"{life}-{effect}"
        shutil.copytree(tmp_path / "old", out)
        run("generate", files, out, limit_rows=9, overwrite=True)

    def check(life, effect):
        out = tmp_path / f"{life}-{effect}"
        if batch_sdk.status(out).state == "complete" and batch_sdk.status(out).rows == 20:
            assert read(out).num_rows == 20, "the old output is whole until the new manifest is there"
            return
        run("generate", files, out, limit_rows=9, resume=True)
        assert read(out).equals(expected)

    assert sweep(job, check) > 15


def odd_table() -> pa.Table:
    rows = 23
    nested = pa.struct([("x", pa.int32()), ("y", pa.list_(pa.large_string()))])
    table = pa.table(
        {
            "text": pa.array([None if i % 5 == 2 else f"tü {i}" for i in range(rows)], pa.large_string()),
            "kind": pa.array(["a", None, "b"] * 7 + ["c", "a"]).dictionary_encode(),
            "nested": pa.array(
                [None if i == 4 else {"x": i, "y": [str(i), None]} for i in range(rows)], nested
            ),
            "lists": pa.array([[{"x": i, "y": None}] * (i % 3) for i in range(rows)], pa.list_(nested)),
            "bytes": pa.array([None, b"\xff\x00", b""] * 7 + [b"x", None], pa.binary()),
            "nothing": pa.nulls(rows),
            "fixed": pa.array([[i, i + 1] for i in range(rows)], pa.list_(pa.int16(), 2)),
            "view": pa.array([f"v{i}" for i in range(rows)], pa.string_view()),
            "error.kind": pa.array([f"dotted {i}" for i in range(rows)]),
        }
    )
    cut = [table.slice(0, 1), table.slice(3, 0), table.slice(1, 9), table.slice(10)]
    return pa.concat_tables(cut)


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize("files_in", [False, True])
def test_odd_tables_stopped_resumed_and_mended(tmp_path, task, files_in):
    table, out, whole = odd_table(), tmp_path / "out", tmp_path / "whole"
    data = table
    if files_in:
        pq.write_table(table, tmp_path / "odd.parquet", row_group_size=5)
        data = [tmp_path / "odd.parquet"]
    run(task, data, whole, details_prefix="p_")
    dying = engine_for(task, die_after_requests=6, fail_on="tü 1")
    with pytest.raises(EngineError):
        run(task, data, out, dying, details_prefix="p_")
    run(task, data, out, engine_for(task, fail_on="tü 1"), details_prefix="p_", resume=True)
    before = read(out)
    assert before.column("p_error").null_count < read(whole).column("p_error").null_count
    summary = run(task, data, out, details_prefix="p_", resume="errors")
    assert read(out).equals(read(whole))
    assert (summary.rows, summary.errors) == (23, {"null_input": 5})
    assert batch_sdk.status(out).errors == {"null_input": 5}
    assert (
        read(out)
        .select(["kind", "nested", "lists", "bytes", "fixed"])
        .equals(before.select(["kind", "nested", "lists", "bytes", "fixed"]))
    )


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_only_error_rows_run_again(files, tmp_path, task):
    out, whole = tmp_path / "o", tmp_path / "whole"
    run(task, files, whole)
    run(task, files, out, engine_for(task, fail_on="text 1"), rows_per_file=3)
    wrong = batch_sdk.status(out).errors["rejected"]
    assert wrong == 11
    engine = engine_for(task)
    pace = {"window_rows": 2, "batch_rows": 3} | ({"block_rows": 1} if task == "embed" else {})
    summary = batch_sdk.resume(out, errors=True, model=engine, progress=False, **pace)
    assert engine.answered == wrong
    assert (summary.rows, summary.earlier_rows, summary.errors) == (20, 8, {"null_input": 1})
    assert read(out).equals(read(whole))
    engine = engine_for(task)
    batch_sdk.resume(out, errors=True, model=engine, progress=False)
    assert engine.answered == 0, "a null is refused before any engine"
    assert read(out).equals(read(whole))


def test_error_rows_do_not_keep_the_batches_that_they_come_from(tmp_path):
    rows, each = 1000, 50
    body = [("bad" if i % each == 7 else "") + "x" * 20_000 for i in range(rows)]
    pq.write_table(pa.table({"text": body}), tmp_path / "in.parquet", row_group_size=each)
    out = tmp_path / "o"
    run("generate", tmp_path / "in.parquet", out, engine_for("generate", fail_on="bad"), keep=[])
    sink = PatchSink(out, lambda: load_manifest(out))
    sink.prepare(pa.schema([]))
    before = pa.total_allocated_bytes()
    held = list(sink.missing(open_source(tmp_path / "in.parquet"), ["text"], each, None))
    assert [batch.column(0)[0].as_py()[:3] for batch in held] == ["bad"] * (rows // each)
    assert pa.total_allocated_bytes() - before < 3 * each * 20_000, "20 MB are in all the batches"
    sink.abort()


def test_error_rows_need_a_finished_job_and_an_engine_only_if_there_are_any(files, tmp_path):
    with pytest.raises(EngineError):
        run("generate", files, tmp_path / "o", engine_for("generate", die_after_requests=9))
    with pytest.raises(OutputError, match="unfinished"):
        run("generate", files, tmp_path / "o", resume="errors")
    run("generate", files, tmp_path / "p", limit_rows=3)
    assert run("generate", files, tmp_path / "p", limit_rows=3, resume="errors").earlier_rows == 3


@pytest.mark.parametrize("task", ["embed"])
def test_death_at_every_touch_of_the_disk_while_error_rows_run(files, tmp_path, task):
    run(task, files, tmp_path / "whole")
    run(task, files, tmp_path / "wrong", engine_for(task, fail_on="text 1"))
    expected = read(tmp_path / "whole")

    def job(life, effect):
        out = tmp_path / f"{life}-{effect}"
        shutil.copytree(tmp_path / "wrong", out)
        run(task, files, out, resume="errors")

    def check(life, effect):
        out = tmp_path / f"{life}-{effect}"
        assert read(out).num_rows == 20
        assert batch_sdk.status(out).state == "complete"
        run(task, files, out, resume="errors")
        assert read(out).equals(expected)
        assert batch_sdk.status(out).errors == {"null_input": 1}
        assert not list(out.glob(".*"))

    assert sweep(job, check) > 10


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.integers(0, 17),
    stops=st.lists(st.integers(0, 6), max_size=4),
    part=st.integers(1, 9),
    window=st.integers(1, 6),
    task=st.sampled_from(["generate", "embed"]),
)
def test_any_number_of_stops(tmp_path_factory, rows, stops, part, window, task):
    folder = tmp_path_factory.mktemp("stops")
    table = odd_table().slice(0, rows)
    pace = {"rows_per_file": part, "window_rows": max(2, window), "batch_rows": window}
    run(task, table, folder / "whole")
    for after in stops:
        dying = engine_for(task, die_after_requests=after, shuffle=True, seed=after)
        try:
            run(task, table, folder / "out", dying, resume=True, **pace)
        except EngineError:
            pass
    run(task, table, folder / "out", resume=True, **pace)
    assert read(folder / "out").equals(read(folder / "whole"))


def command(table, out):
    """Arguments of `arctic-batch` for a job on the dummy engine."""
    options = ["--model", "m", "--engine", "dummy", "--prompt", "say {{ text }}"]
    return ["generate", str(table), "-o", out, *options]


def test_the_command_line(files, tmp_path, capsys):
    out = str(tmp_path / "o")
    base = command(files, out)
    pace = ["--batch-rows", "2", "--window-rows", "2", "--max-restarts", "0"]
    dying = ["--engine-option", "die_after_requests=9", "--engine-option", 'fail_on="text 5"']
    assert cli.main([*base, *pace, *dying]) == 1
    err = capsys.readouterr().err
    rows = batch_sdk.status(out).rows
    assert rows > 0
    assert f"{rows} rows are kept; go on with: arctic-batch resume {out}" in err
    assert cli.main(["status", out]) == 0
    assert "state     stopped" in capsys.readouterr().out
    assert cli.main([*base, "--resume", "--temperature", "1"]) == 2
    assert "temperature was not given and is 1" in capsys.readouterr().err
    assert cli.main(["resume", out, "--engine-option", "die_after_requests=null", "--fail-on-error"]) == 1
    assert "rows      20 " in capsys.readouterr().out
    assert cli.main(["resume", out, "--errors", "--engine-option", "fail_on=null"]) == 0
    assert "errors    1 (null_input 1)" in capsys.readouterr().out
    assert cli.main(["status", out]) == 0
    assert "state     complete" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / "_manifest.json").read_text())["complete"] is True
    assert cli.main(["resume", str(tmp_path / "no")]) == 2
    assert cli.main(["status", str(tmp_path / "no")]) == 2
    assert "holds no batch job" in capsys.readouterr().err


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), RuntimeError("never seen before")])
def test_whatever_stops_a_job_half_way_says_what_is_kept(files, tmp_path, capsys, monkeypatch, cause):
    out = str(tmp_path / "o")
    real, closed = RowGroupWriter.close, []

    def full(self):
        closed.append(self)
        if len(closed) > 1:
            raise cause
        real(self)

    args = command(files, out)
    more = ["--rows-per-file", "7", "--batch-rows", "2", "--window-rows", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(RowGroupWriter, "close", full)
        if isinstance(cause, OSError):
            assert cli.main([*args, *more]) == 1
        else:
            with pytest.raises(RuntimeError):
                cli.main([*args, *more])
    assert f"7 rows are kept; go on with: arctic-batch resume {out}" in capsys.readouterr().err
    assert cli.main(args) == 2, "it is there, and nothing says to go on with it"
    assert "rows are kept" not in capsys.readouterr().err
    assert cli.main(["resume", out]) == 0


def test_a_broken_line_far_in_says_what_is_kept(tmp_path, capsys):
    with (tmp_path / "in.jsonl").open("w") as file:
        for _ in range(40):
            file.write(json.dumps({"text": "x" * 100_000}) + "\n")
        file.write("{")
    args = [
        "generate",
        str(tmp_path / "in.jsonl"),
        "-o",
        str(tmp_path / "o"),
        "--model",
        "m",
        "--engine",
        "dummy",
    ]
    assert cli.main([*args, "--prompt", "{{ text[:9] }}", "--batch-rows", "2", "--window-rows", "2"]) == 1
    err = capsys.readouterr().err
    assert "line 41" in err
    assert "rows are kept; go on with" in err


def test_a_file_whose_name_is_no_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.parquet")
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(20)]}), tmp_path / "in.parquet")
    os.rename(tmp_path / "in.parquet", tmp_path / name)
    with pytest.raises(EngineError):
        run("generate", tmp_path / name, tmp_path / "o", engine_for("generate", die_after_requests=9))
    batch_sdk.resume(tmp_path / "o", model=engine_for("generate"), progress=False)
    assert read(tmp_path / "o")["text"].to_pylist() == [f"text {i}" for i in range(20)]
