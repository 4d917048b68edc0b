import json

import pytest
import torch
import transformers

from swiftkv import settings
from swiftkv.convert import convert
from swiftkv.errors import SwiftKVError
from swiftkv.evaluate import evaluate, main, table


@pytest.fixture(scope="module")
def twin(llama, tmp_path_factory):
    """One upper layer: at the start it is the base, since the cut's keys and values are its own."""
    return convert(llama, 5, tmp_path_factory.mktemp("same") / "twin")


@pytest.fixture(scope="module")
def other(llama, tmp_path_factory):
    return convert(llama, 2, tmp_path_factory.mktemp("other") / "model")


def test_a_model_against_itself(twin, write_rows, pairs):
    found = evaluate(twin, write_rows(pairs[:6]), max_new_tokens=5, batch_size=4)
    assert found["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert found["equal_next_token"] == 1.0
    assert found["continuations"] == {"max_new_tokens": 5, "prompts": 6, "equal": 1.0, "equal_tokens": 1.0}
    assert "same continuation" in table(found)


def test_perplexity_is_the_bases(llama, other, tokenizer, write_rows, pairs):
    """Counted by hand: the answer and its end, row by row."""
    base = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    nats, count = 0.0, 0
    for row in pairs[:4]:
        before = f"<|user|>\n{row['prompt']}\n<|assistant|>\n"
        prompt, answer = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (before, row["response"] + "<|end|>")
        )
        with torch.no_grad():
            logits = base(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    found = evaluate(other, write_rows(pairs), limit=4, max_new_tokens=0)
    assert found["tokens"] == count
    assert found["base_perplexity"] == pytest.approx(torch.tensor(nats / count).exp().item(), rel=1e-4)
    assert found["swiftkv_perplexity"] != pytest.approx(found["base_perplexity"], rel=1e-3)
    assert found["equal_next_token"] < 1
    assert "continuations" not in found


def test_continuations_are_what_each_model_writes(llama, other, tokenizer, write_rows, pairs):
    found = evaluate(other, write_rows(pairs[:4]), max_new_tokens=6, batch_size=3)["continuations"]
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (llama, other)]
    equal, same, total = 0, 0, 0
    for row in pairs[:4]:
        prompt = tokenizer(f"<|user|>\n{row['prompt']}\n<|assistant|>\n", return_tensors="pt").input_ids
        base, swiftkv = (
            m.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
            for m in models
        )
        equal += base == swiftkv
        while same < total + len(base) and base and swiftkv and base[0] == swiftkv[0]:
            same += 1
            base, swiftkv = base[1:], swiftkv[1:]
        total += 6
    assert found["equal"] == equal / 4
    assert found["equal_tokens"] == pytest.approx(same / total, abs=0.1)


def test_text_has_no_prompts(other, write_rows):
    found = evaluate(other, write_rows([{"text": "one two three"}]))
    assert found["tokens"] == 2  # nothing predicts the first
    assert "continuations" not in found


def test_command_line(twin, llama, write_rows, pairs, tmp_path, capsys):
    rows, out = write_rows(pairs[:2]), tmp_path / "figures.json"
    flags = ["--data", str(rows), "--max-new-tokens", "2", "--dtype", "float32"]
    assert main(["--model", str(twin), *flags, "--out", str(out)]) == 0
    assert "perplexity of SwiftKV" in capsys.readouterr().out
    assert json.loads(out.read_text())["dtype"] == "float32"
    assert main(["--model", str(llama), *flags]) == 2
    assert capsys.readouterr().err.startswith("swiftkv.evaluate: error: ")
    assert main(["--model", str(twin), *flags, "--limit", "0"]) == 2


def test_rows_are_as_long_as_is_asked(twin, write_rows, monkeypatch):
    monkeypatch.setattr(settings, "DEFAULT_SEQUENCE_LENGTH", 64)
    rows = write_rows([{"text": "def add(a, b): return a + b " * 50}])
    assert [evaluate(twin, rows, sequence_length=n)["tokens"] for n in (None, 64, 100)] == [63, 63, 99]
    with pytest.raises(SwiftKVError, match="--sequence-length is 513 and the model has 512 positions"):
        evaluate(twin, rows, sequence_length=513)


def test_no_room_for_a_continuation(twin, write_rows, pairs):
    rows = write_rows(pairs[:2])
    with pytest.raises(SwiftKVError, match="--max-new-tokens is 48 and a sequence has 40 tokens"):
        evaluate(twin, rows, sequence_length=40)
    found = evaluate(twin, rows, sequence_length=49)  # for no prompt of these rows
    assert found["continuations"]["prompts"] == 0
    assert "same continuation" not in table(found)


def test_figures_are_told_before_they_are_written(twin, write_rows, pairs, tmp_path, capsys, monkeypatch):
    flags = ["--model", str(twin), "--data", str(write_rows(pairs[:2])), "--max-new-tokens", "0", "--out"]
    assert main([*flags, "/dev/full"]) == 2
    told = capsys.readouterr()
    assert "perplexity of SwiftKV" in told.out
    assert "--out /dev/full could not be written: [Errno 28]" in told.err
    monkeypatch.setattr("swiftkv.evaluate.evaluate", None)  # not asked
    for out in (tmp_path, tmp_path / "nowhere" / "x.json"):
        assert main([*flags, str(out)]) == 2
        assert "must be a file in a folder that exists" in capsys.readouterr().err


def test_another_teacher(twin, make_base, write_rows, pairs):
    with pytest.raises(SwiftKVError, match="is not the base of"):
        evaluate(twin, write_rows(pairs), teacher=make_base("llama", hidden_size=16))
