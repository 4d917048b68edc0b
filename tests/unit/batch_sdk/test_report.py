"""What a report holds, where it goes, and that it is there whatever ended the job."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk import cli, errors
from batch_sdk.chunks import Tally
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.report import Report
from batch_sdk.report.recorder import EDGES, Examples, Histogram, Timeline

TABLE = pa.table({"text": ["a b", None, "bad ü", "c", "bad two"]})


def run(path: Path, data=TABLE, command="generate", **more):
    shared = {"model": "m", "engine": "dummy", "progress": False, "report": path / "run"} | more
    if command == "embed":
        return batch_sdk.embed(data, column="text", **shared)
    return batch_sdk.generate(data, prompt="say {{ text }}", **shared)


def read(path: Path) -> dict:
    return json.loads((path / "run.json").read_text(encoding="utf-8"))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_timeline_is_bounded_and_loses_nothing():
    draw, clock, tally = random.Random(0), Clock(), Tally()
    tally.rows = 17  # of an earlier run
    line = Timeline(tally, clock)
    most = 0
    for _ in range(20_000):
        clock.now += draw.choice((0.001, 0.03, 0.2, 5.0))
        tally.rows += draw.randrange(5)
        tally.prompt_tokens += draw.randrange(50)
        tally.completion_tokens += 1
        tally.errors["rejected"] += draw.randrange(2)
        line.tick()
        most = max(most, len(line.spans))
    tally.rows += 3
    clock.now += 0.5
    line.finish(clock.now)
    assert 100 < most < 240
    spans = line.spans
    assert spans[0].start == 0
    assert spans[-1].end == pytest.approx(clock.now - 100)
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    assert sum(span.rows for span in spans) == tally.rows - 17
    assert sum(span.prompt_tokens for span in spans) == tally.prompt_tokens
    assert sum(span.completion_tokens for span in spans) == 20_000
    assert sum(span.error_rows for span in spans) == tally.errors["rejected"]
    lengths = [span.end - span.start for span in spans]
    assert np.median(lengths) > 50


def test_a_short_last_span_joins_its_neighbour():
    clock, tally = Clock(), Tally()
    line = Timeline(tally, clock)
    line.finish(clock.now)
    assert line.spans == []
    for _ in range(3):
        clock.now += 0.11
        tally.rows += 10
        line.tick()
    clock.now += 0.01
    line.finish(clock.now)
    assert len(line.spans) == 3
    tally.rows += 1
    line.finish(clock.now)
    assert [span.rows for span in line.spans] == [10, 10, 11]
    clock.now += 60  # nothing came for a minute, and that shows
    line.finish(clock.now)
    assert [span.rows for span in line.spans] == [10, 10, 11, 0]


def test_edges():
    assert EDGES.tolist()[:13] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert (np.diff(EDGES) > 0).all()
    assert (EDGES[5:] / EDGES[4:-1] <= 1.25).all()
    assert EDGES[-1] > 14_000_000


def test_histograms_count_what_counting_one_by_one_counts():
    draw = np.random.default_rng(1)
    values = np.concatenate(
        [draw.integers(0, 9, 50), draw.lognormal(5, 2, 3000).astype(int), [2**31 - 1, 0, 1]]
    )
    histogram = Histogram()
    for start in range(0, len(values), 700):
        piece = values[start : start + 700]
        histogram.add(pa.array(piece, pa.int32(), mask=piece == 3))
    histogram.add(pa.array([None, None], pa.int32()))
    histogram.add(pa.array([], pa.int32()))
    values = values[values != 3]
    found = histogram.to_data()
    assert found["rows"] == len(values)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["largest"] == 2**31 - 1
    for low, high, rows in found["bins"]:
        assert rows == ((low <= values) & (values <= high)).sum()
    assert sum(rows for _, _, rows in found["bins"]) == len(values)
    assert Histogram().to_data() == {"rows": 0, "mean": None, "largest": 0, "bins": []}


def test_examples_are_the_first_of_every_kind():
    examples = Examples()
    kinds = ["rejected", None, "null_input", "rejected"] * 4
    rows = [
        None if kind is None else {"kind": kind, "message": f"{i} ü" + "x" * 999}
        for i, kind in enumerate(kinds)
    ]
    array = pa.array([None, *rows], pa.struct([("kind", pa.string()), ("message", pa.string())]))[1:]
    for start in range(0, 16, 5):
        examples.add(array[start : start + 5], lambda row, start=start: 100 + start + row)
    examples.add(array[1:2], lambda row: row)
    assert [one["row"] for one in examples.found["rejected"]] == [100, 103, 104, 107, 108]
    assert [one["row"] for one in examples.found["null_input"]] == [102, 106, 110, 114]
    message = examples.found["rejected"][1]["message"]
    assert message.startswith("3 ü")
    assert len(message) == 500


def test_what_it_says(tmp_path):
    options = {"fail_on": "bad", "words": 3}
    summary = run(tmp_path, engine_options={**options}, output=tmp_path / "o.jsonl", stop=["END"], chat=False)
    found = read(tmp_path)
    assert (found["kind"], found["state"], found["problem"]) == ("arctic-batch report", "complete", None)
    assert (found["command"], found["engine"], found["total_rows"]) == ("generate", "dummy", 5)
    assert found["engine_options"] == options
    assert found["job"]["prompt"] == "say {{ text }}"
    assert found["job"]["sampling"]["stop"] == ["END"]
    assert found["summary"]["rows"] == 5
    assert found["summary"]["seconds"] == summary.seconds
    assert found["summary"]["rows_per_second"] == summary.rows_per_second
    assert found["output"] == found["summary"]["output"] == str(tmp_path / "o.jsonl")
    assert found["tokens"]["prompt_tokens"]["bins"] == [[2, 2, 1], [3, 3, 1]]
    assert found["tokens"]["completion_tokens"] == {"rows": 2, "mean": 3, "largest": 3, "bins": [[3, 3, 2]]}
    rejected = found["errors"]["rejected"]
    assert (rejected["rows"], [one["row"] for one in rejected["examples"]]) == (2, [2, 4])
    assert "'bad'" in rejected["examples"][0]["message"]
    assert found["errors"]["null_input"]["examples"][0]["row"] == 1
    assert sum(span["rows"] for span in found["throughput"]) == 5
    assert found["versions"]["arctic-sglang"]
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "run.html", "run.json"]


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("command", ["generate", "embed"])
def test_small_tables(tmp_path, rows, command):
    run(tmp_path, pa.table({"text": pa.array(["x"] * rows, pa.string())}), command)
    found = read(tmp_path)
    assert found["summary"]["rows"] == sum(found["tokens"]["prompt_tokens"]["bins"], [0])[-1] == rows
    assert "No row has an error." in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_secrets_and_odd_options_are_kept_out_and_in(tmp_path):
    class Odd(DummyEngine):
        def __init__(self, **options):
            super().__init__(model="m", task="generate", options={})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(batch_sdk.engines.ENGINES, "odd", f"{__name__}:Odd")
        patch.setitem(sys.modules, __name__, type("Module", (), {"Odd": Odd}))
        run(tmp_path, engine="odd", engine_options={"api_key": "s3cret", "hook": len, "tuple": (1, None)})
    assert "s3cret" not in (tmp_path / "run.json").read_text() + (tmp_path / "run.html").read_text()
    assert read(tmp_path)["engine_options"] == {"hook": "<built-in function len>", "tuple": [1, None]}


class Stopping(DummyEngine):
    """Answers twice, then is stopped by `error`."""

    error: BaseException

    def wait(self):
        if self.answered >= 2:
            raise self.error
        return super().wait()


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (SystemExit(143), "terminated", "143"),
        (errors.EngineError("it <b>broke</b>"), "failed", "it <b>broke</b>"),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError: a bug"),
    ],
)
@pytest.mark.parametrize("ending", ["o", "o.parquet"])
def test_whatever_ends_it(tmp_path, error, state, says, ending):
    engine = Stopping(model="m", task="generate", options={})
    engine.error = error
    engine.start()
    table = pa.table({"text": [str(i) for i in range(9)]})
    with pytest.raises(type(error)):
        run(
            tmp_path,
            table,
            model=engine,
            engine="sglang",
            window_rows=2,
            batch_rows=1,
            output=tmp_path / ending,
        )
    found = read(tmp_path)
    assert (found["state"], found["summary"]["rows"], found["total_rows"]) == (state, 2, 9)
    assert says in found["problem"]
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "2 of 9" in page
    assert "<b>" not in page


def test_the_engines_end_is_no_part_of_the_time(tmp_path, monkeypatch):
    closed = []

    def close(self):
        closed.append(time.monotonic())
        time.sleep(0.3)

    monkeypatch.setattr(DummyEngine, "close", close)
    for fails in (False, True):
        began = time.monotonic()
        with pytest.raises(errors.EngineError) if fails else nullcontext():
            run(tmp_path, engine_options={"die_after_requests": 0 if fails else None}, max_restarts=0)
        found = read(tmp_path)
        assert found["state"] == ("failed" if fails else "complete")
        assert found["summary"]["seconds"] <= closed[-1] - began
        assert all(span["end"] <= closed[-1] - began for span in found["throughput"])


def test_an_engine_that_does_not_start_is_reported(tmp_path):
    class Broken(DummyEngine):
        def start(self):
            raise errors.EngineError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batch_sdk.engines.dummy.DummyEngine", Broken)
        with pytest.raises(errors.EngineError):
            run(tmp_path)
    found = read(tmp_path)
    assert (found["state"], found["throughput"], found["summary"]["rows"]) == ("failed", [], 0)
    assert found["summary"]["seconds"] == 0
    assert "EngineError: no memory" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_resumed_runs_are_told_apart_and_rows_are_the_inputs(tmp_path):
    table = pa.table({"id": range(40), "text": ["bad" if i in (3, 11, 31) else f"t{i}" for i in range(40)]})
    pl.from_arrow(table).write_parquet(tmp_path / "in.parquet")
    options = {
        "data": tmp_path / "in.parquet", "output": tmp_path / "out", "window_rows": 8, "batch_rows": 4,
        "max_restarts": 0,
    }  # fmt: skip
    with pytest.raises(errors.EngineError):
        run(tmp_path, **options, engine_options={"fail_on": "bad", "die_after_requests": 10})
    kept = batch_sdk.status(tmp_path / "out").rows
    assert 0 < kept < 12
    options |= {"engine_options": {"fail_on": "bad"}}
    run(tmp_path, **options, resume=True)
    found = read(tmp_path)
    assert (found["summary"]["rows"], found["summary"]["earlier_rows"]) == (40, kept)
    assert sum(span["rows"] for span in found["throughput"]) == 40 - kept
    assert [one["row"] for one in found["errors"]["rejected"]["examples"]] == [
        row for row in (3, 11, 31) if row >= kept
    ]
    assert found["errors"]["rejected"]["rows"] == 3
    assert f"{kept} of the rows were done by earlier runs" in (tmp_path / "run.html").read_text("utf-8")
    before = (tmp_path / "run.json").read_bytes()
    run(tmp_path, **options, resume=True)
    assert (tmp_path / "run.json").read_bytes() == before, "nothing ran, nothing to report"
    batch_sdk.resume(tmp_path / "out", errors=True, report=tmp_path / "run", progress=False)
    found = read(tmp_path)
    assert [one["row"] for one in found["errors"]["rejected"]["examples"]] == [3, 11, 31]
    assert sum(span["rows"] for span in found["throughput"]) == 3


def test_rows_of_gaps_are_the_inputs(tmp_path):
    """Workers side by side leave parts that are recorded behind rows that are missing."""
    bad = (4, 11, 25, 38)
    table = pa.table({"text": ["bad" if i in bad else f"t{i}" for i in range(40)]})
    options = {"output": tmp_path / "out", "rows_per_file": 5, "engine_options": {"fail_on": "bad"}}
    run(tmp_path, table, **options)
    path = tmp_path / "out" / "_manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest |= {"complete": False, "parts": [manifest["parts"][i] for i in (0, 1, 3, 4, 6)]}
    path.write_text(json.dumps(manifest), "utf-8")
    run(tmp_path, table, **options, resume=True)
    found = read(tmp_path)["errors"]["rejected"]
    assert (found["rows"], [one["row"] for one in found["examples"]]) == (4, [11, 25, 38])


def test_restarts_are_in_it(tmp_path):
    table = pa.table({"text": [f"t{i}" for i in range(20)]})
    run(tmp_path, table, engine_options={"die_on": "t13"}, max_restarts=6)
    found = read(tmp_path)
    assert found["summary"]["engine_restarts"] > 0
    assert [one["row"] for one in found["errors"]["engine_died"]["examples"]] == [13]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "a path without an ending"),
        ("a/", "a path without an ending"),
        (3, "report=3"),
        ("run.html", "report='run'"),
        ("run.json", "report='run'"),
        ("s3://bucket/run", "a local path"),
        ("nowhere/run", "a directory that can be written to"),
        ("out/run", "in the job's output"),
        ("taken", "exists and is no report"),
        ("schema", "exists and is no report"),
    ],
)
def test_nonsense_before_the_engine_starts(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DummyEngine, "start", lambda self: pytest.fail("the engine was started"))
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    with pytest.raises(errors.BatchError, match=says) as caught:
        run(tmp_path, report=name, output="out")
    assert "\n" not in str(caught.value)


def test_an_older_report_is_replaced_and_what_never_began_leaves_it(tmp_path):
    run(tmp_path, output=tmp_path / "o.parquet")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(errors.OutputError, match="exists"):
        run(tmp_path, output=tmp_path / "o.parquet")
    assert (tmp_path / "run.json").read_bytes() == before
    run(tmp_path, output=tmp_path / "o.parquet", overwrite=True)
    assert (tmp_path / "run.json").read_bytes() != before


def test_a_report_that_cannot_be_written(tmp_path, monkeypatch):
    def full(self, error):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Report, "_write", full)
    with pytest.raises(errors.OutputError, match=r"run\.json.*No space"):
        run(tmp_path, output=tmp_path / "o.parquet")
    assert pl.read_parquet(tmp_path / "o.parquet").height == 5
    with pytest.warns(UserWarning, match="No space"), pytest.raises(errors.EngineError, match="died"):
        run(tmp_path, engine_options={"die_after_requests": 0}, max_restarts=0)


def test_a_report_is_replaced_whole(tmp_path, monkeypatch):
    run(tmp_path)
    before = read(tmp_path)
    monkeypatch.setattr("batch_sdk.report.sync", lambda path: (_ for _ in ()).throw(OSError("torn")))
    with pytest.raises(errors.OutputError, match="torn"):
        run(tmp_path)
    assert read(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["run.html", "run.json"]


def test_lazy_frames_and_estimates_refuse(tmp_path):
    frame = pl.LazyFrame({"text": ["a"]})
    for name, value in (("report", "r"), ("metrics_port", 9400)):
        with pytest.raises(errors.OptionError, match=name):
            frame.arctic.embed("text", model="m", engine="dummy", **{name: value})
        with pytest.raises(errors.OptionError, match=f"{name} in an estimate"):
            batch_sdk.estimate(TABLE, prompt="{{ text }}", model="m", engine="dummy", **{name: value})


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"text": ["a", "b", "c"]}).write_parquet("in.parquet")
    shared = ["--model", "m", "--engine", "dummy"]
    assert cli.main(["embed", "in.parquet", "-c", "text", "-o", "v.parquet", "--report", "one", *shared]) == 0
    generate = ["generate", "in.parquet", "--prompt", "{{ text }}", "-o", "out", *shared]
    dies = ["--engine-option", "die_after_requests=1", "--batch-rows", "1", "--window-rows", "1"]
    assert cli.main([*generate, "--report", "two", *dies, "--max-restarts", "0"]) == 1
    again = ["resume", "out", "--report", "three", "--engine-option", "die_after_requests=null"]
    assert cli.main(again) == 0
    Path("job.yaml").write_text(
        "command: embed\ninput: in.parquet\noutput: w.parquet\nmodel: m\nengine: dummy\ncolumn: text\nreport: four\n"
    )
    assert cli.main(["run", "job.yaml"]) == 0
    assert cli.main(["run", "job.yaml", "--overwrite", "--report", "five"]) == 0
    states = {
        name: json.loads(Path(f"{name}.json").read_text())["state"]
        for name in ("one", "two", "three", "four")
    }
    assert states == {"one": "complete", "two": "failed", "three": "complete", "four": "complete"}
    assert Path("five.html").is_file()
    capsys.readouterr()
    assert cli.main(["run", "job.yaml", "--overwrite", "--report", "five.html"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for command in ("generate", "embed", "run", "resume"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        said = capsys.readouterr().out
        assert "--report" in said
        assert "--metrics-port" in said


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_to_a_real_process(tmp_path, number, code, state):
    pl.DataFrame({"text": [f"t{i}" for i in range(500)]}).write_parquet(tmp_path / "in.parquet")
    command = [
        sys.executable, "-m", "batch_sdk.cli", "generate", "in.parquet", "--prompt", "{{ text }}", "--model", "m",
        "--engine", "dummy", "--engine-option", "delay_seconds=0.05", "--window-rows", "2", "--batch-rows", "2",
        "-o", "out", "--part-seconds", "0.1", "--report", "run",
    ]  # fmt: skip
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, cwd=tmp_path, env=path, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/part-*")):
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) == code
    found = read(tmp_path)
    assert found["state"] == state
    assert 0 < found["summary"]["rows"] < 500
