"""Runs that are stopped, die or cannot write: what is kept, and what a resumed run makes of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swiftkv import checkpoint, loop, training
from swiftkv.checkpoint import ADDED
from swiftkv.convert import convert
from swiftkv.distill import distill, main
from swiftkv.errors import SwiftKVError
from tests import ranks

ROOT = Path(__file__).parents[3]
STOPPING = str(Path(__file__).parent / "stopping.py")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def report(folder) -> dict:
    return json.loads((Path(folder) / "distillation.json").read_text())


def test_it_changes_nothing(settings, tmp_path, rows, monkeypatch):
    whole = distill(settings(out=str(tmp_path / "whole"), heldout=str(rows)))
    monkeypatch.setattr(training.Trainer, "done", property(lambda self: stop(self)))

    def stop(trainer):
        if trainer.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return trainer.step >= trainer.total

    with pytest.raises(loop.Interrupted) as caught:
        distill(settings(heldout=str(rows)))
    assert caught.value.step in (7, 8)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    resumed = distill(settings(heldout=str(rows)), resume=True)
    expected, found = (load_file(folder / ADDED) for folder in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    first, second = report(whole), report(resumed)
    assert first["heldout"] == second["heldout"]
    assert first["tokens"] == second["tokens"]


@pytest.fixture
def saved(settings, model, tmp_path, monkeypatch):
    """Settings of a run that died after a saving, of a model of its own."""
    settings = partial(settings, model=str(shutil.copytree(model, tmp_path / "model")))

    class Died(Exception):
        pass

    advance = training.Trainer._advance

    def die(trainer):
        if trainer.step == 5:
            raise Died
        advance(trainer)

    monkeypatch.setattr(training.Trainer, "_advance", die)
    with pytest.raises(Died):
        distill(settings(save_every=2))
    monkeypatch.undo()
    return settings


def test_a_run_that_died(saved):
    assert report(distill(saved(), resume=True))["steps"] > 5


def test_other_settings_are_refused(saved, write_rows, pairs):
    with pytest.raises(SwiftKVError, match=r"--temperature was 2\.0 and is 4\.0; --seed was 0 and is 3$"):
        distill(saved(temperature=4.0, seed=3), resume=True)
    with pytest.raises(SwiftKVError, match="did not end"):
        distill(saved())
    write_rows(pairs[:-1])
    with pytest.raises(SwiftKVError, match=r"rows of .* are not those"):
        distill(saved(), resume=True)


def test_another_model_is_refused(saved, make_base):
    """At the same path, of another base or cut elsewhere."""
    folder = Path(saved().model)
    for base, cut in ((make_base(seed=7), 2), (make_base(), 4)):
        shutil.rmtree(folder)
        convert(base, cut, folder, key_value_group_size=2)
        with pytest.raises(SwiftKVError, match="is not the model that the run was begun with"):
            distill(saved(), resume=True)


def test_a_copy_of_the_model_is_the_same(saved):
    folder = Path(saved().model)
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    assert report(distill(saved(), resume=True))["steps"] > 5


def test_a_state_without_a_note_of_its_model_is_taken(saved):
    """As versions wrote it that kept none."""
    state = saved().work / training.STATE
    found = torch.load(state, weights_only=True)
    del found["origin"]
    torch.save(found, state)
    assert report(distill(saved(), resume=True))["steps"] > 5


def test_a_stop_says_whether_a_resumed_run_goes_on(settings, monkeypatch, capsys):
    def stopped(settings, *, resume):
        raise loop.Interrupted(signal.SIGTERM, 7)

    monkeypatch.setattr("swiftkv.distill.distill", stopped)
    given = settings()
    flags = ["--model", given.model, "--data", given.data, "--out", given.out]
    assert main(flags) == 143
    assert "after step 7; nothing of the run could be saved" in capsys.readouterr().err
    given.work.mkdir(parents=True)
    (given.work / training.STATE).touch()
    assert main(flags) == 143
    assert "after step 7; the same command with --resume goes on" in capsys.readouterr().err


def test_two_shards_with_a_tensor_of_one_name_have_an_identity(saved):
    found = checkpoint.Checkpoint.open(saved().model)
    shard = next(iter(found.shards))
    shutil.copy(found.folder / shard, found.folder / "another.safetensors")
    twice = {**found.shards, "another.safetensors": found.shards[shard]}
    again = checkpoint.Checkpoint(found.folder, found.config, twice)
    assert again.identity != found.identity


def test_nothing_to_resume(settings):
    with pytest.raises(SwiftKVError, match="nothing to resume"):
        distill(settings(), resume=True)


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def terminated(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return WRITE(*args, **kwargs)


WRITE = checkpoint.write


@pytest.mark.parametrize(
    ("name", "instead", "error"),
    [("_place", full, SwiftKVError), ("write", terminated, loop.Interrupted)],
)
def test_a_folder_that_was_not_written_is_written_by_a_resumed_run(
    settings, tmp_path, monkeypatch, name, instead, error
):
    expected = distill(settings(out=str(tmp_path / "whole")))
    monkeypatch.setattr(checkpoint, name, instead)
    with pytest.raises(error):
        distill(settings())
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.resume"]
    monkeypatch.setattr(training.Trainer, "_advance", None)  # there is nothing left to train
    found = distill(settings(), resume=True)
    assert (expected / ADDED).read_bytes() == (found / ADDED).read_bytes()
    assert not settings().work.exists()


def test_no_room_for_the_last_state(settings, monkeypatch, capsys):
    """The folder may need less of it."""
    monkeypatch.setattr(torch, "save", full)
    assert (distill(settings(link=True)) / ADDED).is_file()
    assert "could not be saved: [Errno 28]" in capsys.readouterr().err


def test_a_signal_during_a_measurement_stops_there(settings, rows, monkeypatch):
    """And one before it does not wait for it; what was measured is not measured again."""
    expected = [0, 3, 6, 9]
    measure, advance = training.Trainer._measure, training.Trainer._advance

    def measured(trainer):
        measure(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def advanced(trainer):
        advance(trainer)
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Trainer, "_measure", measured)
    monkeypatch.setattr(training.Trainer, "_advance", advanced)
    chosen, steps = settings(heldout=str(rows), evaluate_every=3, max_steps=9), []
    for resume in (False, True):
        with pytest.raises(loop.Interrupted) as caught:
            distill(chosen, resume=resume)
        state = torch.load(chosen.work / training.STATE)
        steps.append((caught.value.step, [point["step"] for point in state["measured"]]))
    assert steps == [(3, [0, 3]), (6, [0, 3])]
    found = report(distill(chosen, resume=True))["heldout"]
    assert [point["step"] for point in found] == expected


def test_weights_that_are_no_numbers_are_not_saved(settings, monkeypatch):
    advance = training.Trainer._advance

    def poison(trainer):
        advance(trainer)
        if trainer.step == 5:
            next(iter(trainer._trained)).data.fill_(float("nan"))

    monkeypatch.setattr(training.Trainer, "_advance", poison)
    with pytest.raises(SwiftKVError, match="no numbers after step 5; try a lower --learning-rate"):
        distill(settings(save_every=1))
    state = torch.load(settings().work / training.STATE)
    assert state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_terminated_from_outside(settings, tmp_path):
    """The real signal, the real exit code, and the way on that is offered."""
    chosen = settings()
    command = [
        sys.executable, "-m", "swiftkv.distill", "--model", chosen.model, "--data", chosen.data, "--out", chosen.out,
        "--sequence-length", "128", "--epochs", "1000", "--heldout", chosen.data,
    ]  # fmt: skip
    run = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    for line in run.stderr:
        if "held-out perplexity" in line:  # the loop has begun
            break
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "--resume goes on" in error
    assert (tmp_path / "out.resume" / training.STATE).is_file()


def test_two_processes_do_what_one_does(settings, make_base, tmp_path):
    """On the CPU, over gloo: runs that are stopped in the middle and resumed, beside one on a single device."""
    model = str(convert(make_base("llama", tie_word_embeddings=True), 2, tmp_path / "tied"))
    command = [
        STOPPING, tmp_path, "--model", model, "--data", settings().data, "--sequence-length", "128",
        "--batch-size", "2", "--learning-rate", "3e-3", "--epochs", "4", "--gradient-checkpointing",
        "--heldout", settings().data,
    ]  # fmt: skip
    # `accelerate launch` starts several processes on the CPU only through MPI; these are the variables it sets
    with ranks.started(
        *command, ACCELERATE_USE_CPU="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP"
    ):
        alone = distill(settings(model=model, out=str(tmp_path / "alone"), batch_size=4, epochs=4))
    expected = load_file(alone / ADDED)
    for mode in ("MULTI_CPU", "FSDP"):
        found, made = load_file(tmp_path / mode / ADDED), report(tmp_path / mode)
        assert (made["processes"], made["parallel"]) == (2, mode)
        for name in expected:
            torch.testing.assert_close(expected[name], found[name], atol=2e-5, rtol=1e-3)
