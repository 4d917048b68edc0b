"""The benchmarks of Shift Parallelism: synthetic traffic, what is made of figures, and the page that tells them."""

import importlib
import itertools
import json
import math
import shutil
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def load(name):
    return importlib.import_module(name)


def test_the_same_seed_is_the_same_trace_and_another_is_not():
    traffic = load("traffic")
    shape = traffic.Shape(seconds=90)
    first = traffic.trace(shape, seed=3)
    assert first == traffic.trace(shape, seed=3)
    assert first != traffic.trace(shape, seed=4)


@pytest.mark.parametrize("seconds", [60, 100, 300])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.3])
def test_times_are_sorted_and_rates_are_as_asked(seconds, scale):
    traffic = load("traffic")
    shape = traffic.Shape(seconds=seconds)
    made = traffic.trace(shape, seed=1, scale=scale)
    assert [r.at for r in made] == sorted(r.at for r in made)
    assert shape.phases()[-1][2] == seconds
    rates = {"quiet": shape.quiet_rate, "burst": shape.burst_rate}
    for name, begin, end in shape.phases():
        within = [r for r in made if begin <= r.at < end]
        assert {r.phase for r in within} == {name}
        assert len(within) == round(scale * rates[name] * (end - begin))


def test_lengths_are_those_of_the_published_traces_and_within_limits():
    traffic = load("traffic")
    shape = traffic.Shape(seconds=3000, longest_in=20_000, longest_out=500)
    made = traffic.trace(shape, seed=0)
    assert all(1 <= r.tokens_in <= 20_000 and 1 <= r.tokens_out <= 500 for r in made)
    assert max(r.tokens_in for r in made) == 20_000
    assert max(r.tokens_out for r in made) == 500
    for name, kind in traffic.KINDS.items():
        some = [r for r in made if r.kind == name]
        assert len(some) / len(made) == pytest.approx(kind.share, abs=0.02)
        assert statistics.median(r.tokens_in for r in some) == pytest.approx(kind.tokens_in[0], rel=0.08)
        assert statistics.median(r.tokens_out for r in some) == pytest.approx(kind.tokens_out[0], rel=0.1)
    code = [r for r in made if r.kind == "code"]
    assert statistics.mean(r.tokens_in for r in code) == pytest.approx(2048, rel=0.05)


def test_arrivals_are_burstier_than_poisson():
    traffic = load("traffic")
    made = traffic.trace(traffic.Shape(seconds=600, variation=1.5), seed=5)
    at = [r.at for r in made if r.phase == "burst"]
    gaps = [b - a for a, b in itertools.pairwise(at) if b - a < 10]  # not those between bursts
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize(
    "wrong",
    [
        {"burst": 60},
        {"period": 400},
        {"quiet_rate": 0},
        {"burst_rate": 1},
        {"variation": 0},
        {"longest_out": 0},
    ],
)
def test_a_shape_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="wanted"):
        load("traffic").Shape(**wrong)


def request(**fields):
    return load("traffic").Request(
        **{"at": 2.0, "tokens_in": 10, "tokens_out": 5, "phase": "quiet", "kind": "code"} | fields
    )


def rows(*answers):
    figures, stream = load("trace_figures"), load("http_stream")
    return [
        dict(zip(figures.FIELDS, figures.row(asked, stream.Answer(**answer), 100.0), strict=True))
        for asked, answer in answers
    ]


def test_latencies_are_of_the_planned_time():
    [found] = rows((request(), {"sent": 102.5, "first": 103.0, "last": 103.4, "tokens": 5}))
    assert found["late"] == 0.5
    assert found["ttft"] == 1.0
    assert found["tpot"] == pytest.approx(0.1)
    assert found["completion"] == 1.4
    assert found["error"] is None


def test_answers_of_one_token_have_no_time_per_token_and_short_ones_are_failures():
    answers = [
        (request(tokens_out=1), {"sent": 102.0, "first": 103.0, "last": 103.0, "tokens": 1}),
        (request(), {"sent": 102.0, "first": 103.0, "last": 104.0, "tokens": 3}),
        (request(), {"sent": 102.0, "last": 104.0, "error": "ClientError: gone"}),
    ]
    one, short, gone = rows(*answers)
    assert one["tpot"] is None
    assert short["error"] == "3 tokens came, and 5 were asked for"
    assert gone["ttft"] is None
    found = load("trace_figures").summary([one, short, gone])
    assert (found["requests"], found["failed"]) == (3, 2)
    assert found["ttft_median_ms"] == 1000
    assert found["tpot_median_ms"] is None
    assert found["tokens_per_second"] == 11.0  # of the whole answer alone


