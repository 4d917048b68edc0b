"""Jobs on a Ray cluster of several processes: the rows of a local run, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import batch_sdk
from batch_sdk import cli, engines
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError, OptionError, OutputError, SourceError
from batch_sdk.executors.cluster import _check_address, wait_for_loops

ROWS = 103
SMALL = {"engine": "dummy", "model": "m", "window_rows": 8, "batch_rows": 4, "rows_per_file": 9}
TASKS = {
    "generate": {"prompt": "say {{ text }} now", "min_new_tokens": 1},
    "embed": {"column": "text", "block_rows": 3},
}
ON_RAY = {"executor": "ray", "executor_options": {"replicas": 2}}


@pytest.fixture(scope="module")
def cluster(ray_address):
    ray.init(address=ray_address, log_to_driver=False, logging_level="ERROR")
    yield ray_address
    ray.shutdown()


def table(rows: int) -> pa.Table:
    texts = [None if i % 17 == 5 else "poison" if i % 41 == 9 else f"text {i} ü" for i in range(rows)]
    return pa.table({"id": range(rows), "text": texts, "tags": [[str(i)] * (i % 3) for i in range(rows)]})


@pytest.fixture
def files(tmp_path) -> Path:
    folder, start = tmp_path / "in", 0
    folder.mkdir()
    for number, rows in enumerate([1, 50, 0, 52]):
        pq.write_table(table(ROWS).slice(start, rows), folder / f"{number}.parquet", row_group_size=10)
        start += rows
    return folder


def run(task: str, data, out, **more):
    options = {**SMALL, **TASKS[task], "engine_options": {"fail_on": "poison"}, "progress": False, **more}
    return getattr(batch_sdk, task)(data, output=out, **options)


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(out).glob("part-*.parquet"))])


def check_only_parts(out: Path) -> None:
    assert sorted(os.listdir(out)) == ["_manifest.json", *sorted(path.name for path in out.glob("part-*"))]


def workers() -> list[psutil.Process]:
    """Those of this test run's cluster, whose nodes are children of this process, and no others."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until(true, seconds=60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows_there(out) -> int:
    try:
        return batch_sdk.status(out).rows
    except OutputError:
        return 0


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_are_those_of_a_local_run(cluster, files, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    local = run(task, "in", "local")
    summary = run(task, "in", "out", **ON_RAY)
    assert read(tmp_path / "out").equals(read(tmp_path / "local"))
    check_only_parts(tmp_path / "out")
    assert summary.errors == local.errors == {"null_input": 6, "rejected": 3}
    for name in ("rows", "prompt_tokens", "completion_tokens", "earlier_rows", "engine_restarts"):
        assert getattr(summary, name) == getattr(local, name), name
    assert summary.output == str(tmp_path / "out")
    assert summary.engine_start_seconds > 0
    found = batch_sdk.status("out")
    assert (found.state, found.rows, found.errors) == ("complete", ROWS, dict(local.errors))
    assert run(task, "in", "out", resume=True, **ON_RAY).earlier_rows == ROWS


def test_the_report_is_that_of_a_local_run(cluster, files, tmp_path):
    found = []
    for number, more in enumerate(({}, ON_RAY)):
        run("generate", files, tmp_path / f"out{number}", report=tmp_path / f"run{number}", **more)
        found.append(json.loads((tmp_path / f"run{number}.json").read_text()))
        assert (tmp_path / f"run{number}.html").exists()
    local, remote = found
    assert remote["state"] == "complete"
    assert remote["tokens"] == local["tokens"]
    assert {kind: found["rows"] for kind, found in remote["errors"].items()} == {
        "null_input": 6,
        "rejected": 3,
    }
    # Parts come in any order, and of six there are five examples.
    shown = [example["row"] for example in remote["errors"]["null_input"]["examples"]]
    assert len(set(shown)) == 5
    assert all(row % 17 == 5 for row in shown)
    assert sum(span["rows"] for span in remote["throughput"]) == ROWS


def test_a_table_without_rows_is_one_part_with_the_schema(cluster, tmp_path):
    run("embed", table(0), tmp_path / "local")
    assert run("embed", table(0), tmp_path / "out", **ON_RAY).rows == 0
    assert read(tmp_path / "out").equals(read(tmp_path / "local"))
    assert batch_sdk.status(tmp_path / "out").state == "complete"


def test_one_row_of_a_frame_and_a_limit_from_a_job_file(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame(table(5))
    assert run("generate", frame, tmp_path / "one", limit_rows=1, **ON_RAY).rows == 1
    assert read(tmp_path / "one").column("id").to_pylist() == [0]
    table(40).to_pandas()[["id", "text"]].to_csv("in.csv", index=False)
    Path("job.yaml").write_text(
        "command: embed\ninput: in.csv\noutput: out/\nmodel: m\nengine: dummy\ncolumn: text\nlimit_rows: 33\n"
        "executor: ray\nexecutor_options: {replicas: 2}\nprogress: true\n"
    )
    assert cli.main(["run", "job.yaml"]) == 0
    assert "33/33" in capsys.readouterr().err
    assert read(tmp_path / "out").column("id").to_pylist() == list(range(33))


def test_killed_workers_cost_their_parts_and_no_row(cluster, files, tmp_path):
    out, killed = tmp_path / "out", []

    def kill_all() -> None:
        wait_until(lambda: rows_there(out))
        killed.extend(workers())
        for worker in killed:
            worker.kill()

    wait_until(lambda: not workers())
    killer = threading.Thread(target=kill_all)
    killer.start()
    slow = {"fail_on": "poison", "delay_seconds": 0.1}
    summary = run("generate", files, out, engine_options=slow, **ON_RAY)
    killer.join()
    run("generate", files, tmp_path / "local")
    assert read(out).equals(read(tmp_path / "local"))
    check_only_parts(out)
    assert (len(killed), summary.rows) == (2, ROWS)
    assert summary.engine_restarts in (1, 2)  # one may come back when all is done
    wait_until(lambda: not workers())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NeverStarts", r"^no weights in 'm'; wanted a model; look there$"),
        (
            "NotThere",
            r"^a worker failed: RaySystemError: System error: No module named 'NotThere'; see Ray's logs",
        ),
        ("KilledAtWork", r"^a worker has died 1 times; wanted 0 times at most"),
    ],
)
def test_workers_that_cannot_work_end_the_job_with_their_cause(
    cluster, files, tmp_path, monkeypatch, name, says
):
    monkeypatch.setitem(engines.ENGINES, "dummy", f"tests.unit.batch_sdk.deadly:{name}")
    out = tmp_path / "out"
    with pytest.raises(EngineError, match=says) as raised:
        run("generate", files, out, max_restarts=0, **ON_RAY)
    assert "\n" not in str(raised.value)
    wait_until(lambda: not workers())
    monkeypatch.undo()
    assert (rows_there(out) > 0) == (name == "KilledAtWork")
    run("generate", files, out, resume=True)
    assert read(out).column("id").to_pylist() == list(range(ROWS))
    check_only_parts(out)


