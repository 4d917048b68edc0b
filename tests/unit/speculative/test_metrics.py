"""Statistics of drafting: sums by hand, the log line, and Prometheus on a registry of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from speculative.metrics import Collectors, Statistics
from speculative.policy import Picked, Source

WIDTHS = (1, 2, 4, 8)
NONE, SUFFIX, HEAD = Source.NONE, Source.SUFFIX, Source.HEAD


def picked(sources, lengths):
    return Picked(np.array(sources, np.int8), np.array(lengths, np.int32), np.array(lengths, np.float32))


def three_steps(statistics):
    mixed = picked([NONE, SUFFIX, HEAD], [0, 9, 3])
    statistics.observe(mixed, 8, np.array([0, 7, 1], np.int32), draft=0.001, wait=0.002, verify=0.010)
    statistics.observe(mixed, 4, np.array([0, 1, 3], np.int32), draft=0.001, verify=0.008)
    statistics.observe(mixed, 1, np.array([0, 0, 0], np.int32), verify=0.006)


def test_sums_by_hand():
    statistics = Statistics(WIDTHS)
    three_steps(statistics)
    total = statistics.total
    assert total.steps.tolist() == [1, 0, 1, 1]
    assert total.rows.tolist() == [5, 2, 2]  # a draft that was refused counts as none
    assert total.drafted.tolist() == [0, 10, 6]
    assert total.accepted.tolist() == [0, 8, 4]
    assert total.accept_length == pytest.approx(1 + 12 / 9)
    assert total.seconds.tolist() == pytest.approx([0.002, 0.002, 0.024])
    told = json.loads(json.dumps(total.to_dict()))
    assert told["widths"] == {"1": 1, "4": 1, "8": 1}
    assert told["sources"]["head"] == {"share": 0.2222, "drafted": 6, "accepted": 4}
    assert told["milliseconds"] == {"draft": 0.6667, "wait": 0.6667, "verify": 8.0}


def test_before_the_first_step_and_after_it():
    statistics = Statistics(WIDTHS)
    assert statistics.total.accept_length == 1.0
    assert statistics.total.to_dict()["sources"] == {}


def test_a_line_every_so_many_steps():
    lines = []
    statistics = Statistics(WIDTHS, every=3, log=lines.append)
    three_steps(statistics)
    assert lines == [
        "Speculation: 3 steps, accept len 2.33, none 56%, suffix 22% (8 of 10 tokens), head 22% (4 of 6 tokens), "
        "width 1: 33% 4: 33% 8: 33%, draft 0.67 ms, wait 0.67 ms, verify 8.00 ms"
    ]
    statistics.tell()
    assert len(lines) == 1  # nothing new
    statistics.observe(picked([SUFFIX], [1]), 2, np.array([1], np.int32))
    assert len(lines) == 1
    statistics.tell()
    assert lines[1] == "Speculation: 1 steps, accept len 2.00, suffix 100% (1 of 1 tokens), width 2: 100%"


def test_prometheus_gets_what_was_counted_and_nothing_twice():
    registry = CollectorRegistry()
    collectors = Collectors({"model_name": "m", "tp_rank": "0"}, registry=registry)
    statistics = Statistics(WIDTHS, every=2, collectors=collectors)
    three_steps(statistics)

    def value(name, **labels):
        told = {"model_name": "m", "tp_rank": "0", **labels}
        return registry.get_sample_value(f"sglang:arctic_spec_{name}_total", told)

    assert value("steps", width="1") == 0  # not told yet: two steps were
    statistics.tell()
    statistics.tell()
    assert [value("steps", width=str(width)) for width in WIDTHS] == [1, 0, 1, 1]
    assert [value("rows", source=source) for source in ("none", "suffix", "head")] == [5, 2, 2]
    assert value("draft_tokens", source="suffix") == 10
    assert value("accepted_tokens", source="head") == 4
    assert value("seconds", phase="verify") == pytest.approx(0.024)


@given(st.lists(st.tuples(st.sampled_from(WIDTHS), st.lists(st.integers(0, 9), min_size=1, max_size=4))))
def test_lines_and_collectors_add_up_to_the_total(steps):
    registry = CollectorRegistry()
    statistics = Statistics(WIDTHS, every=3, collectors=Collectors({}, registry=registry))
    tokens = 0
    for width, lengths in steps:
        drafts = picked([SUFFIX if length else NONE for length in lengths], lengths)
        accepted = np.minimum(drafts.lengths, width - 1)
        statistics.observe(drafts, width, accepted)
        tokens += int(accepted.sum()) + len(lengths)
    statistics.tell()
    rows = int(statistics.total.rows.sum())
    assert statistics.total.accept_length * rows == pytest.approx(tokens)
    told = [
        registry.get_sample_value("sglang:arctic_spec_rows_total", {"source": source.name.lower()}) or 0
        for source in Source
    ]
    assert sum(told) == rows


def test_processes_are_gathered_as_sglang_gathers_them(tmp_path):
    code = """
import numpy as np
from speculative.metrics import Collectors, Statistics
from speculative.policy import Picked, Source
from prometheus_client import CollectorRegistry, multiprocess
statistics = Statistics((1, 2), every=1, collectors=Collectors({"model_name": "m"}))
one = np.ones(3, np.int32)
statistics.observe(Picked.all_of(Source.SUFFIX, one, one.astype(np.float32)), 2, one)
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(registry.get_sample_value("sglang:arctic_spec_accepted_tokens_total", {"model_name": "m", "source": "suffix"}))
"""
    root = Path(__file__).parents[3]
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert [float(one.stdout) for one in done] == [3.0, 6.0]


@given(
    st.lists(st.tuples(st.sampled_from(list(Source)), st.integers(0, 9), st.integers(0, 9)), max_size=20),
    st.sampled_from([2, 4, 8]),
)
def test_compiled_counting_is_the_twins(rows, width):
    """The slow twin: a loop over requests."""
    wanted = [[0, 0, 0] for _ in range(3)]
    lengths = [length if source else 0 for source, length, _ in rows]
    accepted = [min(true, length, width - 1) for length, (*_, true) in zip(lengths, rows, strict=True)]
    for (source, *_), length, right in zip(rows, lengths, accepted, strict=True):
        of = source if length else Source.NONE
        wanted[0][of] += 1
        wanted[1][of] += min(length, width - 1)
        wanted[2][of] += right
    statistics = Statistics((1, 2, 4, 8))
    drafts = Picked(
        np.array([source if length else 0 for (source, *_), length in zip(rows, lengths, strict=True)], np.int8),
        np.array(lengths, np.int32), np.array(lengths, np.float32),
    )  # fmt: skip
    statistics.observe(drafts, width, np.array(accepted, np.int32))
    total = statistics.total
    assert [total.rows.tolist(), total.drafted.tolist(), total.accepted.tolist()] == wanted