def test_nothing_whole_is_no_figure():
    assert load("trace_figures").summary(rows((request(), {"sent": 102.0, "error": "x"}))) == {
        "requests": 1, "failed": 1,
    }  # fmt: skip
    assert load("trace_figures").rank({}) == {}


def test_series_are_by_planned_time_with_gaps_where_nothing_came():
    made = rows(
        (request(at=1.0), {"sent": 101.0, "first": 101.5, "last": 102.0, "tokens": 5}),
        (request(at=2.0), {"sent": 102.0, "first": 102.7, "last": 103.0, "tokens": 5}),
        (request(at=11.0), {"sent": 111.0, "error": "x"}),
        (request(at=12.0), {"sent": 112.0, "first": 112.1, "last": 112.2, "tokens": 5}),
    )
    found = load("trace_figures").series(made, 14)
    assert found["at"] == [2.5, 7.5, 12.5]
    assert found["tokens_per_second"] == [6.0, 0.0, 6.0]
    assert found["ttft_ms"] == [600.0, None, pytest.approx(100.0)]


def test_shift_is_level_with_the_first_within_three_percent():
    arms = {
        "tp": {"ttft_median_ms": 100.0, "tpot_median_ms": 4.0, "tokens_per_second": 900.0, "late_ms": {}},
        "shift": {"ttft_median_ms": 103.0, "tpot_median_ms": 4.2, "tokens_per_second": 1000.0, "late_ms": {}},
    }
    found = load("trace_figures").rank(arms)
    assert found["ttft_median_ms"] == {
        "tp": 100.0,
        "shift": 103.0,
        "first": "tp",
        "shift_over_first": 1.03,
        "met": True,
    }
    assert not found["tpot_median_ms"]["met"]
    assert (found["tokens_per_second"]["first"], found["tokens_per_second"]["shift_over_first"]) == (
        "shift",
        1.0,
    )
    assert "NOT MET" in load("trace_figures").show({"all": found})


def speed_arms():
    def cases(**medians):
        return {name.replace("_", " "): {"median": value} for name, value in medians.items()}

    return {
        "tp": {"options": {"tp_size": 4}, "weights_gib": 3.75,
               "cases": cases(ttft_8192=80.0, prefill=108e3, decode_1=2.5, decode_64=3.4, mix=6.6)},
        "dp": {"options": {}, "weights_gib": 15.0,
               "cases": cases(ttft_8192=208.0, prefill=150e3, decode_1=4.9, decode_64=5.4, mix=5.5)},
        "shift": {"options": {}, "weights_gib": 13.6,
                  "cases": cases(ttft_8192=60.0, prefill=140e3, decode_1=2.5, decode_64=3.5, mix=5.5)},
    }  # fmt: skip


def speed_table(arms, **more):
    module, loads = load("shift_speed"), load("workloads").workloads(False, 32, (128, 512, 2048, 8192))
    return module.compare(arms, loads, **{"base_tp": 1, "bars": True} | more)


def test_shift_is_compared_with_the_arm_that_was_asked_for():
    table = speed_table(speed_arms())
    assert table["ttft 8192"]["bar"]["ratio"] == pytest.approx(80 / 60, abs=1e-4)
    assert table["ttft 8192"]["bar"]["met"]
    assert table["prefill"]["faster_than"] == {"tp": 1.2963, "dp": 0.9333}
    assert not table["prefill"]["bar"]["met"]
    assert table["decode 1"]["bar"]["met"]
    assert table["decode 64"]["bar"] == {
        "against": "the better of tp and dp", "at_least": 0.98, "ratio": 0.9714, "met": False,
        "stated": "at least 0.98 of the better one's speed",
    }  # fmt: skip
    assert table["mix"]["bar"]["met"]
    assert table["weights"]["bar"]["ratio"] == pytest.approx(13.6 / 15, abs=1e-4)
    assert "decode 256" not in table
    text = load("shift_speed").show(table)
    assert "NOT MET: at least 0.96 of dp's tokens/s" in text


def test_a_figure_without_its_rival_is_not_judged():
    arms = speed_arms()
    del arms["dp"]
    table = speed_table(arms, base_tp=2)
    assert "bar" not in table["prefill"]
    assert "bar" not in table["mix"]
    assert table["ttft 8192"]["bar"]["met"]
    # one copy is then four times tp's part, shared by two
    assert table["weights"]["bar"]["ratio"] == pytest.approx(13.6 / 7.5, abs=1e-4)
    assert not any(
        "bar" in row for name, row in speed_table(speed_arms(), bars=False).items() if name != "weights"
    )


