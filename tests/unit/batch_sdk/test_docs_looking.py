"""docs/batch-looking.md: its examples run, and its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import polars as pl

from batch_sdk import cli
from batch_sdk.chunks import Tally
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.figures import Figures
from batch_sdk.metrics import RunCollector
from batch_sdk.report.facts import Facts
from tests.engine.servers import free_port

PAGE = (Path(__file__).parents[3] / "docs" / "batch-looking.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(first, "batch-looking.md", "exec"), names)
    exec(compile(second, "batch-looking.md", "exec"), names)
    commands = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)).splitlines()
    assert len(commands) == 3
    for command in commands:
        program, *args = shlex.split(command.replace("9400", str(free_port())))
        assert program == "arctic-batch"
        assert cli.main(args) == 0, capsys.readouterr().err
    assert json.loads(Path("vectors-run.json").read_text())["command"] == "embed"


def test_the_reports_fields_are_all_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"body": ["a"]}).write_parquet("docs.parquet")
    args = ["embed", "docs.parquet", "-c", "body", "-m", "m", "--engine", "dummy", "-o", "v.parquet"]
    assert cli.main([*args, "--report", "run"]) == 0
    named = [name for row in re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE) for name in row.split(", ")]
    for field in json.loads(Path("run.json").read_text()):
        assert f"`{field}`" in named, field


def test_the_metrics_are_all_named():
    tally = Tally(cached_tokens=0)
    tally.errors["rejected"] += 1
    engine = DummyEngine(model="m", task="embed", options={})
    facts = Facts("embed", {"model": "m"}, "dummy", {}, {}, (), 0, 3, None)
    found = set()
    for metric in RunCollector(Figures(tally, engine, None), facts).collect():
        for sample in metric.samples:
            labels = f"{{{', '.join(sample.labels)}}}" if sample.labels else ""
            found.add(sample.name + labels)
    assert found == set(re.findall(r"^\| `(arctic_batch_[^`]*)` \|", PAGE, re.MULTILINE))
