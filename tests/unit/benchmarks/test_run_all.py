"""`run_all.py`: every script that measures is a claim, its commands are ones that the script takes."""

import argparse
import importlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
TINY = ROOT / "examples" / "tiny_lm" / "model"
# Committed results of another state or setting than the claim's own, and of no claim.
OTHERS = {
    "all_on_llama-3.1-8b_2_without_drafts",
    "batch_prefix_first_rows_ahead",
    "batch_prefix_full_cache_before",
    "device_parity_first_model",
    "tiny_lm_training",
}


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def load(name):
    return importlib.import_module(name)


def chosen(tmp_path, **more):
    return load("claims").Chosen(tmp_path, tmp_path / "runs", **more)


def checkpoints():
    return {name: load("shapes").checkpoint(str(TINY)) for name in ("model", "embedding")}


def test_every_script_that_measures_is_a_claim():
    measuring = {path.name for path in BENCHMARKS.glob("*.py") if "common.parser(" in path.read_text()}
    steps = {step.split()[0] for claim in load("claims").CLAIMS.values() for step in claim.steps}
    assert measuring == steps


class _Parsed(Exception):
    pass


def parsed(command, monkeypatch):
    """What a script makes of its arguments: its own `parse`, or what its parser says, and no further."""
    script = Path(command[0]).stem
    if "def parse(" in (BENCHMARKS / f"{script}.py").read_text():
        return load(script).parse(command[1:])
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments):
        raise _Parsed(original(self, *arguments))

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patched.setattr(sys, "argv", command)
        with pytest.raises(_Parsed) as found:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    return found.value.args[0]


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_every_command_is_one_that_its_script_takes(with_checkpoint, tmp_path, monkeypatch):
    more = checkpoints() if with_checkpoint else {}
    with_commit = chosen(tmp_path, commit="abc", **more)
    for name, claim in load("claims").CLAIMS.items():
        *_, last = found = [parsed(command, monkeypatch) for command in with_commit.commands(name, claim)]
        assert all((args.out, args.commit) == (tmp_path, "abc") for args in found)
        reporting = [args for args in found if getattr(args, "name", None)] or [last]
        wanted = with_commit.results(claim)
        named = getattr(reporting[-1], "name", wanted[0])
        assert wanted in ([named], [f"{named}_{text}" for text in load("claims").TEXTS]), name
        takers = [args for args in found if hasattr(args, "model") and args.model is not None]
        assert bool(takers) == (name.endswith("_soak") or (with_checkpoint and bool(claim.takes))), name


def test_committed_results_are_those_of_the_claims(tmp_path):
    known = {}
    for claim in load("claims").CLAIMS.values():
        for result in chosen(tmp_path).results(claim):
            assert result not in known
            known[result] = claim.steps[-1 if "report" in claim.steps[-1] else 0].split()[0]
    committed = {path.stem: path.read_text() for path in (BENCHMARKS / "results").glob("*.json")}
    assert committed.keys() - known.keys() == OTHERS
    for name in committed.keys() & known.keys():
        assert f"benchmarks/{known[name]}" in committed[name], name
        assert json.loads(committed[name])


def test_what_the_gpus_do_not_suffice_for_is_left_out_with_its_reason():
    module = load("run_all")
    names = ["embed_cpu", "swiftkv", "shift_speed_2", "shift_speed_8"]
    assert module.left_out(names, ["embed_cpu"], 1) == {
        "embed_cpu": "--skip",
        "shift_speed_2": "needs 2 GPUs, and there is 1",
        "shift_speed_8": "needs 8 GPUs, and there is 1",
    }
    assert module.left_out(names, [], 8) == {}
    assert module.left_out(names, [], 0)["swiftkv"] == "needs 1 GPU, and there are 0"


