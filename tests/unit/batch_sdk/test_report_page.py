"""The report's page in a real browser, and its plots as data."""

from __future__ import annotations

import io
import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import batch_sdk
from batch_sdk.report import svg
from batch_sdk.report.recorder import EDGES
from tests.unit.batch_sdk import browser

SCRIPT = """({
  plots: [...document.querySelectorAll('svg.plot')].map(s => s.getAttribute('aria-label')),
  tiles: Object.fromEntries([...document.querySelectorAll('.tiles div')].map(
    d => [d.querySelector('dt').textContent, d.querySelector('dd').textContent])),
  tooltips: document.querySelectorAll('svg title').length,
  scripts: document.scripts.length,
  bold: document.querySelectorAll('b').length,
  text: document.body.innerText,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  outside: [...document.querySelectorAll('body *')].filter(
    e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(e => e.outerHTML.slice(0, 200)),
  smallest: Math.min(...[...document.querySelectorAll('svg text')].map(
    t => 12 * t.ownerSVGElement.getBoundingClientRect().width / 420)),
  paper: getComputedStyle(document.body).backgroundColor,
})"""  # noqa: E501
ATTACK = "<script>alert(1)</script><b>"


def test_a_browser_shows_it(tmp_path):
    rows = 3001
    texts = [None if i % 500 == 7 else "word " * (i % 90 + 1) for i in range(rows)]
    texts[20] = f"bad {ATTACK}"
    summary = batch_sdk.generate(
        pa.table({"text": texts}), prompt="say {{ text }}", model=f"m/{ATTACK}{'x' * 80}", engine="dummy",
        engine_options={"fail_on": f"bad {ATTACK}", "delay_seconds": 0.05}, window_rows=200,
        output=tmp_path / "o.parquet", report=tmp_path / "run", progress=False,
    )  # fmt: skip
    seen = browser.look(tmp_path / "run.html", SCRIPT, (1200, "light"), (400, "light"), (400, "dark"))
    assert seen.complaints == []
    assert seen.urls == [(tmp_path / "run.html").as_uri()]
    for view in seen.views:
        found = view.value
        assert found["plots"] == [
            "rows/s over time", "tokens/s over time", "rows by tokens in", "rows by tokens out",
            "error rows by kind",
        ]  # fmt: skip
        assert found["tiles"]["rows"] == f"{rows:,}"
        assert found["tiles"]["error rows"] == f"{summary.error_rows:,}" == "7"
        assert found["tiles"]["tokens in"] == f"{summary.prompt_tokens:,}"
        assert found["tiles"]["tokens out"] == f"{summary.completion_tokens:,}"
        assert found["tooltips"] > 30
        assert (found["scripts"], found["bold"]) == (0, 0)
        assert f"the input contains 'bad {ATTACK}'" in found["text"]
        assert f"generate · m/{ATTACK}" in found["text"]
        assert (found["wide"], found["outside"]) == (0, [])
        assert found["smallest"] > 9.5
    sizes = [Image.open(io.BytesIO(view.png)).size for view in seen.views]
    assert [width for width, _ in sizes] == [1200, 400, 400]
    assert sizes[1][1] > sizes[0][1] > 800
    for view in seen.views:
        picture = np.asarray(Image.open(io.BytesIO(view.png)).convert("RGB"))
        paper = [int(part) for part in view.value["paper"].strip("rgb()").split(",")]
        inked = (picture != paper).any(axis=2)
        assert 0.1 < inked.mean() < 0.9
        assert not inked[:, -4:].any()
    assert seen.views[1].value["paper"] != seen.views[2].value["paper"]


def test_without_a_browser_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match=r"make browser.*apt-get install chromium"):
        browser.look(tmp_path / "run.html", "1")
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    assert f"BROWSERS = {' '.join(browser.NAMES)}\n" in makefile


def texts_of(drawn: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(drawn).iter("text")]


def titles_of(drawn: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(drawn).iter("title")]


@pytest.mark.parametrize("high", [0, 1e-9, 0.3, 0.7, 1, 3, 4.99, 5, 7, 99, 100, 101, 12345, 9.9e9])
@pytest.mark.parametrize("whole", [False, True])
def test_ticks_are_round_and_reach(high, whole):
    found = svg.ticks(high, whole)
    assert found[0] == 0
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= 6
    step = found[1]
    assert found[-2] < max(high or 1, step)
    assert f"{step:e}"[0] in "125"
    assert not whole or step >= 1
    assert np.allclose(np.diff(found), step)
    assert len({svg.short(value) for value in found}) == len(found)


