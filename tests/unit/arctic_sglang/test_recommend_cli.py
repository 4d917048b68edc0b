"""The command `arctic-recommend` and its page; SGLang's own parser is asked in `tests/engine/test_plugin.py`."""

import json
import re
import shlex
from pathlib import Path

import pytest

from arctic_sglang import docs
from arctic_sglang.recommend import __main__ as cli
from arctic_sglang.recommend.answer import KINDS

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tests" / "data" / "configs"
LLAMA = str(CONFIGS / "Llama-3.1-8B")
FOUR = ["--gpus", "4", "--gpu-memory", "139.8"]


def run(capsys, *words):
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_pages_examples_are_the_tools_output(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "choosing.md").read_text()
    assert len(re.findall(r"^\$ arctic-recommend ", page, re.MULTILINE)) >= 4
    assert docs.choosing_page(page) == page, "run `make docs`"
    changed = page.replace("python -m sglang.launch_server", "python -m something_else")
    assert docs.choosing_page(changed) == page


def test_the_pages_figures_are_in_the_results():
    from arctic_sglang.recommend import evidence

    text = (ROOT / "docs" / "choosing.md").read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    known = {value.value for value in vars(evidence).values() if isinstance(value, evidence.Figure)}
    assert set(re.findall(r"(?<!\d\.)\b\d+\.\d{2,}\b", prose)) <= known


def test_command_line(capsys):
    code, out, _ = run(capsys, "--model", LLAMA, *FOUR, "--traffic", "interactive")
    assert code == 0
    line, *notes = out.splitlines()
    assert shlex.split(line) == [
        "python", "-m", "sglang.launch_server", "--model-path", LLAMA, "--ulysses-sequence-parallel-size", "4",
        "--enable-shift-parallel",
    ]  # fmt: skip
    assert all(
        not note or note.startswith("#") for note in notes
    )  # the whole answer can be pasted into a shell
    text = "\n".join(notes)
    assert "--enable-shift-parallel: " in text
    assert "(shift_speed_llama-3.1-8b.json)" in text
    assert "# Not known" in text


def test_python_is_python(capsys):
    code, out, _ = run(capsys, "--model", LLAMA, *FOUR, "--traffic", "bulk", "--format", "python")
    assert code == 0
    compile(out, "answer.py", "exec")
    assert "        dp_size=4,\n" in out


def test_json(capsys):
    words = ["--requests-at-once", "8", "--tokens-in", "900", "--tokens-out", "90"]
    code, out, _ = run(capsys, "--model", LLAMA, *FOUR, *words, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert found["engine"] == {
        "model_path": LLAMA, "ulysses_sequence_parallel_size": 4, "enable_shift_parallel": True
    }  # fmt: skip
    assert found["argv"][:3] == ["python", "-m", "sglang.launch_server"]
    assert found["traffic"] == {
        "kind": "interactive", "requests_at_once": 8, "tokens_in": 900, "tokens_out": 90, "measured": True
    }  # fmt: skip
    assert found["why"][0]["results"] == ["shift_speed_llama-3.1-8b.json"]
    assert not any("assumed" in line for line in found["unknown"])


def test_numbers_may_go_with_a_kind(capsys):
    words = ["--traffic", "agentic", "--requests-at-once", "300", "--tokens-in", "9000", "--tokens-out", "90"]
    code, out, _ = run(capsys, "--model", LLAMA, *FOUR, *words, "--format", "json")
    assert code == 0
    assert json.loads(out)["engine"]["speculative_algorithm"] == "SUFFIX"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens-in", "9", *FOUR], "without --requests-at-once and --tokens-out; give all three"),
        (["--model", "no/such folder", *FOUR], "there is no such folder, and config.json cannot be fetched"),
        (["--model", str(ROOT / "docs"), *FOUR], "config.json cannot be read (FileNotFoundError"),
        (["--gpus", "1", "--gpu-memory", "10"], "does not fit on 1 x 10 GiB"),
    ],
)
def test_one_clear_error(capsys, words, message):
    code, out, err = run(capsys, "--model", LLAMA, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("arctic-recommend: ")


def test_this_machines_gpus(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run(capsys, "--model", LLAMA, "--gpus", "2")
    assert code == 2
    assert "this machine has no GPU to look at; give --gpu-memory GIB of those" in err
    memory = {0: 80 * 2**30, 1: 79 * 2**30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    about = type("About", (), {})

    def properties(gpu):
        about.total_memory = memory[gpu]
        return about

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    code, out, _ = run(capsys, "--model", LLAMA)
    assert code == 0
    assert "# 2 of 2 x 79 GiB" in out


def test_sizes_come_from_the_index_or_the_files(tmp_path):
    config = (CONFIGS / "DeepSeek-V3" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    assert cli.read_model(str(tmp_path)).file_bytes is None
    (tmp_path / "a.safetensors").write_bytes(b"0" * 70)
    assert cli.read_model(str(tmp_path)).file_bytes == 70
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 900}}')
    assert cli.read_model(str(tmp_path)).file_bytes == 900


def test_what_modelopt_quantised_is_seen(tmp_path):
    (tmp_path / "config.json").write_text((CONFIGS / "Llama-3.1-8B" / "config.json").read_text())
    (tmp_path / "hf_quant_config.json").write_text("{}")
    assert cli.read_model(str(tmp_path)).quantized == "modelopt"


def test_pooling_files_that_cannot_be_followed_are_an_error(tmp_path, capsys):
    (tmp_path / "config.json").write_text((CONFIGS / "arctic-embed-m" / "config.json").read_text())
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.LSTM", "path": ""}]')
    code, _, err = run(capsys, "--model", str(tmp_path), *FOUR, "--traffic", "embeddings")
    assert code == 2
    assert "LSTM" in err
    assert "--embedding-pooling stock" in err


def test_every_kind_of_traffic_is_in_the_page():
    text = (ROOT / "docs" / "choosing.md").read_text()
    for kind, traffic in KINDS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        assert f"{traffic.requests} x {traffic.tokens_in:,} in" in row
