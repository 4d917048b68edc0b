"""README.md: its batch commands run one after another, in a folder with what they name."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import polars as pl

from batch_sdk import cli, engines
from tests.unit.batch_sdk.stand import Stand

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_the_shell_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(engines.ENGINES, "sglang", f"{Stand.__module__}:Stand")
    (tmp_path / "in").mkdir()
    pl.DataFrame({"body": [f"text {i}" for i in range(7)]}).write_parquet("in/a.parquet")
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    lines = re.findall(r"^arctic-batch .*$", README, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["generate", "resume", "embed", "openai"]
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, capsys.readouterr().err
    assert pl.read_parquet("out/*.parquet").height == pl.read_parquet("vectors/*.parquet").height == 7
    assert "response" in pl.read_parquet("vectors/*.parquet").columns
    assert json.loads((tmp_path / "answers.jsonl").read_text())["custom_id"] == "a"