def test_numbers_in_few_characters():
    values = [0, 0.2, 0.125, 5, 12.5, 99, 100, 1250, 9999, 10_000, 25_000, 1_500_000, 2e9]
    said = ["0", "0.2", "0.125", "5", "12.5", "99", "100", "1,250", "9,999", "10k", "25k", "1.5M", "2G"]
    assert [svg.short(value) for value in values] == said


def test_steps():
    for end, unit in ((0.5, "s"), (179, "s"), (181, "min"), (3 * 3600, "h")):
        times = [(0, end / 2), (end / 2, end)]
        drawn = svg.steps("rows/s", times, [svg.Series("rows/s", [0, 12_500], "one")])
        assert f"time since the start ({unit})" in texts_of(drawn)
        assert "rows/s" in texts_of(drawn)
        assert titles_of(drawn)[1].endswith(f"{unit}: 12.5k rows/s")
    still = svg.steps(
        "rows/s", [(0.0, 0.0)], [svg.Series("<a>", [0.0], "one"), svg.Series("b", [0.0], "two")]
    )
    assert {"<a>", "b"} <= set(texts_of(still))


def test_columns_label_powers_of_two():
    drawn = svg.columns("tokens", [[0, 0, 3], [1, 1, 0], [2, 2, 5]], EDGES.tolist(), "one")
    assert titles_of(drawn) == ["0 tokens: 3 rows", "1 tokens: 0 rows", "2 tokens: 5 rows"]
    assert {"1", "2", "4"} <= set(texts_of(drawn))
    edges = EDGES.tolist()
    every = [[low, high - 1, 1] for low, high in itertools.pairwise(edges)] + [[edges[-1], 10**9, 1]]
    drawn = svg.columns("tokens", every, edges, "one")
    assert len(titles_of(drawn)) == len(edges)
    assert len(texts_of(drawn)) < 20
    last = svg.columns("tokens", every[-1:], edges, "one")
    assert titles_of(last) == [f"{edges[-1]:,} to 1,000,000,000 tokens: 1 rows"]


def test_bars_escape_names():
    drawn = svg.bars([("<kind>", 1_000_000), ("none", 0)], "bad")
    assert texts_of(drawn) == ["<kind>", "1M", "none", "0"]
    assert titles_of(drawn)[0] == "<kind>: 1,000,000 rows"


def test_long_names_get_room_and_values_need_not_be_whole():
    drawn = svg.bars([("a name of 22 characters", 1.5)], "one", title="t", unit="times")
    assert titles_of(drawn) == ["a name of 22 characters: 1.5 times"]
    (bar,) = ET.fromstring(drawn).iter("rect")
    assert float(bar.attrib["x"]) > 150


def test_a_document_is_a_file_of_its_own():
    plots = [("One", svg.bars([("a", 1), ("b", 2)], "one")), ("Two & three", svg.bars([("c", 3)], "two"))]
    root = ET.fromstring(svg.document(plots))
    space = "{http://www.w3.org/2000/svg}"
    names = [node.text for node in root.findall(f"{space}text")]
    assert names == ["One", "Two & three"]
    within = [(float(one.attrib["y"]), float(one.attrib["height"])) for one in root.findall(f"{space}svg")]
    assert within[0][0] + within[0][1] < within[1][0]
    assert sum(within[1]) <= float(root.attrib["viewBox"].split()[3])
    for colour in ("one", "two", "soft", "paper"):
        assert f"--{colour}: #" in svg.STYLE


def test_all_that_is_drawn_is_inside(tmp_path):
    batch_sdk.embed(
        pa.table({"text": [f"t {i}" for i in range(50)]}), column="text", model="m", engine="dummy",
        report=tmp_path / "r",
    )  # fmt: skip
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    drawings = [f"<svg{part.split('</svg>')[0]}</svg>" for part in page.split("<svg")[1:]]
    assert len(drawings) == 3
    for drawn in drawings:
        root = ET.fromstring(drawn)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for node in root.iter("rect"):
            x, y, w, h = (float(node.attrib[name]) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width + 0.1
            assert 0 <= y <= y + h <= height + 0.1
    assert json.loads((tmp_path / "r.json").read_text())["tokens"]["completion_tokens"]["rows"] == 0
