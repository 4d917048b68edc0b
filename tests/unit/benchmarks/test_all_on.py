"""Everything on against other deployments: what is asked of it, and how it is told."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FAST = {"ttft 8192": 40.0, "prefill": 230_000.0, "decode 1": 2.0, "mix": 4.0}
SLOW = {"ttft 8192": 80.0, "prefill": 110_000.0, "decode 1": 2.5, "mix": 6.0}


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def load(name):
    return importlib.import_module(name)


def table(bars=True, reached=True, **arms):
    known = load("workloads").workloads(False, 32, (2048, 8192))
    found = {arm: {"cases": {n: {"median": v} for n, v in medians.items()}} for arm, medians in arms.items()}
    return load("all_on_speed").compare(found, known, bars, reached)


def verdicts(row):
    return {(bar["arm"], bar["stated"].split(":")[0]): bar["met"] for bar in row["bars"]}


def test_everything_on_is_compared_with_the_first_of_stock_and_with_tp():
    found = table(tp=SLOW, dp=FAST, all=FAST, shift=FAST, reached=False)
    assert verdicts(found["ttft 8192"]) == {
        ("all", "at least 0.97 of the first one's speed"): True,
        ("all", "at least 1.5 times tp's speed"): True,
    }
    assert verdicts(found["prefill"]) == {("all", "at least 0.97 of the first one's speed"): True}
    assert found["prefill"]["faster"]["all"] == {"tp": round(230 / 110, 4), "dp": 1.0}
    behind = table(**{"tp": SLOW, "tp-ngram": FAST, "all": SLOW}, reached=False)
    assert not any(met for row in behind.values() for met in verdicts(row).values())
    assert behind["decode 1"]["bars"][0]["value"] == 0.8


def test_shift_with_swiftkv_is_held_to_figures_and_its_decode_to_tp():
    found = table(tp=SLOW, swiftkv=FAST)
    assert verdicts(found["ttft 8192"]) == {("swiftkv", "at most 38.00 ms"): False}
    assert verdicts(found["prefill"]) == {("swiftkv", "at least 225,000.00 tokens/s"): True}
    assert verdicts(found["mix"]) == {("swiftkv", "at most 4.27 s"): True}
    assert verdicts(found["decode 1"]) == {("swiftkv", "tp's speed"): True}
    assert "bars" not in table(bars=False, tp=SLOW, swiftkv=FAST)["mix"]
    assert verdicts(table(swiftkv=FAST, reached=False)["mix"]) == {}


def test_a_head_that_is_not_there_is_refused_and_none_is_written_in_its_place(tmp_path, capsys):
    speed, head = load("all_on_speed"), ROOT / "examples" / "tiny_lm" / "speculator"
    assert speed.parse(["--draft-head", str(head)]).draft_head == head
    with pytest.raises(SystemExit):
        speed.parse(["--draft-head", str(tmp_path / "absent")])
    assert "has no config.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_shown_names_what_is_not_met():
    text = load("all_on_speed").show(table(tp=SLOW, swiftkv=FAST))
    assert "NOT MET: swiftkv, at most 38.00 ms" in text
    assert "met: swiftkv, tp's speed" in text


def test_both_texts_know_of_an_arm_that_failed(tmp_path):
    module, made = load("record"), {}
    for text in ("fresh", "repeats"):
        args = Namespace(out=tmp_path, name=f"x_{text}", fresh=False, commit="abc")
        made[text] = module.Record(args, {"text": text}, lambda arms: sorted(arms))
    both = module.Records(made)
    both.arm("tp", {"options": {}})
    assert not both.ended
    both.failed("all", RuntimeError("gone"))
    assert both.ended == {"all"}
    for text in made:
        content = json.loads((tmp_path / f"x_{text}.json").read_text())
        assert content["table"] == ["all", "tp"]
        assert content["arms"]["all"]["error"] == "gone"


def test_a_section_of_the_report_has_every_arm_and_what_was_asked():
    known = load("workloads").workloads(False, 32, (2048, 8192))
    arms = {"tp": SLOW, "tp-ngram": SLOW, "swiftkv": FAST, "all": FAST}
    result = {
        "gpus": 4, "base_tp": 1, "table": table(**arms),
        "arms": {arm: {"cases": {n: {"median": v} for n, v in medians.items()}} for arm, medians in arms.items()},
        "sizes": {name: [w.requests, w.tokens_in, w.tokens_out] for name, w in known.items()},
    }  # fmt: skip
    module = load("report_deployments")
    rows = module.workload_rows(result)
    assert rows.splitlines()[0] == "| | unit | TP=4 | TP=4, NGRAM | shift, SwiftKV | all on | asked |"
    assert "shift, SwiftKV, at most 38.00 ms: times as fast as that: not met, 0.950" in rows
    assert set(module.plots("all_on_x", result)) == {
        "report-all_on_x-first-token.svg", "report-all_on_x-decode.svg",
    }  # fmt: skip


def test_on_one_gpu_everything_is_on_but_what_takes_several(capsys):
    speed, deployments = load("all_on_speed"), load("deployments")
    args = speed.parse(["--gpus", "1"])
    assert args.arms == ["tp", "tp-ngram", "swiftkv", "all"]
    options = deployments.chosen_options("all", args, ROOT)
    assert not {"enable_shift_parallel", "ulysses_sequence_parallel_size"} & set(options)
    assert options["enable_suffix_decoding"]
    assert options["tp_size"] == 1
    assert deployments.titles(1, 1)["swiftkv"] == "SwiftKV"
    assert deployments.titles(2, 1)["swiftkv"] == "shift, SwiftKV"
    with pytest.raises(SystemExit):
        speed.parse(["--gpus", "1", "--arms", "tp", "dp-ngram"])
    assert "dp-ngram is tp-ngram with --gpus 1" in capsys.readouterr().err
    assert speed.parse(["--gpus", "4", "--base-tp", "4"]).arms[:2] == ["tp", "dp"]
    with pytest.raises(SystemExit):
        load("shift_speed").parse(["--gpus", "1"])
    assert "--arms dp is tp" in capsys.readouterr().err


def test_an_arm_may_be_measured_alone():
    for gpus in "1", "2":
        assert load("all_on_speed").parse(["--gpus", gpus, "--arms", "all"]).arms == ["all"]