def make_gaps(out: Path, numbers: set[int]) -> None:
    """Forget parts, as if workers had not got to them before a kill."""
    manifest = json.loads((out / "_manifest.json").read_text())
    manifest["parts"] = [part for index, part in enumerate(manifest["parts"]) if index not in numbers]
    manifest["complete"] = False
    (out / "_manifest.json").write_text(json.dumps(manifest))
    (out / ".work-0123abcd").mkdir()
    (out / ".work-0123abcd" / "part-00001.parquet.0").write_text("cut off")


@pytest.mark.parametrize("gaps", [{0}, {1, 2, 5}, {0, 3, 10, 11}, set(range(11))])
@pytest.mark.parametrize("died", [False, True])
def test_a_local_run_fills_the_gaps_that_workers_left(files, tmp_path, gaps, died):
    out, whole = tmp_path / "out", tmp_path / "whole"
    run("generate", files, whole)
    run("generate", files, out)
    make_gaps(out, gaps)
    kept = sum(9 if part < 11 else 4 for part in set(range(12)) - gaps)
    assert (batch_sdk.status(out).state, batch_sdk.status(out).rows) == ("stopped", kept)
    if died:
        with pytest.raises(EngineError):
            run("generate", files, out, resume=True, engine_options={"die_after_requests": 7}, max_restarts=0)
    # Another size of parts and old ones at once: what belongs into a gap stays as it was cut.
    summary = run("generate", files, out, resume=True, rows_per_file=5, part_seconds=1e-9, batch_rows=3)
    assert read(out).equals(read(whole))
    assert summary.rows == ROWS
    check_only_parts(out)


