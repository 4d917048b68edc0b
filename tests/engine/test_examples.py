"""The examples with SGLang behind them, as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TOKENS = r"\((\d+\.\d) tokens a step\)"


def run(name: str, *flags: str) -> str:
    """What an example prints; it must leave no process behind."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *flags], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors[-4000:]
    left = [found for found in psutil.process_iter(["status"]) if session(found.pid) == process.pid]
    # A zombie has ended; it waits for the first process of the machine, which need not look.
    assert [found for found in left if found.info["status"] != psutil.STATUS_ZOMBIE] == []
    return out


def session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def check_answers(found: str) -> None:
    """Four answers, of which the last repeats the third in fewer steps."""
    answers = re.findall(rf"(.+)  {TOKENS}", found)
    assert len(answers) == 4
    assert answers[2][0] == answers[3][0]
    assert float(answers[3][1]) > 2


def test_serving():
    found = run("serving.py")
    check_answers(found)
    told = found.splitlines()[-1]
    assert "'swiftkv_min_tokens': 40" in told
    assert "'speculative_algorithm': 'ARCTIC', 'enable_suffix_decoding': True" in told


@pytest.mark.full
def test_serving_that_cannot_start():
    command = [sys.executable, str(EXAMPLES / "serving.py"), "--enable-mixed-chunk"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "a step that verifies drafts has no room for a chunk of a prompt" in done.stderr
    assert "no server answers" in done.stderr


@pytest.mark.full
def test_offline_on_two_ranks():
    found = run("offline.py", "--ranks", "2")
    check_answers(found)
    assert "'shift_steps': {" in found.splitlines()[-1]


@pytest.mark.full
def test_a_head_that_was_trained_is_served(tmp_path):
    run("train_head.py", "--rows", "12", "--steps", "2", "--max-new-tokens", "4", "--out", str(tmp_path))
    model, head = EXAMPLES / "tiny_lm" / "model", tmp_path / "head"
    found = run("serving.py", "--model", str(model), "--head", str(head), "--ranks", "2")
    check_answers(found)
    assert "'swiftkv_min_tokens': None" in found


@pytest.mark.full
def test_embeddings():
    found = run("embeddings.py")
    assert found.startswith("270 vectors of 384 numbers")
    assert "0.50  Check if text ends with a given target string." in found
