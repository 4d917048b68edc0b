"""docs/batch-cluster.md: its examples run, and its table names every option."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import polars as pl
import pytest

import batch_sdk
from batch_sdk import cli, engines
from batch_sdk.executors.options import RayOptions
from tests.unit.batch_sdk.stand import Stand

PAGE = (Path(__file__).parents[3] / "docs" / "batch-cluster.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def for_here(text: str, address: str) -> str:
    """The example on the tests' cluster, which has no GPUs and four CPUs, with one worker: more are in `test_ray`."""
    for old, new in {
        '"replicas": 4': '"replicas": 1',
        "replicas: 4": "replicas: 1",
        "--replicas 4": "--replicas 1",
        "head:6379": address,
        '"gpus_per_replica": 1': '"gpus_per_replica": 0',
        "gpus_per_replica: 1": "gpus_per_replica: 0",
        "--gpus-per-replica 1": "--gpus-per-replica 0",
        "--replicas 8": "--replicas 1",
        "\\\n": " ",
    }.items():
        text = text.replace(old, new)
    return text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(engines.ENGINES, "sglang", f"{Stand.__module__}:Stand")
    Path("docs").mkdir()
    pl.DataFrame({"id": range(7), "body": [f"text {i}" for i in range(7)]}).write_parquet("docs/1.parquet")
    return tmp_path


def ids(name: str) -> list[int]:
    return pl.read_parquet(f"{name}/*.parquet")["id"].to_list()


def test_the_examples_run(folder, ray_address, capsys):
    for block in blocks("python"):
        exec(compile(for_here(block, ray_address), "batch-cluster.md", "exec"), {"MODEL": "m"})
    assert ids("out") == list(range(7))
    for line in for_here("".join(blocks("sh")), ray_address).splitlines():
        args = shlex.split(line)
        assert args[0] == "arctic-batch"
        assert cli.main(args[1:]) == 0, capsys.readouterr().err
    assert ids("vectors") == list(range(7))
    for block in blocks("yaml"):
        Path("job.yaml").write_text(for_here(block, ray_address))
        assert cli.main(["run", "job.yaml"]) == 0, capsys.readouterr().err
    assert ids("answers") == list(range(7))
    assert batch_sdk.status("answers").state == "complete"


def test_every_option_is_named_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| `--[\w-]+` \| ([\w.]+) \|", PAGE, re.MULTILINE))
    assert rows.keys() == {field.name for field in fields(RayOptions)}
    for field in fields(RayOptions):
        assert rows[field.name] == ("none" if field.default is None else f"{field.default:g}"), field.name


def test_every_flag_is_in_the_help(capsys):
    flags = re.findall(r"^\| `\w+` \| `(--[\w-]+)`", PAGE, re.MULTILINE)
    assert len(flags) == len(fields(RayOptions))
    for name in ("generate", "embed", "resume"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        text = capsys.readouterr().out
        assert all(flag in text for flag in flags)
