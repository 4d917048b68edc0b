"""docs/report.md and its plots are what `report.py` makes of the results; its HTML page, seen in a browser."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ORIGIN = {
    "commit": "abc123",
    "command": "python x.py --a '<b>'",
    "date": "2026-01-02 03:04 UTC",
    "hardware": "4 x G",
}


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def load(name):
    return importlib.import_module(name)


def report(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def speed(**arms):
    """A result of shift_speed.py; arms are medians by workload."""
    known = load("workloads").workloads(False, 32, (128, 8192))
    module = load("shift_speed")
    made = {
        arm: {"options": {}, "cases": {n.replace("_", " "): {"median": v} for n, v in medians.items()}}
        for arm, medians in arms.items()
    }
    return {
        "shape": "llama-3.1-8b", "quantization": None, "gpus": 4, "base_tp": 1, "runs": [ORIGIN], "arms": made,
        "sizes": {name: [w.requests, w.tokens_in, w.tokens_out] for name, w in known.items()},
        "table": module.compare(made, known, base_tp=1, bars=False),
    }  # fmt: skip


FULL = {"ttft_8192": 80.0, "prefill": 1e5, "decode_1": 2.5, "decode_64": 4.0, "mix": 5.76}


def test_the_committed_page_and_its_plots_are_current():
    done = report("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_committed_figure_says_where_it_is_from():
    page = (ROOT / "docs" / "report.md").read_text()
    figures = re.split(r"^### ", page, flags=re.M)[1:]
    assert len(figures) > 15
    for figure in figures:
        name = re.search(r"From `(.+)\.json`:", figure)
        assert name, figure
        run = load("report").runs(
            json.loads((ROOT / "benchmarks" / "results" / f"{name[1]}.json").read_text())
        )[0]
        for field in ("commit", "date", "hardware", "command"):
            assert run[field] in figure, (name[1], field)
    assert re.search(r"^## Traffic\n\n.*\n\nNot measured\.$", page, re.M)
    links = set(re.findall(r"\]\((.+?\.svg)\)", page))
    assert links
    assert all((ROOT / "docs" / link).is_file() for link in links)
    assert {path.name for path in (ROOT / "docs").glob("report-*.svg")} <= links


def test_the_trifecta_is_made_of_the_medians():
    module = load("report_deployments")
    result = speed(tp=FULL, shift={"ttft_8192": 60.0})
    rows = module.trifecta(result).splitlines()
    # 1000 / 2.5 ms; 256 requests of 2250 tokens in 5.76 s
    assert rows[2] == "| TP=4 | 80.0 | 400 | 100,000 | 100,000 |"
    assert rows[3] == "| shift, SP=4 | 60.0 | not measured | not measured | not measured |"
    assert module.decode(result, "tp") == [(1, 2.5, 400.0), (64, 4.0, 16_000.0)]
    assert module.decode(result, "shift") == []


def test_deployments_are_lines_of_latency_over_throughput():
    module = load("report_deployments")
    slower = {**FULL, "decode_1": 5.0}
    plots = module.plots("x", speed(tp=FULL, dp=slower, shift={"ttft_8192": 60.0}))
    decode, first = plots["report-x-decode.svg"], plots["report-x-first-token.svg"]
    assert (decode.count("<polyline"), decode.count("<circle")) == (2, 4)
    assert "DP=4, 1 at once: 5.00 ms, 200 tokens/s" in decode
    assert first.count("<circle") == 2
    assert "TP=4: 80.0 ms, 100,000 tokens/s" in first
    assert module.plots("x", speed(tp={"ttft_8192": 80.0})) == {}


@pytest.mark.parametrize("high", [0.3, 1, 4.2, 7.7, 10, 99, 228.8, 1234.5, 115_000])
def test_axes_end_behind_what_is_drawn_and_have_few_ticks(high):
    module = load("report_deployments")
    end, ticks = module._rounded(high)
    assert end >= high
    assert end < 1.5 * high
    assert 3 <= len(ticks) <= 9
    assert (ticks[0], ticks[-1]) == (0, pytest.approx(end))
    ticks = module._decades(high, 3 * high)
    assert ticks[0] < high
    assert ticks[-1] > 3 * high
    assert ticks == sorted(ticks)
    assert ticks[1] >= high


def test_without_results_every_section_says_so(tmp_path):
    module, figures = load("report"), load("report_figures")
    found = figures.sections(figures.Results(tmp_path))
    text = module.markdown(found)
    assert text.count("\n## ") == len(found) == 8
    assert text.count("Not measured.") == 7 + len(figures.SPECULATION)
    assert not any(figure.sources for section in found for figure in section.figures)


def test_toy_results_are_left_out_and_checkpoints_are_named(tmp_path):
    figures = load("report_figures")
    real = speed(tp=FULL) | {"shape": "My-Model", "weights": "checkpoint"}
    smoke = load("embed_model").SMOKE
    contents = {
        "shift_speed_toy": speed(tp=FULL) | {"shape": "toy"}, "shift_speed_My-Model": real,
        "plugin_overhead": {"shape": "toy"}, "embed_speed_smoke": {"shape": smoke},
        "shift_soak": {"model": {"hidden_size": load("shapes").TOY["hidden_size"]}}, "list": [1],
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = [figure for section in figures.sections(figures.Results(tmp_path)) for figure in section.figures]
    [measured] = [figure for figure in found if figure.sources]
    assert measured.heading == "My-Model, weights of a checkpoint, as they are stored, 4 GPUs"


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    done = report("--results", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no folder; one with the JSON files of benchmarks is wanted" in done.stderr
    (tmp_path / "shift_speed_x.json").write_text("{")
    done = report("--results", tmp_path)
    assert done.returncode == 2
    assert "shift_speed_x.json is not JSON" in done.stderr


def test_other_results_make_one_page_beside_them_and_docs_on_demand(tmp_path):
    (tmp_path / "shift_speed_a.json").write_text(json.dumps(speed(tp=FULL)))
    assert report("--results", tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "shift_speed_a.json"]
    docs = tmp_path / "docs"
    docs.mkdir()
    arguments = ("--results", tmp_path, "--docs", docs)
    assert report(*arguments, "--check").returncode == 1
    assert not list(docs.iterdir())
    assert report(*arguments).returncode == 0
    assert report(*arguments, "--check").returncode == 0
    plots = ["report-shift_speed_a-decode.svg", "report-shift_speed_a-first-token.svg"]
    assert sorted(path.name for path in docs.iterdir()) == [*plots, "report.md"]


def test_the_page_is_one_file_and_escapes_what_results_say(tmp_path):
    content = speed(tp=FULL)
    content["arms"]["tp"]["error"] = "<script>alert(1)</script>"
    (tmp_path / "shift_speed_a.json").write_text(json.dumps(content))
    assert report("--results", tmp_path).returncode == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "python x.py --a '&lt;b&gt;'" in page
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=\"(?!#)", page)


def test_a_browser_shows_it_wide_and_narrow_without_loading_anything(tmp_path):
    place = ROOT / "tests" / "unit" / "batch_sdk" / "browser.py"
    spec = importlib.util.spec_from_file_location("browser_for_the_report", place)
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    page = tmp_path / "report.html"
    assert (
        report("--html", page, "--docs", ROOT / "docs", "--check").returncode == 0
    )  # nothing is written by it
    assert not page.exists()
    assert report("--html", page, "--docs", tmp_path).returncode == 0
    script = """(() => {
      const cut = [...document.querySelectorAll('svg text')].filter(one => {
        const box = one.getBBox(), all = one.ownerSVGElement.viewBox.baseVal;
        return box.x < 0 || box.y < 0 || box.x + box.width > all.width || box.y + box.height > all.height;
      }).map(one => one.textContent);
      return JSON.stringify([document.documentElement.scrollWidth - innerWidth, cut,
        document.querySelectorAll('table').length, document.querySelectorAll('svg').length]);
    })()"""
    seen = browser.look(page, script, (1300, "light"), (420, "light"))
    assert seen.complaints == []
    assert {url.partition("#")[0] for url in seen.urls} == {page.as_uri()}
    for view in seen.views:
        beyond, cut, tables, plots = json.loads(view.value)
        assert beyond <= 0  # tables and plots scroll in their own boxes
        assert cut == []
        assert tables > 15
        assert plots >= 5
