"""docs/batch-options.md: its examples run, it names every option, every option is in an example."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk import cli

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "batch-options.md").read_text(encoding="utf-8")
# Pages whose commands run in tests.
RUN = [
    PAGE,
    *((DOCS / f"batch-{name}.md").read_text() for name in ("prompts", "engines", "looking", "cluster")),
]
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
TABLE = {
    name: row.split(" | ")[1]
    for row in re.findall(r"^\| (`.*) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`(--[\w-]+)`", row.split(" | ")[0])
}


def flags() -> dict[str, argparse.Action]:
    """Every long option of every command."""
    found: dict[str, argparse.Action] = {}

    def walk(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    walk(command)
            else:
                found.update({name: action for name in action.option_strings if name.startswith("--")})

    walk(cli.build_parser())
    del found["--help"]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    Path("prompt.txt").write_text("Answer: {{ body }}")
    Path("chat.json").write_text(json.dumps([{"role": "user", "content": "{{ body }}"}]))
    schema = {"type": "object", "properties": {"kind": {"enum": ["bug", "wish"]}}, "required": ["kind"]}
    Path("ticket.json").write_text(json.dumps(schema))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    Path("requests.jsonl").write_text(json.dumps(line))


def test_the_examples_run(folder, capsys):
    assert len(COMMANDS) == 21
    for command in COMMANDS:
        _, *args = shlex.split(command, comments=True)
        if args == ["--version"]:
            with pytest.raises(SystemExit, match="0"):
                cli.main(args)
            continue
        said = int(re.search(r"# exit (\d)", command)[1]) if "# exit" in command else 0
        assert cli.main(args) == said, (command, capsys.readouterr().err)
    assert pq.read_schema("answers.parquet").names[0] == "response"
    assert pq.read_table("i.parquet")["error"].null_count == 2
    assert json.loads(Path("j-run.json").read_text())["state"] == "complete"


def test_every_option_has_help_a_row_and_an_example():
    own = set(re.findall(r"`(--[\w-]+)`", PAGE.split("## The other commands")[1]))
    assert flags().keys() == TABLE.keys() | own
    examples = "\n".join(
        block for page in RUN for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page, re.DOTALL)
    )
    for name, action in flags().items():
        assert action.help, name
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", examples), f"{name} is in no example"


def test_the_python_names_are_those_of_the_functions():
    known = {
        name for run in (batch_sdk.generate, batch_sdk.embed) for name in inspect.signature(run).parameters
    }
    named = {name for cell in TABLE.values() for name in re.findall(r"`([a-z]\w*)`", cell)}
    assert named - known == {"max_new_tokens", "seed", "stop"}  # of the sampling
    # Named for several options at once, or of Python alone.
    assert known - named == {"data", "sampling", "return_summary", "choice", "regex", "ebnf"}


def test_nonsense_is_one_line(folder, capsys):
    base = {
        "generate": [
            "generate",
            "in.jsonl",
            "-o",
            "x",
            "-m",
            "m",
            "--engine",
            "dummy",
            "--prompt",
            "{{ body }}",
        ],
        "embed": ["embed", "in.jsonl", "-o", "x", "-m", "m", "--engine", "dummy", "--column", "body"],
    }
    cases = [
        ["generate"],
        ["nothing"],
        [*base["embed"], "--nonsense", "1"],
        [*base["generate"], "--prompt-file", "prompt.txt"],
        [*base["generate"], "--show", "-1"],
    ]
    for name, action in flags().items():
        command = base["embed" if name in ("--block-rows", "--embedding-type") else "generate"]
        if name == "--sample-rows":
            command = ["estimate", "generate", "in.jsonl", *command[4:]]
        if name == "--default-max-tokens":
            command = ["openai", "requests.jsonl", "-o", "x.jsonl", "-m", "m", "--engine", "dummy"]
        if action.choices:
            cases.append([*command, name, "many"])
        elif action.type in (int, float):
            cases += [[*command, name, value] for value in ("many", "-1.5")]
    assert len(cases) > 40
    for args in cases:
        try:
            code = cli.main(args)
        except SystemExit as ended:
            code = ended.code
        err = capsys.readouterr().err
        assert code == 2, args
        assert err.count("\n") == 1, (args, err)
        assert "error: " in err
    assert not Path("x").exists()
