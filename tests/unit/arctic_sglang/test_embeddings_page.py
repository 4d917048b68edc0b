"""docs/embeddings.md and its plot are what the benchmarks make of the results, and the benchmarks' own arithmetic."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def plot(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "plot_embeddings.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def figure(median, tokens, **more):
    return {"run": 0, "unit": "tokens/s", "tokens_per_row": tokens, "median": median, **more}


def arms():
    ms = {"p50": 1.5, "p95": 2.5}
    http = {"latency_ms": ms, "rows_per_second": 1000.0}
    return {
        "peak": {"cases": {"peak": {"run": 0, "median": 800.0}, "gemms": {"run": 0, "median": 4e6}}},
        "ours": {"cases": {
            "sdk 50": figure(2e6, 50), "sdk 512": figure(1.9e6, 512), "sweep 8": figure(1e6, 8),
            "ids 50": {"run": 0, "error": "no"}, "fair": {"run": 0, "unit": "ms", "beside_ms": {"p95": 12.0}},
        }},
        "stock": {"cases": {"sweep 8": figure(2.5e4, 8)}},
        "ours-http": {"cases": {"http 64 float": figure(9e5, 50, **http)}},
        "stock-http": {"cases": {"http 64 float": figure(1e5, 50, **http)}},
        "replicas-2": {"cases": {"sdk 50": figure(1.7e6, 50)}},
    }  # fmt: skip


def test_the_page_and_its_plot_are_current():
    done = plot("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_are_compared_with_stock_the_peak_and_the_bars():
    module = importlib.import_module("embed_cases")
    table = module.compare(arms(), module.FULL.config)
    assert table["sweep 8"]["ratio"] == 40
    assert table["sdk 50"]["bar"]["met"]
    assert not table["sdk 512"]["bar"]["met"]
    # 2 M tokens/s of 169.9 + 1.8 MFLOP each, of 800 TFLOP/s
    assert table["sdk 50"]["share_of_peak"] == pytest.approx(0.429, abs=0.001)
    assert table["http 64 float"]["bar"] == {"ratio_at_least": 8.0, "met": True}
    assert table["fair"]["bar"]["met"]
    assert "ids 50" not in table
    assert table["sdk 50 replicas-2"]["ours"] == 1_700_000
    assert "yes: ratio at least 8" in module.show(table)
    assert not any("bar" in row for row in module.compare(arms(), module.TINY.config).values())


def test_results_become_tables_and_points(tmp_path):
    module = importlib.import_module("embed_cases")
    for name in ("embeddings.md", "embeddings.svg"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    speed = {
        "dtype": "bfloat16", "runs": [{"hardware": "1 x G", "commit": "abc"}], "arms": arms(),
        "table": module.compare(arms(), module.FULL.config),
    }  # fmt: skip
    cpu = {
        "rows_per_second": {"sdk": 500.0, "sentence_transformers": 400.0}, "processors": 2, "processor": "P",
        "commit": "abc", "rows": 5000, "tokens": 90_000, "ratio": 1.25, "least_cosine": 0.9999999,
    }  # fmt: skip
    (tmp_path / "embed_speed.json").write_text(json.dumps(speed))
    (tmp_path / "embed_cpu.json").write_text(json.dumps(cpu))
    arguments = ("--results", tmp_path, "--docs", tmp_path)
    assert plot(*arguments, "--check").returncode == 1
    assert plot(*arguments).returncode == 0
    assert plot(*arguments, "--check").returncode == 0
    page = (tmp_path / "embeddings.md").read_text()
    assert "| HTTP, batches of 64, float, tokens/s | 0.10 M | 0.90 M | 9.0 |" in page
    assert "| 64 float | ours | 1,000 | 1.5 | 2.5 |" in page
    assert "a ratio of 1.25" in page
    svg = (tmp_path / "embeddings.svg").read_text()
    assert svg.count("<circle") == 2
    assert svg.count("<polyline") == 3


@pytest.mark.parametrize("tokens", [4, 8, 50, 512])
def test_rows_have_exactly_as_many_tokens_as_asked_for(tokens):
    module = importlib.import_module("embed_model")
    tokenizer = module.read_tokenizer(None)
    rows = module.Texts(tokenizer).rows(300, tokens)  # compares its own ids of 200 rows with the tokenizer's
    assert rows.ids.shape == (300, tokens)
    assert [e.ids for e in tokenizer.encode_batch(rows.texts[-5:])] == rows.ids[-5:].tolist()
    assert rows.table()["ids"].to_pylist()[7] == rows.ids[7].tolist()
    assert rows.tokens == 300 * tokens
