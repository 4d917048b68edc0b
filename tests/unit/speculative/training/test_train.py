import json
import os
import signal
from pathlib import Path

import pytest
import torch

from speculative import evaluate
from speculative.speculators import load
from speculative.train import main, train
from speculative.training import generations, loop
from speculative.training.errors import TrainingError
from speculative.training.settings import Settings
from swiftkv.errors import SwiftKVError
from swiftkv.loop import Interrupted
from tests import ranks

ROOT = Path(__file__).parents[4]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def settings(folder, written, tmp_path):
    """Settings of a short run; `settings(seed=1)` changes some."""
    plain = {
        "model": str(folder), "output": str(tmp_path / "out"), "generations": str(written), "epochs": 4,
        "sequence_length": 64, "batch_size": 2, "inner_dim": 16, "heldout_every": 10, "learning_rate": 1e-2,
    }  # fmt: skip
    return lambda **changes: Settings(**(plain | changes))


def weights(folder) -> dict[str, torch.Tensor]:
    return load(folder).state_dict()


def same(first, second) -> bool:
    return all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def report(folder) -> dict:
    return json.loads((Path(folder) / "training.json").read_text())


@pytest.fixture
def stop_at(monkeypatch):
    """Sends this process a signal after a step."""

    def arrange(step: int, signum: int = signal.SIGTERM) -> None:
        advance = loop.Trainer._advance

        def stopping(trainer):
            advance(trainer)
            if trainer.step == step:
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(loop.Trainer, "_advance", stopping)

    return arrange


class TestRun:
    def test_from_prompts_to_a_head(self, folder, prompts, tmp_path):
        """The command, all three stages; what it writes is Snowflake's format and a better head than at first."""
        flags = [
            "--model", str(folder), "--prompts", str(prompts), "--output", str(tmp_path / "out"), "--epochs", "8",
            "--max-new-tokens", "8", "--temperatures", "0", "0.5", "--keep-states", "--heldout-every", "10",
            "--learning-rate", "1e-2", "--batch-size", "2", "--labels", "model",
        ]  # fmt: skip
        assert main(flags) == 0
        out = tmp_path / "out"
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == ["ArcticLSTMSpeculatorPreTrainedModel"]
        assert (config["method"], config["n_predict"], config["torch_dtype"]) == ("sum_lstm", 3, "bfloat16")
        assert (config["input_hidden_dim"], config["inner_dim"], config["scale_input"]) == (32, "32", True)
        assert sorted(path.name for path in out.iterdir()) == [
            "config.json", "evaluation.json", "pytorch_model.bin", "training.json",
        ]  # fmt: skip
        made = report(out)
        assert sum(made["curve"][-1]["losses"]) < sum(made["curve"][0]["losses"]) - 1
        assert json.loads((out / "evaluation.json").read_text()) == made["heldout"][-1]
        assert not (tmp_path / "out.resume").exists()
        result = evaluate.evaluate(str(folder), out, str(prompts), max_new_tokens=8, batch_size=5)
        assert result["responses"] == 24
        assert 1 <= result["acceptance_length"] <= 4

    def test_stopped_and_resumed(self, settings, tmp_path, stop_at, monkeypatch):
        whole = train(settings(output=str(tmp_path / "whole")))
        stop_at(3)
        with pytest.raises(Interrupted) as caught:
            train(settings())
        assert caught.value.step == 3
        monkeypatch.undo()
        assert not (tmp_path / "out").exists()
        resumed = train(settings(), resume=True)
        assert same(whole, resumed)
        assert report(whole)["heldout"] == report(resumed)["heldout"]
        assert report(whole)["tokens"] == report(resumed)["tokens"]

    def test_stopped_in_an_earlier_stage(self, settings, prompts, tmp_path, monkeypatch):
        more = {
            "prompts": str(prompts),
            "max_new_tokens": 4,
            "max_steps": 3,
            "generations": None,
            "keep_states": True,
        }
        monkeypatch.setattr(generations, "PART_PROMPTS", 5)
        whole = train(settings(**more, output=str(tmp_path / "whole")))
        written = generations._write

        def stopping(path, rows):
            written(path, rows)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(generations, "_write", stopping)
        for _ in range(5):
            with pytest.raises(Interrupted):
                train(settings(**more), resume=(tmp_path / "out.resume").exists())
        monkeypatch.setattr(generations, "_write", written)
        assert same(whole, train(settings(**more), resume=True))

    def test_states_on_disk_teach_the_same(self, settings, tmp_path):
        first = train(settings(output=str(tmp_path / "first"), epochs=1))
        second = train(settings(output=str(tmp_path / "second"), epochs=1, keep_states=True))
        for name, value in weights(first).items():
            torch.testing.assert_close(value, weights(second)[name], atol=2e-2, rtol=2e-2)

    def test_accumulation_is_a_larger_batch(self, settings, tmp_path):
        first = train(settings(output=str(tmp_path / "first"), batch_size=4))
        second = train(settings(output=str(tmp_path / "second"), gradient_accumulation=2))
        for name, value in weights(first).items():
            torch.testing.assert_close(value, weights(second)[name], atol=2e-2, rtol=2e-2)

    def test_two_processes_do_what_one_does(self, settings, tmp_path):
        """On the CPU, over gloo, stopped in the middle and resumed."""
        chosen = settings()
        command = [
            Path(__file__).parent / "stopping.py", "--model", chosen.model, "--output", chosen.output,
            "--generations", chosen.generations, "--epochs", "4", "--sequence-length", "64", "--batch-size", "2",
            "--inner-dim", "16", "--heldout-every", "10", "--learning-rate", "1e-2", "--keep-states",
        ]  # fmt: skip
        with ranks.started(*command, ACCELERATE_USE_CPU="true"):
            alone = train(settings(output=str(tmp_path / "alone"), batch_size=4))
        assert report(chosen.output)["processes"] == 2
        assert report(chosen.output)["heldout"][0] == report(alone)["heldout"][0]
        for name, value in weights(alone).items():
            torch.testing.assert_close(value, weights(chosen.output)[name], atol=2e-2, rtol=2e-2)


