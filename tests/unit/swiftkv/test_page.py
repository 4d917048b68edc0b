"""docs/swiftkv.md and its plot are what benchmarks/plot_swiftkv.py makes of the code and the results."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def plot(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "plot_swiftkv.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_and_its_plot_are_current():
    done = plot("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_become_a_table_and_points(tmp_path):
    for name in ("swiftkv.md", "swiftkv-work.svg"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    row = {"unit": "ms", "stock": 200.0, "swiftkv": 110.0, "ratio": 1.818, "limit": 1.935}
    result = {
        "shape": "llama-3.1-8b", "cut": 16, "hardware": "1 x G", "commit": "abc",
        "sizes": {"ttft 8192": [1, 8192, 1], "mix": [2, 8, 8]},
        "table": {"ttft 8192": row, "mix": {"unit": "s", "stock": 1.0, "limit": None}},
    }  # fmt: skip
    (tmp_path / "swiftkv_a.json").write_text(json.dumps(result))
    (tmp_path / "swiftkv_b.json").write_text(json.dumps({**result, "shape": "toy"}))
    arguments = ("--results", tmp_path, "--docs", tmp_path)
    assert plot(*arguments, "--check").returncode == 1
    assert plot(*arguments).returncode == 0
    assert plot(*arguments, "--check").returncode == 0
    page = (tmp_path / "swiftkv.md").read_text()
    assert "| time to first token, 8,192 tokens | ms | 200.00 | 110.00 | 1.818 | 1.94 |" in page
    assert "swiftkv_b" not in page
    svg = (tmp_path / "swiftkv-work.svg").read_text()
    assert svg.count("<title>") == 1
    assert "swiftkv_a: ttft 8192, 45.0%" in svg