def test_every_arm_has_the_same_kv_memory():
    module = load("deployments")
    args = load("all_on_speed").parse(["--gpus", "4", "--base-tp", "2", "--quantization", "fp8"])
    found = {arm: module.engine_options(arm, args, 8192, Path("head")) for arm in module.ARMS}
    replicas = [options.pop("max_total_tokens") for arm, options in found.items() if arm.startswith("dp")]
    assert replicas == [2048, 2048]
    assert {options["max_total_tokens"] for options in found.values() if "max_total_tokens" in options} == {
        8192
    }
    assert {arm for arm, options in found.items() if "speculative_draft_model_path" in options} == {"all"}
    assert (found["shift"]["tp_size"], found["shift"]["ulysses_sequence_parallel_size"]) == (2, 2)
    assert "enable_shift_parallel" not in found["sp"]
    assert all(options["quantization"] == "fp8" for options in found.values())


def test_figures_of_several_runs_are_merged_and_those_of_other_things_are_not(tmp_path):
    module = load("record")
    args = Namespace(out=tmp_path, name="x", fresh=False, commit="abc")
    for arm in ("tp", "dp"):
        record = module.Record(args, {"shape": "s"}, lambda arms: {"arms": sorted(arms)})
        record.arm(arm, {})
        record.add(arm, "mix", {"median": 1.0, "unit": "s"})
    record.failed("dp", RuntimeError("long\nshort"))
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["table"] == {"arms": ["dp", "tp"]}
    assert [content["arms"][arm]["cases"]["mix"]["run"] for arm in ("tp", "dp")] == [0, 1]
    assert content["arms"]["dp"]["error"] == "short"
    with pytest.raises(ValueError, match="--fresh"):
        module.Record(args, {"shape": "other"}, dict)


def test_a_soak_has_singles_and_bursts_and_clients_that_hang_up():
    soak = load("shift_soak")
    steps = soak.plan(5000, 60, 4096, 11, seed=2)
    assert steps == soak.plan(5000, 60, 4096, 11, seed=2)
    assert len(steps) == 5000
    assert [s.at for s in steps] == sorted(s.at for s in steps)
    assert all(0 <= s.at <= 60 and 1 <= s.tokens_in <= 4096 and 1 <= s.tokens_out <= 128 for s in steps)
    at_once = [len(list(group)) for _, group in itertools.groupby(steps, key=lambda s: s.at)]
    assert max(at_once) > 100
    assert 0.3 < sum(n for n in at_once if n == 1) / 5000 < 0.7
    assert sum(s.stop_after is not None for s in steps) / 5000 == pytest.approx(0.19, abs=0.02)
    assert {s.stop_after for s in steps} == {None, *range(11)}
    assert {s.fixed for s in steps} == {s.like for s in steps} == {None, *range(11)}


def spoken(shift=0.0, tokens=(7, 8, 9)):
    return load("shift_soak").Spoken([-1.0 + shift, -3.0 + shift], list(tokens), [-0.5 + shift, -0.6, -0.7])


def test_answers_are_compared_up_to_the_first_other_token():
    soak = load("shift_soak")
    assert soak.differences(spoken(), spoken(0.25)) == pytest.approx([0.25, 0.25, 0.25, 0, 0])
    assert soak.differences(spoken(), spoken(0.25, (5, 8, 9))) == pytest.approx([0.25, 0.25, 0.25])
    with pytest.raises(ValueError, match="came"):
        soak.differences(spoken(), spoken(tokens=(7, 8)))


