"""The command line: help, exit codes, summary, rows to look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_sdk import cli


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.parquet"
    texts = ["How do I sort a list?", None, "Grüße aus Köln\nzweite Zeile", "x" * 3000, "poison"]
    pq.write_table(pa.table({"id": list(range(5)), "body": texts}), path)
    return path


def run(capsys, *args) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


GENERATE = ("--model", "m", "--engine", "dummy", "--prompt", "say {{ body }}")
EMBED = ("--model", "m", "--engine", "dummy", "--column", "body")


def test_generate_shows_summary_and_rows(capsys, table, tmp_path):
    out = tmp_path / "out.parquet"
    options = (
        "--show",
        3,
        "--max-new-tokens",
        4,
        "--temperature",
        0,
        "--stop",
        "END",
        "--sampling",
        "min_new_tokens=1",
    )
    code, text, err = run(
        capsys, "generate", table, "-o", out, *GENERATE, *options, "--engine-option", 'fail-on="poison"'
    )
    assert code == 0, err
    assert "rows      5" in text
    assert "errors    2 (null_input 1, rejected 1)" in text
    assert "tokens/s" in text
    assert str(out) in text
    assert "-- row 0" in text
    assert "-- row 2" in text
    assert "-- row 3" not in text
    assert "zweite Zeile" in text
    assert "null_input" in text
    responses = pq.read_table(out).column("response").to_pylist()
    assert [r and len(r.split()) for r in responses] == [4, None, 4, 4, None]


def test_long_values_are_cut_for_the_eye_only(capsys, table, tmp_path):
    _, text, _ = run(capsys, "generate", table, "-o", tmp_path / "o", *GENERATE, "--show", 5)
    assert "more characters]" in text
    assert "x" * 3000 not in text
    assert pq.read_table(tmp_path / "o").column("body")[3].as_py() == "x" * 3000


def test_embed_shows_neighbours(capsys, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"body": ["same text", "other", "same text", None, "another"]}), path)
    code, text, _ = run(capsys, "embed", path, "-o", tmp_path / "o.parquet", *EMBED, "--show", 2)
    assert code == 0
    first = text.split("-- row 1")[0].splitlines()
    assert first[-3].split() == ["1.000", "same", "text"]
    assert "16 floats, length 1.000" in text
    code, text, _ = run(
        capsys, "embed", path, "-o", tmp_path / "p.parquet", *EMBED, "--show", 4, "--keep-none", "--normalize"
    )
    assert code == 0
    assert "(row 2)" in text


def test_prompt_file_keep_and_directory_output(capsys, table, tmp_path):
    (tmp_path / "p.txt").write_text("say {{ body or 'nothing' }}")
    args = ("generate", table, "-o", tmp_path / "o", "--model", "m", "--engine", "dummy")
    more = ("--prompt-file", tmp_path / "p.txt", "--keep", "id", "--limit", 4, "--rows-per-file", 3)
    code, text, _ = run(capsys, *args, *more, "--response-column", "said", "--details-prefix", "x_")
    assert code == 0
    assert "errors    0\n" in text
    assert sorted(os.listdir(tmp_path / "o")) == [
        "_manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    names = pq.read_table(tmp_path / "o").column_names
    assert names == ["id", "said", "x_prompt_tokens", "x_completion_tokens", "x_finish_reason", "x_error"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--prompt", "{{ boddy }}"), "did you mean 'body'"),
        (("--prompt", "{{ body"), "does not compile"),
        (("--temperature", "-1"), "temperature=-1"),
        (("--engine", "dumy"), "did you mean 'dummy'"),
        (("--engine-option", "wrds=1"), "did you mean 'words'"),
        (("--engine-option", "words=1", "--engine-option", "words=2"), "words is given twice"),
        (("--engine", "http"), "--engine-option url=http://host:30000"),
        (("--engine", "http", "--engine-option", "url=host:30000"), "url='host:30000'"),
        (("--engine", "http", "--engine-option", "ulr=http://h"), "did you mean 'url'"),
        (("--sampling", "tempo=1"), "unknown"),
        (("--temperature", "0", "--sampling", "temperature=1"), "given twice"),
        (("--keep", "id", "--keep-none"), "--keep-none"),
        (("--show", "-1"), "--show"),
        (("--limit", "0"), "limit_rows=0"),
    ],
)
def test_user_errors_exit_2_with_one_line(capsys, table, tmp_path, args, says):
    code, text, err = run(capsys, "generate", table, "-o", tmp_path / "o.parquet", *GENERATE, *args)
    assert code == 2
    assert text == ""
    assert err.startswith("arctic-batch: error: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o.parquet").exists()


def test_missing_input_and_existing_output(capsys, table, tmp_path):
    code, _, err = run(capsys, "generate", tmp_path / "no.parquet", "-o", tmp_path / "o.parquet", *GENERATE)
    assert code == 2
    assert "no.parquet" in err
    code, _, err = run(capsys, "generate", table, "-o", tmp_path / "o.parquet", *GENERATE)
    assert code == 0
    code, _, err = run(capsys, "generate", table, "-o", tmp_path / "o.parquet", *GENERATE)
    assert code == 2
    assert "--overwrite" in err
    code, _, err = run(capsys, "generate", table, "-o", tmp_path / "o.parquet", *GENERATE, "--overwrite")
    assert code == 0
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    for file in ("missing.txt", "latin.txt"):
        code, _, err = run(
            capsys, "generate", table, "-o", tmp_path / "q", "--model", "m", "--prompt-file", tmp_path / file
        )
        assert code == 2


def test_engine_death_exits_1_and_leaves_nothing(capsys, table, tmp_path):
    code, _, err = run(
        capsys,
        "generate",
        table,
        "-o",
        tmp_path / "o.parquet",
        *GENERATE,
        "--engine-option",
        "die_after_requests=2",
    )
    assert code == 1
    assert err == (
        "arctic-batch: error: the dummy engine died after 2 requests, as it was told to\n"
        "arctic-batch: nothing was written\n"
    )
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_fail_on_error(capsys, table, tmp_path):
    code, text, _ = run(capsys, "generate", table, "-o", tmp_path / "o.parquet", *GENERATE, "--fail-on-error")
    assert code == 1
    assert "errors    1" in text
    assert (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["generate", "--help"], ["embed", "--help"]])
def test_help_and_version(capsys, args):
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 0
    assert "arctic-batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["generate"],
        ["generate", "x", "-o", "y", "--model", "m"],
        ["embed", "x", "--engine-option", "noequals"],
    ],
)
def test_incomplete_commands_exit_2(capsys, args):
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 2


def test_progress_bar_on_request(capsys, table, tmp_path):
    _, _, err = run(capsys, "embed", table, "-o", tmp_path / "o.parquet", *EMBED, "--progress")
    assert "5/5" in err
    assert "tok/s" in err
    _, _, err = run(capsys, "embed", table, "-o", tmp_path / "p.parquet", *EMBED)
    assert err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_behind(tmp_path, number, code):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"body": ["x"] * 5000}), path)
    options = (
        "--window-rows",
        "2",
        "--batch-rows",
        "2",
        "--engine-option",
        f"delay_seconds={json.dumps(0.01)}",
    )
    command = [
        sys.executable,
        "-m",
        "batch_sdk.cli",
        "generate",
        str(path),
        "-o",
        str(tmp_path / "o.parquet"),
    ]
    process = subprocess.Popen([*command, *GENERATE, *options], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(os.listdir(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert os.listdir(tmp_path) == ["in.parquet"]
