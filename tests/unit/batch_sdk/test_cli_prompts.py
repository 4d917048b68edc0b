"""The command line's options about prompts and responses."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_sdk import cli

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "hi"}]
    table = pa.table(
        {"body": ["one two", "b"], "budget": [2, None], "heat": [0.5, 0.7], "chat": [chat, chat]}
    )
    pq.write_table(table, "in.parquet")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": "say {{ body }}"}]))
    (tmp_path / "broken.json").write_text("{")
    return tmp_path


def run(*args: str) -> tuple[int, pa.Table | None]:
    code = cli.main(["generate", "in.parquet", "-o", "out.parquet", "-m", "m", "--engine", "dummy", *args])
    return code, pq.read_table("out.parquet") if code == 0 else None


PROMPT = ("--prompt", "say {{ body }}")


def test_messages(folder, capsys):
    _, plain = run(*PROMPT)
    _, listed = run("--messages-file", "chat.json", "--overwrite")
    assert listed.equals(plain)
    _, column = run("--messages-column", "chat", "--overwrite")
    assert column.column("response")[0] == column.column("response")[1]


def test_schema_samples_and_the_rest(folder, capsys):
    code, out = run(
        *PROMPT, "--response-schema", "schema.json", "--n", "2", "--logprobs", "--on-too-long", "truncate_middle",
        "--engine-option", "max_input_tokens=3", "--sampling-column", "temperature=heat",
        "--sampling-column", "max-new-tokens=budget", "--show", "1", "--keep-none",
    )  # fmt: skip
    assert code == 0
    struct = pa.struct([pa.field("a", pa.string(), nullable=False)])
    assert out.schema.field("response").type == pa.list_(struct)
    assert out.column("prompt_truncated").to_pylist() == [1, 0]
    assert out.schema.field("logprobs").type == pa.list_(pa.list_(pa.float32()))
    assert "response" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [("--choice", "a", "--choice", "b|c"), ("--regex", "[ab]"), ("--ebnf", 'root ::= "a"')]
)
def test_other_constraints(folder, capsys, option):
    code, out = run(*PROMPT, *option)
    assert code == 0
    assert out.schema.field("response").type == pa.string()
    if option[0] == "--choice":
        assert set(out.column("response").to_pylist()) <= {"a", "b|c"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--choice", "a", "--regex", "b"), "regex= together with choice="),
        (("--response-schema", "none.json"), "none.json"),
        (("--response-schema", "broken.json"), "broken.json"),
        (("--n", "0"), "n=0"),
        (("--sampling-column", "tempo=heat"), "unknown sampling option 'tempo'"),
        (("--sampling-column", "seed=budget", "--sampling-column", "seed=heat"), "given twice"),
        (("--sampling-column", "seed=nope"), "'nope'"),
        (("--on-too-long", "truncate_left"), "does not say how long"),
    ],
)
def test_nonsense_exits_2_with_one_line(folder, capsys, args, says):
    code, _ = run(*PROMPT, *args)
    err = capsys.readouterr().err
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "out.parquet").exists()


@pytest.mark.parametrize("file", ["none.json", "broken.json", "schema.json"])
def test_messages_files_that_hold_none(folder, capsys, file):
    code, _ = run("--messages-file", file)
    assert code == 2
    assert file in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [("--on-too-long", "cut"), ("--sampling-column", "seed"), ("--messages-column", "chat")]
)
def test_what_argparse_refuses(folder, capsys, args):
    with pytest.raises(SystemExit) as caught:
        run(*PROMPT, *args)
    assert caught.value.code == 2
