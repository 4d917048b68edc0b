"""The examples of docs/batch-prompts.md run as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch_sdk import cli

PAGE = (Path(__file__).parents[3] / "docs" / "batch-prompts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_python():
    found = blocks("python")
    assert len(found) >= 9
    # `dont_inherit`: this file's own annotations import would hide the models' types from pydantic.
    exec(compile("\n".join(found), "batch-prompts.md", "exec", dont_inherit=True), {"__name__": "docs"})


def test_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"body": ["x"], "budget": [50]}), "in.parquet")
    Path("chat.json").write_text(json.dumps([{"role": "user", "content": "{{ body }}"}]))
    Path("ticket.json").write_text(json.dumps({"properties": {"a": {"type": "string"}}}))
    (script,) = blocks("bash")
    lines = script.replace("\\\n", " ").strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        program, *args = shlex.split(line)
        assert program == "arctic-batch"
        assert cli.main(args) == 0, capsys.readouterr().err


def test_every_option_is_on_the_page():
    for option in (
        *("messages", "response_format", "regex", "ebnf", "choice", "n", "sampling_columns", "logprobs"),
        "on_too_long",
    ):
        assert re.search(rf"\b{option}\b ?=", PAGE), option
