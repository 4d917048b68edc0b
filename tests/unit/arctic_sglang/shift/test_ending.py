"""The end of a server whose rank was killed, in a process of its own that stands for the server."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SERVER = """
import multiprocessing, os, sys, time
from types import SimpleNamespace
from arctic_sglang.shift.ending import around_sigquit

class Detokenizer:
    pid, exitcode = 1, None
    def kill(self):
        print("the detokenizer was killed", flush=True)

def waits():
    time.sleep(300)

def exits():
    sys.exit(int(sys.argv[2]))

def goes_late():
    time.sleep(1.5)
    os._exit(9)

def sigquit(handler, signum=None, frame=None):
    alive = sys.argv[1] in ("dumped", "hangs", "unwatched")
    ended = [p.exitcode for p in ranks if p.join(0.5 if alive else 20) or p.exitcode is not None]
    print("sglang", signum, ended, flush=True)
    for rank in ranks:
        rank.kill()
    sys.exit(0)

targets = {"hangs": (waits, waits), "late": (goes_late, exits)}.get(sys.argv[1], (waits, exits))
ranks = [multiprocessing.get_context("fork").Process(target=target) for target in targets]
for rank in ranks:
    rank.start()
if targets[1] is exits:
    ranks[1].join()
watchdog = SimpleNamespace(_names=["scheduler_0", "scheduler_1", "detokenizer"], _processes=[*ranks, Detokenizer()])
folder = "dumps" if sys.argv[1] == "dumped" else None
manager = SimpleNamespace(
    _subprocess_watchdog=watchdog if sys.argv[1] != "unwatched" else None, crash_dump_folder=folder
)
around_sigquit(sigquit, SimpleNamespace(tokenizer_manager=manager), 3)
"""


@pytest.fixture(scope="module")
def ended():
    """What became of each server, by what happens in it; they end side by side, as most of it is waiting."""
    root = Path(__file__).parents[4]
    codes = {
        "killed": 7,
        "dumped": 7,
        "raised": 0,
        "late": 0,
        "hangs": 7,
        "unwatched": 7,
    }  # raised: as SGLang's ranks

    def run(how):
        return subprocess.run(
            [sys.executable, "-c", SERVER, how, str(codes[how])], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(root)}, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(len(codes)) as pool:
        return dict(zip(codes, pool.map(run, codes), strict=True))


def test_the_process_is_named_the_others_end_and_the_exit_code_is_not_0(ended):
    done = ended["killed"]
    assert done.returncode == 1, done.stderr
    assert "these processes have ended: scheduler_1 (pid" in done.stderr
    assert "exit code 7" in done.stderr
    assert (
        done.stdout == "sglang 3 [-9, 7]\n"
    )  # the one that waited was killed before, the detokenizer was not


def test_others_are_left_to_sglang_where_their_dumps_are_wanted(ended):
    done = ended["dumped"]
    assert done.returncode == 1, done.stderr
    assert "these processes have ended: scheduler_1 (pid" in done.stderr
    assert done.stdout == "sglang 3 [7]\n"


def test_a_rank_that_raised_ends_the_others_too(ended):
    done = ended["raised"]
    assert done.returncode == 1, done.stderr
    assert "these processes have ended: scheduler_1 (pid" in done.stderr
    assert done.stdout == "sglang 3 [-9, 0]\n"


def test_one_whose_process_is_not_gone_yet_is_named_with_the_one_that_noticed(ended):
    done = ended["late"]
    assert done.returncode == 1, done.stderr
    assert "these processes have ended: scheduler_0 (pid" in done.stderr
    assert "exit code 9), scheduler_1 (pid" in done.stderr


@pytest.mark.parametrize(("how", "gone"), [("hangs", "[]"), ("unwatched", "[7]")])
def test_sglang_finds_out_by_itself_where_nobody_has_ended(ended, how, gone):
    done = ended[how]
    assert done.returncode == 1, done.stderr
    assert "arctic-sglang" not in done.stderr
    assert done.stdout == f"sglang 3 {gone}\n"
