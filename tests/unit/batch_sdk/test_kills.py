"""Jobs in processes of their own, killed at random moments and resumed: nothing lost, nothing twice.

`pytest tests/unit/batch_sdk/test_kills.py --kills 50` is the long run.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk import cli
from batch_sdk.errors import OutputError, SourceError
from batch_sdk.folder import load_manifest

ROWS = 1500
COMMANDS = {
    "generate": ["--prompt", "say {{ text }}", "--sampling", "min_new_tokens=1"],
    "embed": ["--column", "text", "--block-rows", "8"],
}
DELAY = ["--engine-option", "delay_seconds=0.002", "--engine-option", "shuffle=true"]
SIZES = ["--rows-per-file", "37", "--window-rows", "32", "--batch-rows", "16"]


@pytest.fixture(scope="module")
def processes():
    """Forks jobs off a process that has imported the SDK already: a start takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "batch_sdk.cli",
            "batch_sdk.engines.dummy",
            "batch_sdk.sinks.parts",
            "pyarrow.dataset",
            "pandas",
            "pytest",
            "ray.data",
        ]
    )
    return context


@pytest.fixture(scope="module")
def cluster(ray_address):
    """Arguments that put a job on the cluster."""
    return ["--executor", "ray", "--replicas", "2", "--ray-address", ray_address]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of uneven sizes, one of them empty, with nulls and a row that is refused."""
    folder = tmp_path_factory.mktemp("in")
    texts = [None if i % 97 == 5 else "poison" if i % 211 == 9 else f"text {i} ü" for i in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": texts, "tags": [[str(i)] * (i % 3) for i in range(ROWS)]})
    start = 0
    for number, rows in enumerate([1, 400, 0, 799, 300]):
        pq.write_table(table.slice(start, rows), folder / f"{number}.parquet", row_group_size=100)
        start += rows
    assert start == ROWS
    return folder


def command(name, folder, out, *more) -> list[str]:
    shared = ["--model", "m", "--engine", "dummy", "--engine-option", "fail_on=poison", "--no-progress"]
    return [name, str(folder), "-o", str(out), *shared, *COMMANDS[name], *SIZES, *more]


def read(out) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def stamp(out) -> int | None:
    """When the manifest was last replaced."""
    try:
        return (out / "_manifest.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def check_whole_parts(out, gaps: bool = False) -> int:
    """What is recorded after a kill is readable, and says where it stops."""
    try:
        found = batch_sdk.status(out)
    except OutputError:
        assert not list(out.glob("part-*")), "parts without a manifest"
        return 0
    assert found.state in ("stopped", "complete")
    there = sorted(out.glob("part-*.parquet"))
    if gaps:  # parts are recorded in any order
        names = [part.name for part in load_manifest(out).parts]
        there = [path for path in there if path.name in names]
    recorded = [pq.read_table(path) for path in there[: found.parts]]
    assert sum(part.num_rows for part in recorded) == found.rows
    return found.rows


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(processes, folder, tmp_path, name, request):
    kills = max(1, request.config.getoption("--kills") // len(COMMANDS))
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    assert cli.main(command(name, folder, tmp_path / "unbroken")) == 0
    expected = read(tmp_path / "unbroken")
    begun = time.monotonic()
    assert cli.main(command(name, folder, tmp_path / "timed", *DELAY)) == 0
    run_seconds = time.monotonic() - begun
    assert expected.num_rows == ROWS
    done, rounds, seen = 0, 0, []
    while done < kills:
        rounds += 1
        out = tmp_path / f"out{rounds}"
        while True:
            resume = ["--resume"] if out.exists() else []
            argv = ["resume", str(out)] if resume and out.joinpath("_manifest.json").exists() else None
            # Both ways to go on take turns.
            if argv is None or dice.random() < 0.5:
                argv = command(name, folder, out, *DELAY, *resume)
            job = processes.Process(target=cli.main, args=(argv,))
            before = stamp(out)
            job.start()
            while stamp(out) == before and job.is_alive():
                time.sleep(0.001)
            # From the moment it begins to write: a quarter of the run, or to its end after the last kill.
            job.join(timeout=dice.uniform(0, 0.25 * run_seconds) if done < kills else 60)
            if job.is_alive():
                job.kill()
                job.join()
                done += 1
                seen.append(check_whole_parts(out))
                continue
            assert job.exitcode == 0
            break
        assert read(out).equals(expected), f"seed {seed}"
        assert sorted(os.listdir(out)) == ["_manifest.json", *sorted(p.name for p in out.glob("part-*"))]
    print(f"{name}: {done} kills over {rounds} outputs of {run_seconds:.1f} s, rows there at each: {seen}")
    assert any(0 < rows < ROWS for rows in seen), "no kill came between two parts"


@pytest.mark.parametrize("name", COMMANDS)
def test_drivers_of_a_cluster_killed_at_random_moments(processes, cluster, folder, tmp_path, name, request):
    """Each kill but the last run's comes on one cluster: what a dead driver leaves there is part of the test."""
    kills = max(1, request.config.getoption("--kills") // 4)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    assert cli.main(command(name, folder, tmp_path / "unbroken")) == 0
    expected = read(tmp_path / "unbroken")
    done, rounds, seen = 0, 0, []
    slow = ["--engine-option", "delay_seconds=0.01", "--engine-option", "shuffle=true"]
    while done < kills:
        rounds += 1
        out, before = tmp_path / f"out{rounds}", 0
        while True:
            where = cluster if done < kills and dice.random() < 0.8 else []
            argv = ["resume", str(out), *where]
            if not out.joinpath("_manifest.json").exists():
                argv = command(name, folder, out, *slow, *where, *(["--resume"] if out.exists() else []))
            job = processes.Process(target=cli.main, args=(argv,))
            job.start()
            if done >= kills:
                job.join(timeout=60)
            elif dice.random() < 0.2:  # while it starts, mostly
                job.join(timeout=dice.uniform(0, 4))
            else:
                while rows_in(out) == before and job.is_alive():
                    time.sleep(0.001)
                job.join(timeout=dice.uniform(0, 1.5))
            if not job.is_alive():
                assert job.exitcode == 0
                break
            job.kill()
            job.join()
            done += 1
            before = check_whole_parts(out, gaps=True)
            seen.append(before)
        assert read(out).equals(expected), f"seed {seed}"
        assert sorted(os.listdir(out)) == ["_manifest.json", *sorted(p.name for p in out.glob("part-*"))]
    print(f"{name}: {done} kills over {rounds} outputs, rows there at each: {seen}")


def rows_in(out) -> int:
    try:
        return batch_sdk.status(out).rows
    except OutputError:
        return 0


def wait_for_rows(job, out) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if batch_sdk.status(out).rows:
                return
        except OutputError:
            pass
        assert time.monotonic() < deadline
        assert job.is_alive()
        time.sleep(0.005)


def test_only_one_process_writes_and_others_see_it(processes, folder, tmp_path):
    out = tmp_path / "out"
    argv = command("generate", folder, out, "--engine-option", "delay_seconds=0.05")
    job = processes.Process(target=cli.main, args=(argv,))
    job.start()
    try:
        wait_for_rows(job, out)
        found = batch_sdk.status(out)
        assert (found.state, found.total_rows) == ("running", ROWS)
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="another process writes"):
                batch_sdk.generate(folder, prompt="x", model="m", engine="dummy", output=out, **options)
        with pytest.raises(SourceError, match="not finished"):
            batch_sdk.generate(out, prompt="x", model="m", engine="dummy")
    finally:
        job.kill()
        job.join()
    found = batch_sdk.status(out)
    assert found.state == "stopped"
    assert "state     stopped" in str(found)
    assert f"of {ROWS:,}" in str(found)