def test_a_dry_run_prints_commands_and_measures_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "--dry-run",
        "--gpus",
        "4",
        "--model",
        str(TINY),
        "--out",
        str(out),
        "--only",
        "swiftkv",
        "shift_speed_8",
    ]
    assert load("run_all").main(arguments) == 0
    said = capsys.readouterr().out
    assert f"python benchmarks/swiftkv_prefill.py --out {out} --model {TINY}\n" in said
    assert "# shift_speed_8 left out: needs 8 GPUs, and there are 4" in said
    assert not out.exists()


def test_one_that_fails_stops_no_other_and_is_named_in_the_end(tmp_path, monkeypatch, capfd):
    module, claim = load("run_all"), load("claims").Claim
    made = {
        "bad": claim("it has no --out", ("plot_shift.py", "traffic.py"), ()),
        "good": claim("it does nothing", ("traffic.py",), ()),
        "large": claim("it needs GPUs", ("traffic.py",), (), gpus=64),
    }
    monkeypatch.setattr(module, "CLAIMS", made)
    assert module.main(["--out", str(tmp_path), "--gpus", "1"]) == 1
    said = capfd.readouterr().out
    assert "bad failed: benchmarks/plot_shift.py (command 1 of 2) ended with 2" in said
    assert "large left out: needs 64 GPUs, and there is 1" in said
    assert "good failed" not in said
    [log] = tmp_path.glob("runs/*/bad/log.txt")
    assert "unrecognized arguments: --out" in log.read_text()
    assert "traffic.py" in log.read_text()  # the second command was run too
    assert "Not measured." in (tmp_path / "report.html").read_text()


def test_ctrl_c_still_stops_what_was_started(tmp_path, monkeypatch):
    module, ran = load("run_all"), []

    def run(command, stream):
        ran.append(command[3])
        if command[3] == "play":
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(module, "_run", run)
    steps = tuple(f"shift_trace.py {step}" for step in ("start", "play", "report", "stop"))
    with pytest.raises(KeyboardInterrupt):
        module.measure("x", load("claims").Claim("", steps, ()), chosen(tmp_path))
    assert ran == ["start", "play", "stop"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "config.json and weights is wanted"),
        ("[", "JSONDecodeError"),
        ("{}", "no vocab_size and no num_hidden"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(content, said, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        load("shapes").checkpoint(str(tmp_path))


def test_a_checkpoint_is_loaded_with_its_weights_and_a_shape_is_not(tmp_path):
    speed, deployments = load("shift_speed"), load("deployments")
    real = speed.parse(["--model", str(TINY), "--gpus", "2"])
    assert (real.shape, real.name, real.source.weights) == ("model", "shift_speed_model", "checkpoint")
    assert deployments.engine_options("shift", real, 8192)["load_format"] == "auto"
    assert real.source.place(tmp_path / "unused") == TINY
    dummy = speed.parse(["--shape", "toy", "--gpus", "2"])
    assert deployments.engine_options("tp", dummy, 8192)["load_format"] == "dummy"
    made = dummy.source.place(tmp_path / "made")
    assert json.loads((made / "config.json").read_text()) == load("shapes").TOY
    with pytest.raises(SystemExit):
        speed.parse(["--model", str(TINY), "--shape", "toy"])


def test_swiftkv_of_a_checkpoint_is_given_or_made(tmp_path):
    prefill = load("swiftkv_prefill")
    given = prefill.parse(["--model", str(TINY), "--swiftkv-model", str(TINY.with_name("swiftkv"))])
    assert prefill.place(given, "stock", tmp_path / "a") == TINY
    assert prefill.place(given, "swiftkv", tmp_path / "b") == TINY.with_name("swiftkv")
    assert not list(tmp_path.iterdir())
    made = prefill.place(prefill.parse(["--model", str(TINY)]), "swiftkv", tmp_path / "c")
    config = json.loads((made / "config.json").read_text())
    assert config["num_key_value_layers"] * 2 == config["num_hidden_layers"]
    assert list(made.glob("*.safetensors"))
    for wrong in (["--swiftkv-model", str(TINY)], ["--model", str(TINY), "--swiftkv-model", str(TINY)]):
        with pytest.raises(SystemExit):
            prefill.parse(wrong)
    shutil.rmtree(made)
