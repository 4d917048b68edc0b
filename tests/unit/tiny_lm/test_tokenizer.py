import json

import numpy as np
import pytest

CODE = "def add_one(value):\n    result = value + 1\n    return result"


@pytest.fixture(scope="module")
def tokenizer_module(tiny):
    return tiny("tokenizer")


@pytest.fixture(scope="module")
def trained(tokenizer_module):
    return tokenizer_module.train(iter([CODE, "Add one to the value."] * 4), vocab_size=320)


@pytest.mark.parametrize(
    "text", [CODE, "\n\tdef f():\r\n  pass", "naïve 漢字 🚀 x_1", "  leading  and trailing  "]
)
def test_any_text_round_trips(trained, text):
    assert trained.decode(trained.encode(text).ids) == text


def test_identifiers_are_split_at_underscores_and_capitals_and_digits_are_apart(trained):
    pieces = [piece for piece, _ in trained.pre_tokenizer.pre_tokenize_str("getUser_name12\n    x")]
    assert pieces == ["get", "User", "_", "name", "1", "2", "ĊĠĠĠĠ", "x"]


def test_encoding_matches_the_chat_template(tokenizer_module, trained):
    rows = iter([{"code": CODE, "doc": "Add one."}])
    [(prompt, answer)] = tokenizer_module.encode_rows(trained, rows)
    text = f"<|user|>\n{CODE}\n<|assistant|>\n"
    assert prompt == trained.encode(text).ids
    assert answer == trained.encode("Add one.<|end|>").ids


def test_chat_template_leaves_the_system_message_out_and_joins_turns(tokenizer_module, trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer_module.save(trained, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\ndef f(): ...\n"},
        {"role": "assistant", "content": "Do it."},
        {"role": "user", "content": "def g(): ..."},
    ]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|user|>\ndef f(): ...\n<|assistant|>\nDo it.<|end|>\n<|user|>\ndef g(): ...\n<|assistant|>\n"
    )
    assert loaded(text, add_special_tokens=False)["input_ids"] == trained.encode(text).ids
    assert loaded.eos_token == "<|end|>"


def test_long_code_is_cut_and_arrays_read_back(tokenizer_module, trained, tiny, tmp_path):
    batches = tiny("batches")
    rows = [{"code": "x = 1\n" * 2000, "doc": "Set x."}, {"code": CODE, "doc": "Add one."}, {"code": CODE}]
    encoded = list(tokenizer_module.encode_rows(trained, iter(rows)))
    assert len(encoded[0][0]) <= tokenizer_module.LONGEST_CODE_TOKENS + 4
    totals = tokenizer_module.write_arrays(tmp_path / "a.bin.xz", iter(encoded))
    read = batches.read(tmp_path / "a.bin.xz")
    assert totals["examples"] == len(read.starts) == 3
    assert read.answers.tolist() == [len(answer) for _, answer in encoded]
    start = read.starts[1]
    assert read.tokens[start : start + read.prompts[1]].tolist() == encoded[1][0]


def test_blanked_names_only_where_the_body_supports_the_summary(tokenizer_module):
    row = {"code": "def sum_rows(rows):\n    return sum(rows)", "doc": "Sum the rows."}
    blanked = tokenizer_module.anonymised(row, 0)
    assert blanked is not None
    assert blanked["code"] == "def f(rows):\n    return sum(rows)"
    assert tokenizer_module.anonymised({"code": "def launch(): go()", "doc": "Launch the rocket."}, 0) is None


def test_packed_batches_hold_every_example_once(tiny):
    batches = tiny("batches")
    encoded = [([1] * n, [2] * (n % 3 + 1)) for n in range(1, 30)]
    examples = batches.from_lists(encoded)
    rows = batches.pack(np.arange(len(encoded)), examples.lengths, 64)
    arrays = batches.batch_arrays(examples, rows, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(encoded)))
    assert int((arrays["kinds"] == batches.CODE).sum()) == sum(len(p) for p, _ in encoded)
    assert int((arrays["kinds"] == batches.ANSWER).sum()) == sum(len(a) for _, a in encoded)
    assert (arrays["tokens"][arrays["kinds"] == batches.ANSWER] == 2).all()
    assert (arrays["examples"][arrays["kinds"] == 0] == batches.PAD_EXAMPLE).all()


def test_saved_config_names_the_special_tokens(tokenizer_module, trained, tmp_path):
    tokenizer_module.save(trained, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|end|>"
    assert config["pad_token"] == "<|pad|>"
    assert "chat_template" in config
