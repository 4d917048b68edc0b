"""The examples run; SGLang's part of them is run by tests/engine and `make demo`."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from speculative.speculators import load
from swiftkv.checkpoint import ADDED
from tests.unit.test_docs_site import known_flags

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def output(*command: str) -> str:
    """What an example of this name and these flags prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / command[0]), *command[1:]],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name, as a script beside the others does."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_batch_with_the_dummy_engine():
    found = output("batch.py", "--engine", "dummy", "--rows", "5")
    assert "is_palindrome" in found
    assert "shape: (5, 2)" in found


def test_embeddings_with_the_dummy_engine():
    found = output("embeddings.py", "--engine", "dummy", "--model", "any")
    assert found.startswith("270 vectors of 16 numbers")
    assert found.count("\n    0.") == 10


class TestDeployment:
    """What is asked of the engine and the server; `tests/engine/test_examples.py` starts them."""

    def options(self, example, *flags):
        parser = argparse.ArgumentParser()
        offline = example("offline")
        offline.add_arguments(parser)
        return offline.options(parser.parse_args(flags))

    def test_the_tiny_model(self, example):
        found = self.options(example)
        assert Path(found["model_path"]).samefile(EXAMPLES / "tiny_lm" / "swiftkv")
        assert Path(found["speculative_draft_model_path"]).samefile(EXAMPLES / "tiny_lm" / "speculator")
        assert found["speculative_algorithm"] == "ARCTIC"
        assert found["enable_suffix_decoding"] is True

    def test_another_model(self, example):
        """Nothing of the tiny model's is left: no head, and no flag of SwiftKV, which might be refused."""
        assert self.options(example, "--model", "M") == {
            "model_path": "M", "speculative_algorithm": "SUFFIX",
        }  # fmt: skip
        assert self.options(example, "--model", "M", "--head", "H") == {
            "model_path": "M", "speculative_algorithm": "ARCTIC", "speculative_draft_model_path": "H",
            "enable_suffix_decoding": True,
        }  # fmt: skip

    def test_as_flags(self, example):
        found = example("serving").flags(self.options(example, "--model", "M", "--ranks", "2"))
        assert found == [
            "--model-path", "M", "--speculative-algorithm", "SUFFIX", "--ulysses-sequence-parallel-size", "2",
            "--enable-shift-parallel",
        ]  # fmt: skip
        tiny = example("serving").flags(self.options(example))
        assert {flag for flag in [*found, *tiny] if flag.startswith("--")} <= known_flags()


class TestTraining:
    @pytest.fixture(autouse=True)
    def one_thread(self):
        """A model this small is no faster on several."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @pytest.fixture
    def rows(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        rows = [
            {"prompt": f"def add{n}(x):\n    return x + {n}", "response": f"Return x plus {n}."}
            for n in range(12)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def test_functions(self, example, tmp_path):
        files = example("train_head").functions(tmp_path, 12)
        train, heldout = (pl.read_parquet(file) for file in files)
        assert (len(train), len(heldout)) == (12, 30)
        assert train.columns == heldout.columns == ["prompt", "response"]
        assert len(pl.concat([train, heldout]).unique()) == 42

    def test_a_head(self, example, tmp_path, rows, capsys):
        flags = ["--prompts", rows, "--heldout", rows, "--steps", "2", "--max-new-tokens", "12"]
        flags += ["--out", str(tmp_path / "out")]
        assert example("train_head").main(flags) == 0
        assert "tokens per verify step  1." in capsys.readouterr().out
        assert load(tmp_path / "out" / "head").config.n_predict == 3
        assert example("train_head").main(flags) == 2
        assert "head exists already; name another folder, or remove it" in capsys.readouterr().err

    def test_a_swiftkv_model(self, example, tmp_path, rows, capsys):
        flags = ["--data", rows, "--heldout", rows, "--steps", "2", "--max-new-tokens", "4", "--layers", "6"]
        flags += ["--out", str(tmp_path / "out")]
        assert example("distil_swiftkv").main(flags) == 0
        assert capsys.readouterr().out.count("perplexity of SwiftKV") == 2
        made = [(tmp_path / "out" / name / ADDED).read_bytes() for name in ("converted", "distilled")]
        assert made[0] != made[1]
        config = json.loads((tmp_path / "out" / "distilled" / "config.json").read_text())
        assert (config["model_type"], config["num_key_value_layers"]) == ("llama_swiftkv", 6)
        assert example("distil_swiftkv").main(flags) == 2
        assert "converted" in capsys.readouterr().err

    @pytest.mark.parametrize(("name", "flag"), [("train_head", "--prompts"), ("distil_swiftkv", "--data")])
    def test_rows_of_ones_own_without_others_to_measure_on(self, example, name, flag, capsys):
        with pytest.raises(SystemExit):
            example(name).main([flag, "rows.jsonl"])
        assert f"{flag} and --heldout go together" in capsys.readouterr().err
