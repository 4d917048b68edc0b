"""docs/batch-engines.md: its examples run, and its tables name every option."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import polars as pl
import pytest

from batch_sdk import cli, engines
from batch_sdk.engines.dummy import DummyOptions
from batch_sdk.engines.http_options import HttpOptions
from tests.unit.batch_sdk.stand import Stand
from tests.unit.batch_sdk.stub_server import running_stubs

PAGE = (Path(__file__).parents[3] / "docs" / "batch-engines.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"id": range(7), "body": [f"text {i}" for i in range(7)]}).write_parquet("docs.parquet")
    return tmp_path


def test_the_python_examples_run(folder, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "sglang", f"{Stand.__module__}:Stand")
    names: dict = {"MODEL": "m"}
    with running_stubs() as stubs:
        one, two = stubs.start().url, stubs.start().url
        for block in blocks("python"):
            code = block.replace("http://one:30000", one).replace("http://two:30000", two)
            exec(compile(code, "batch-engines.md", "exec"), names)
    assert names["answers"].height == names["short"].height == 7
    assert pl.read_parquet("vectors.parquet")["id"].to_list() == [4, 5, 6]
    assert pl.read_parquet("all.parquet").height == 7


def test_the_shell_examples_run(folder, capsys):
    with running_stubs() as stubs:
        url = stubs.start(model="MODEL").url
        for block in blocks("sh"):
            args = shlex.split(block.replace("http://one:30000", url).replace("\\\n", " "))
            assert args[0] == "arctic-batch"
            assert cli.main(args[1:]) == 0, capsys.readouterr().err
    assert pl.read_parquet("vectors.parquet").height == pl.read_parquet("out.parquet").height == 7


@pytest.mark.parametrize("options", [HttpOptions, DummyOptions])
def test_every_option_is_named(options):
    for field in fields(options):
        assert f"`{field.name}`" in PAGE, field.name


def test_the_tables_defaults_are_the_codes():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", PAGE, re.MULTILINE))
    for field in fields(HttpOptions):
        if type(field.default) in (int, float):
            assert float(rows[field.name]) == field.default, field.name


def test_every_engine_is_in_the_table():
    assert set(re.findall(r"^\| `(\w+)` \| [\w ]*(?:SGLang|OpenAI|model)", PAGE, re.MULTILINE)) == set(
        engines.ENGINES
    )
