"""The benchmarks of Shift Parallelism: the synthetic traffic, and what is made of figures."""

import importlib
import itertools
import json
import statistics
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
    module = load("shift_speed")
    args = module.parse(["--gpus", "4", "--base-tp", "2", "--quantization", "fp8"])
    found = {arm: module.engine_options(arm, args, 8192) for arm in module.ARMS}
    assert found["dp"]["max_total_tokens"] == 2048
    assert {found[arm]["max_total_tokens"] for arm in ("tp", "shift", "sp")} == {8192}
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