class TestRefusals:
    def test_another_run(self, settings, written, stop_at, monkeypatch):
        stop_at(3)
        with pytest.raises(Interrupted):
            train(settings())
        monkeypatch.undo()
        with pytest.raises(TrainingError, match="did not end; go on with --resume"):
            train(settings())
        with pytest.raises(SwiftKVError, match=r"--epochs was 4 and is 5; --seed was 0 and is 3$"):
            train(settings(seed=3, epochs=5), resume=True)

    def test_a_loss_that_is_no_number(self, settings):
        with pytest.raises(TrainingError, match="lower --learning-rate"):
            train(settings(learning_rate=1e30, epochs=20, warmup_ratio=0.0))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"generations": None}, "neither --prompts nor --generations"),
            ({"batch_size": 0}, "--batch-size is 0"),
            ({"sequence_length": 1}, "--sequence-length is 1"),
            ({"learning_rate": 0.0}, "--learning-rate is 0"),
            ({"weight_decay": -1.0}, "--weight-decay is -1"),
            ({"warmup_ratio": 1.0}, "--warmup-ratio is 1"),
            ({"temperatures": (0.5, -1.0)}, "--temperatures is"),
            ({"labels": "words"}, "tokens or model"),
        ],
    )
    def test_settings(self, settings, changes, message):
        with pytest.raises(TrainingError, match=message):
            settings(**changes)

    def test_the_models_limits(self, settings):
        with pytest.raises(TrainingError, match="the model has 100 positions"):
            settings(sequence_length=101).for_model(8, 100)
        with pytest.raises(TrainingError, match="no prompt has room"):
            settings(prompts="p", max_new_tokens=64).for_model(8, 100)
        assert settings(sequence_length=None, inner_dim=None).for_model(8, None).sequence_length == 2048
        assert settings(inner_dim=None).for_model(8, None).inner_dim == 8

    def test_the_command(self, folder, written, tmp_path, capsys):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        flags = ["--model", str(folder), "--generations", str(written)]
        for more, message in (
            (["--output", str(tmp_path / "full")], "exists already"),
            (["--output", str(tmp_path / "no" / "out")], "is no folder"),
            (["--output", str(tmp_path / "out"), "--resume"], "nothing to resume"),
            (
                ["--output", str(tmp_path / "out"), "--generations", str(tmp_path / "none")],
                "no Parquet file at",
            ),
            (["--output", str(tmp_path / "out"), "--heldout-every", "21"], "of 21 prompts one is kept"),
            (["--output", str(tmp_path / "out"), "--model", str(tmp_path / "none")], "is no folder"),
        ):
            assert main([*flags, *more]) == 2
            error = capsys.readouterr().err
            assert message in error
            assert "Traceback" not in error

    def test_evaluation(self, folder, prompts, tmp_path, capsys):
        flags = ["--model", str(folder), "--prompts", str(prompts), "--speculator"]
        assert evaluate.main([*flags, str(tmp_path)]) == 2
        assert "config.json" in capsys.readouterr().err
