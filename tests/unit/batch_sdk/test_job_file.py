"""Jobs as YAML files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk import cli

GENERATE = """
command: generate
input: [a.parquet, b.parquet]
output: out
model: m
engine: dummy
engine_options: {words: 3}
prompt: |
  Sort this:
  {{ text }}
response_format:
  type: object
  properties: {kind: {enum: [bug, wish]}}
  required: [kind]
  additionalProperties: false
max_new_tokens: 40
temperature: 0.5
stop: [END]
keep: [id]
rows_per_file: 4
"""
EMBED = """
command: embed
input: a.parquet
output: vectors.parquet
model: m
engine: dummy
column: text
normalize: true
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, start in (("a", 0), ("b", 5)):
        ids = range(start, start + 5)
        pq.write_table(pa.table({"id": ids, "text": [f"text {i}" for i in ids]}), f"{name}.parquet")
    return tmp_path


def run(files, text, *flags):
    (files / "job.yaml").write_text(text, encoding="utf-8")
    return cli.main(["run", "job.yaml", *flags])


def test_it_is_the_call_with_these_arguments(files, capsys):
    assert run(files, GENERATE) == 0
    assert "rows      10" in capsys.readouterr().out
    found = pa.concat_tables([pq.read_table(path) for path in sorted((files / "out").glob("part-*"))])
    assert [part.rows for part in (batch_sdk.status("out"),)] == [10]
    schema = {
        "type": "object", "properties": {"kind": {"enum": ["bug", "wish"]}}, "required": ["kind"],
        "additionalProperties": False,
    }  # fmt: skip
    wanted = batch_sdk.generate(
        ["a.parquet", "b.parquet"], prompt="Sort this:\n{{ text }}\n", model="m", engine="dummy",
        engine_options={"words": 3}, response_format=schema, max_new_tokens=40, temperature=0.5, stop=["END"],
        keep=["id"],
    )  # fmt: skip
    assert found.equals(wanted)


def test_embed(files):
    assert run(files, EMBED, "--no-progress") == 0
    assert pq.read_table("vectors.parquet").column("embedding").null_count == 0


def test_again(files, capsys):
    assert run(files, GENERATE) == 0
    assert run(files, GENERATE) == 2
    assert "exists" in capsys.readouterr().err
    assert run(files, GENERATE, "--resume") == 0
    assert run(files, GENERATE, "--overwrite") == 0
    dies = (
        GENERATE.replace("words: 3", "words: 3, die_after_requests: 2") + "max_restarts: 0\nbatch_rows: 1\n"
    )
    capsys.readouterr()
    assert run(files, dies, "--overwrite") == 1
    assert "arctic-batch resume out" in capsys.readouterr().err


def test_error_rows_and_the_exit_code(files):
    assert run(files, EMBED.replace("engine: dummy", "engine: dummy\nengine_options: {fail_on: text 3}")) == 0
    poison = EMBED.replace(
        "engine: dummy", "engine: dummy\nengine_options: {fail_on: text 3}\noverwrite: true"
    )
    assert run(files, poison, "--fail-on-error") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds a NoneType"),
        ("- a", "holds a list"),
        ("a: [", "cannot be read"),
        ("command: sort", "command: 'sort'"),
        ("input: x", "command: None"),
        ("command: embed\ninput: a.parquet", "lacks 'output'"),
        (EMBED + "colum: x", "unknown field of the embed job 'colum' (did you mean 'column'?)"),
        (EMBED + "prompt: x", "unknown field of the embed job 'prompt'"),
        (EMBED + "1: x", "unknown field of the embed job '1'"),
        (GENERATE + "temperatur: 1", "did you mean 'temperature'?"),
        (GENERATE + "return_summary: true", "unknown field"),
        (GENERATE.replace("keep: [id]", "keep: id"), "keep='id'"),
    ],
)
def test_nonsense(files, text, says, capsys):
    assert run(files, text) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert cli.main(["run", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