def test_a_job_goes_on_with_the_other_executor(cluster, files, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    run("generate", files, whole)
    with pytest.raises(EngineError):
        run(
            "generate",
            files,
            out,
            engine_options={"fail_on": "poison", "die_after_requests": 60},
            max_restarts=0,
        )
    begun = rows_there(out)
    assert 0 < begun < ROWS
    make_gaps(out, {1, 3})
    summary = batch_sdk.resume(out, progress=False, engine_options={"die_after_requests": None}, **ON_RAY)
    assert read(out).equals(read(whole))
    assert (summary.rows, summary.earlier_rows) == (ROWS, begun - 18)
    check_only_parts(out)


# That the command takes both alike is in test_kills and test_cli each time.
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_signal_leaves_a_job_to_resume_and_no_worker(cluster, files, tmp_path, number):
    out = tmp_path / "out"
    options = [
        "--engine",
        "dummy",
        "--model",
        "m",
        "--prompt",
        "x {{ text }}",
        "--engine-option",
        "delay_seconds=0.2",
    ]
    sizes = ["--rows-per-file", "9", "--window-rows", "4", "--batch-rows", "4", "--no-progress"]
    where = ["--executor", "ray", "--replicas", "2", "--ray-address", cluster]
    argv = [sys.executable, "-m", "batch_sdk.cli", "generate", str(files), "-o", str(out)]
    job = subprocess.Popen(
        [*argv, *options, *sizes, *where], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: rows_there(out))
    os.killpg(job.pid, number)  # as a terminal does
    _, err = job.communicate(timeout=60)
    assert job.returncode == 128 + number, err
    found = batch_sdk.status(out)
    assert found.state == "stopped"
    assert 0 < found.rows < ROWS
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert err.splitlines()[-1] == (
        f"arctic-batch: {word}; {found.rows} rows are kept; go on with: arctic-batch resume {out}"
    )
    assert "Traceback" not in err
    wait_until(lambda: not workers())
    assert cli.main(["resume", str(out), "--engine-option", "delay_seconds=0"]) == 0
    assert read(out).column("id").to_pylist() == list(range(ROWS))
    check_only_parts(out)


def test_ray_datas_threads_end_before_the_process_leaves_the_cluster():
    go = threading.Event()
    threads = [
        threading.Thread(target=go.wait, name=name, daemon=True)
        for name in ("StreamingExecutor-1", "iter_threaded", "another")
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    wait_for_loops(0.2)  # they hang: the job ends all the same
    assert 0.2 <= time.monotonic() - started < 5
    later = threading.Timer(0.2, go.set)
    later.start()
    wait_for_loops(30)
    assert not any(thread.is_alive() for thread in threads[:2])


def test_a_cluster_without_room_is_an_error_and_not_a_wait(cluster, files, tmp_path):
    options = {"replicas": 5, "wait_seconds": 0.3}
    with pytest.raises(EngineError, match="no room for 5 replicas of 1 CPU each: it has 4 CPU and 0 GPU"):
        run("generate", files, tmp_path / "o", executor="ray", executor_options=options)
    options |= {"replicas": 1, "gpus_per_replica": 0.5}
    with pytest.raises(EngineError, match=r"no room for 1 replicas of 1 CPU and 0\.5 GPU each"):
        run("generate", files, tmp_path / "o", executor="ray", executor_options=options)
    assert not (tmp_path / "o").exists()


def test_what_differs_is_refused_on_a_cluster_too(cluster, files, tmp_path):
    run("generate", files, tmp_path / "o")
    make_gaps(tmp_path / "o", {2})
    with pytest.raises(OutputError, match="temperature"):
        run("generate", files, tmp_path / "o", resume=True, temperature=0.5, **ON_RAY)
    options = {"replicas": 1, "address": "127.0.0.1:1"}
    with pytest.raises(OptionError, match="joined to a cluster"):
        run("generate", files, tmp_path / "o", resume=True, executor="ray", executor_options=options)


def started() -> DummyEngine:
    engine = DummyEngine(model="m", task="generate", options={})
    engine.start()
    return engine


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        (
            {"output": "o.parquet"},
            OutputError,
            "executor='ray' with one file as the output; wanted a directory",
        ),
        ({"output": None}, OutputError, "executor='ray' with a table in memory as the output"),
        ({"data": table(3).to_reader()}, SourceError, "a stream or a lazy query"),
        ({"data": pl.DataFrame(table(3)).lazy()}, SourceError, "a stream or a lazy query"),
        ({"model": started(), "engine_options": None}, OptionError, "a started engine"),
        ({"executor": "rey"}, OptionError, r"unknown executor 'rey' \(did you mean 'ray'\?\)"),
        ({"executor": "local"}, OptionError, "executor_options with executor='local'"),
        ({"executor_options": {"replica": 2}}, OptionError, r"did you mean 'replicas'\?"),
        ({"executor_options": {"replicas": 0}}, OptionError, "replicas=0"),
        ({"executor_options": {"replicas": True}}, OptionError, "replicas=True"),
        ({"executor_options": {"gpus_per_replica": -1}}, OptionError, "gpus_per_replica=-1"),
        ({"executor_options": {"cpus_per_replica": 0}}, OptionError, "one of them above 0"),
        ({"executor_options": {"wait_seconds": "1"}}, OptionError, "wait_seconds='1'"),
        ({"executor_options": {"address": "ray://head:10001"}}, OptionError, "wanted host:port"),
        ({"max_restarts": -1}, OptionError, "max_restarts=-1"),
    ],
)
def test_what_cannot_run_on_a_cluster_is_refused_in_one_line(files, tmp_path, monkeypatch, more, error, says):
    monkeypatch.chdir(tmp_path)
    options = {**ON_RAY, "data": files, "output": "o", **more}
    with pytest.raises(error, match=says):
        run("generate", options.pop("data"), options.pop("output"), **options)
    assert sorted(os.listdir(tmp_path)) == ["in"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_where_nobody_listens_is_an_error_at_once(address):
    with pytest.raises(EngineError, match=f"no Ray cluster at '{address}'"):
        _check_address(address)


def test_error_rows_are_for_one_machine(files, tmp_path):
    run("generate", files, tmp_path / "o")
    with pytest.raises(OptionError, match="resume='errors' with executor='ray'"):
        run("generate", files, tmp_path / "o", resume="errors", **ON_RAY)


def test_without_ray_the_error_says_what_to_install(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = ["generate", str(files), "-o", str(tmp_path / "o"), "-m", "m", "--engine", "dummy", "-p", "x"]
    assert cli.main([*argv, "--executor", "ray", "--replicas", "2"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("pip install 'arctic-sglang[ray]'\n")
    assert err.count("\n") == 1