def stopped_by(number, argv, out, patience) -> tuple[int, str]:
    """Send a job a signal so many seconds after it began to write; return its exit code and last words."""
    job = subprocess.Popen([sys.executable, "-m", "batch_sdk.cli", *argv], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".part-*")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(patience)
    job.send_signal(number)
    _, err = job.communicate(timeout=60)
    return job.returncode, err


@pytest.mark.parametrize(("number", "code", "says"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_signals_keep_what_is_finished(folder, tmp_path, number, code, says):
    argv = command("generate", folder, "OUT", "--engine-option", "delay_seconds=0.02", "--batch-rows", "4")
    argv[argv.index("--rows-per-file") + 1] = "1000000"
    for patience in (0.1, 0.5, 2):  # on a busy machine nothing may be finished so soon
        out = tmp_path / f"out{patience}"
        argv[argv.index("-o") + 1] = str(out)
        returned, err = stopped_by(number, argv, out, patience)
        assert returned == code
        found = batch_sdk.status(out)
        if found.parts:
            break
    assert (found.state, found.parts) == ("stopped", 1)
    assert 0 < found.rows < ROWS
    assert (
        err == f"arctic-batch: {says}; {found.rows:,} rows are kept; go on with: arctic-batch resume {out}\n"
    )
    assert cli.main(["resume", str(out), "--engine-option", "delay_seconds=0"]) == 0
    assert read(out).column("id").to_pylist() == list(range(ROWS))
