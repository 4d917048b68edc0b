"""Layers that change their mode, on ranks that are processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("ranks_child.py")
RANKS = 4


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each rank found, by tp, sp, key/value heads, threshold and format."""
    folder = tmp_path_factory.mktemp("ranks")
    running = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(rank), str(RANKS), str(folder / "store")],
            stdout=subprocess.PIPE, stderr=(folder / f"{rank}.log").open("w"), text=True,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    found: dict[tuple, list[dict]] = {}
    for rank, process in enumerate(running):
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, (folder / f"{rank}.log").read_text()[-3000:]
        for line in out.splitlines():
            row = json.loads(line)
            found.setdefault((row["tp"], row["sp"], row["kv"], row["threshold"], row["fp8"]), []).append(row)
    return found


def test_every_rank_says_what_one_process_says_and_caches_its_heads(told):
    assert len(told) == (7 + 3) * 3
    for (tp, sp, *_), rows in told.items():
        assert len(rows) == tp * sp
        assert max(row["apart"] for row in rows) < 1e-12


@pytest.mark.parametrize(
    ("threshold", "steps", "switches"),
    [(None, {"tp": 8, "sp": 0}, 0), (0, {"tp": 0, "sp": 8}, 0), (3, {"tp": 4, "sp": 4}, 6)],
)
def test_steps_ran_in_the_mode_that_was_asked_for(told, threshold, steps, switches):
    for (*_, asked, _), rows in told.items():
        if asked == threshold:
            assert all(row["steps"] == steps and row["switches"] == switches for row in rows)


def test_parts_are_copied_only_where_a_kernel_knows_no_gaps(told):
    # Of the two layers, attention's output and down; rows are never copied.
    for (*_, fp8), rows in told.items():
        assert {row["copies"] for row in rows} == {4 if fp8 else 0}