def test_a_wrong_answer_fails_the_soak_and_dummy_weights_cannot_hide_it():
    soak = load("shift_soak")
    fine = soak.judge([spoken()], [spoken(0.01)], [(0, 0, spoken(0.1))], 0.05, 0.25)
    assert fine["ok"]
    assert (fine["same_tokens_after"], fine["asked_busy"]) == (1, 1)
    assert not soak.judge([spoken()], [spoken(0.1)], [], 0.05, 0.25)["ok"]
    assert not soak.judge([spoken()], [spoken()], [(0, 0, spoken(0.6))], 0.05, 0.25)["ok"]
    half = soak.Spoken([-3.0], [7, 8, 9], [-0.5, -0.6, -0.7])  # behind the second token
    assert soak.judge([spoken()], [spoken()], [(0, 1, half)], 0.05, 0.25)["largest_mean_difference_busy"] == 0
    flat = soak.Spoken([-6.0, -6.0], [1], [-6.0])
    with pytest.raises(ValueError, match="spread"):
        soak.judge([flat], [flat], [], 0.05, 0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_no_number_fails_the_soak(value):
    soak = load("shift_soak")
    wrong = soak.Spoken([-1.0, -3.0], [7, 8, 9], [-0.5, value, -0.7])
    assert not soak.judge([spoken()], [wrong], [], 0.05, 0.25)["ok"]
    assert not soak.judge([spoken()], [spoken()], [(0, 0, wrong)], 0.05, 0.25)["ok"]


def plot(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "plot_shift.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_and_its_plots_are_current():
    done = plot("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def write_results(folder):
    origin = {"hardware": "4 x G", "commit": "abc", "date": "today"}
    known = load("workloads").workloads(False, 32, (8192,))
    sizes = {name: [w.requests, w.tokens_in, w.tokens_out] for name, w in known.items()}
    speed = {
        "shape": "llama-3.1-8b", "quantization": None, "gpus": 4, "base_tp": 1, "sizes": sizes, "runs": [origin],
        "arms": speed_arms(), "table": speed_table(speed_arms()),
    }  # fmt: skip
    speed["arms"]["dp"]["error"] = "it broke"
    (folder / "shift_speed_llama-3.1-8b.json").write_text(json.dumps(speed))
    figures, traffic = load("trace_figures"), load("traffic")
    answers = [
        (
            request(at=at, tokens_out=3),
            {"sent": 100 + at, "first": 100.4 + at, "last": 100.5 + at, "tokens": 3},
        )
        for at in (1.0, 2.0, 30.0)
    ]
    arms = {}
    for arm, options in {
        "tp": {"tp_size": 4},
        "shift": {"tp_size": 1, "ulysses_sequence_parallel_size": 4},
    }.items():
        made = rows(*answers)
        arms[arm] = {"run": origin, "options": options, "series": figures.series(made, 60),
                     "phases": {"all": figures.summary(made)}}  # fmt: skip
    trace = {"seconds": 60, "period": traffic.Shape().period, "burst": traffic.Shape().burst}
    tables = {"all": figures.rank({arm: about["phases"]["all"] for arm, about in arms.items()})}
    content = {
        "shape": "llama-3.1-8b",
        "trace": trace,
        "scale": 1.0,
        "hardware": "4 x G",
        "arms": arms,
        "tables": tables,
    }
    (folder / "shift_trace_llama-3.1-8b.json").write_text(json.dumps(content))
    soak = {**origin, "requests": 9252, "hung_up": 1800, "seconds": 121.0, "failed": 0,
            "held_when_idle": {"num_used_tokens": 0}, "shift_after": {"steps": {"tp": 900, "sp": 30}, "switches": 44},
            "answers": load("shift_soak").judge([spoken()], [spoken()], [], 0.05, 0.25)}  # fmt: skip
    (folder / "shift_soak.json").write_text(json.dumps(soak))
    (folder / "shift_speed_toy.json").write_text(json.dumps({"shape": "toy"}))


def test_results_become_tables_bars_and_lines(tmp_path):
    shutil.copy(ROOT / "docs" / "shift.md", tmp_path)
    write_results(tmp_path)
    arguments = ("--results", tmp_path, "--docs", tmp_path)
    assert plot(*arguments, "--check").returncode == 1
    done = plot(*arguments)
    assert done.returncode == 0, done.stderr
    assert plot(*arguments, "--check").returncode == 0
    page = (tmp_path / "shift.md").read_text()
    row = "| time to first token, 8,192 tokens | ms | 80.00 | 208.00 | 60.00 | 1.333 | 3.467 |"
    assert f"{row} at most 0.76 of tp's time: met, 1.333 |" in page
    assert "at least 0.96 of dp's tokens/s: not met, 0.933 |" in page
    assert "DP=4 ended early: it broke" in page
    assert "| all | time to first token, median, ms | 400.00 | 400.00 | 1.000 |" in page
    assert "| steps, tensor and sequence parallel | 900, 30 |" in page
    assert "![shift-ttft](shift-ttft.svg)" in page
    assert "shift, SP=4, ttft 8192: 1.33" in (tmp_path / "shift-speed.svg").read_text()
    lines = (tmp_path / "shift-ttft.svg").read_text()
    # two runs of points of each arm, of the two bins of 5 seconds in which requests came
    assert (lines.count("<polyline"), lines.count("<circle")) == (4, 4)
