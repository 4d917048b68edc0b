"""docs/speculation.md and its plot are what benchmarks/plot_speculation.py makes of the results."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def plot(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "plot_speculation.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_and_its_plot_are_current():
    done = plot("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_become_tables_and_bars(tmp_path):
    for name in ("speculation.md", "speculation.svg"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    origin = {"hardware": "1 x G", "commit": "abc", "date": "today"}
    row = {"ms_per_token": {"none": 8.0, "suffix": 2.0}, "over_none": {"suffix": 0.25}, "bar": 0.5}
    result = {**origin, "table": {"repeated 4": row}}
    (tmp_path / "speculation_speed.json").write_text(json.dumps(result))
    play = {"accepted_per_step": 3.0, "update_and_speculate_us_per_token": {"median": 2.0}}
    twice = {"accepted_per_step": 1.5, "update_and_speculate_us_per_token": {"median": 8.0}}
    index = {**origin, "traces": {"edits": {"play": {"ours": play, "peer": twice}, "memory": {}}}}
    (tmp_path / "suffix_index.json").write_text(json.dumps(index))
    arguments = ("--results", tmp_path, "--docs", tmp_path)
    assert plot(*arguments, "--check").returncode == 1
    assert plot(*arguments).returncode == 0
    assert plot(*arguments, "--check").returncode == 0
    page = (tmp_path / "speculation.md").read_text()
    assert "| text that repeats, 4 | 8.000 | 2.000 | 0.250 |  |  | at most 0.500 |" in page
    assert "| edits | update and draft, us a token | 2.000 | 8.000 | 0.250 |" in page
    assert "suffix, repeated 4: 4.00" in (tmp_path / "speculation.svg").read_text()
