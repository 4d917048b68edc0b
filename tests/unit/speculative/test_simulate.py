"""`python -m speculative.simulate`: traces of every kind, sweeps, files, and one line for what is wrong."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from speculative.cost import CostTable
from speculative.simulate import main
from speculative.suffix import SuffixTwin
from speculative.traces import TraceError, read

MODEL = Path(__file__).parents[3] / "examples" / "tiny_lm" / "model"


class Letters:
    """A tokenizer: one token a letter, and a special one in front."""

    def encode(self, text, *, add_special_tokens):
        return [0] * add_special_tokens + [ord(letter) for letter in text]

    def apply_chat_template(self, conversation, *, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert not tokenize
        return "".join(f"<{one['role']}>{one['content']}" for one in conversation) + "<assistant>"


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def ids(text):
    return [ord(letter) for letter in text]


def test_traces_of_every_kind(tmp_path):
    chat = [{"role": "user", "content": "a"}]
    rows = [
        {"prompt": [1, 2], "response": [3], "model": "ignored"},
        "",
        {"prompt": "ab", "response": "cd"},
        {"prompt": [], "response": []},  # nothing was decoded
        {"messages": chat, "response": "x"},
        {"messages": chat, "response": {"choices": [{"message": {"role": "assistant", "content": "y"}}]}},
        {"prompt": "q", "response": {"choices": [{"text": "z"}]}},
    ]
    traces = read(write(tmp_path / "t.jsonl", rows), Letters())
    said = [(trace.prompt.tolist(), trace.response.tolist()) for trace in traces]
    rendered = ids("<user>a<assistant>")
    assert said == [
        ([1, 2], [3]),
        ([0, *ids("ab")], ids("cd")),
        (rendered, ids("x")),
        (rendered, ids("y")),
        ([0, *ids("q")], ids("z")),
    ]
    assert all(trace.prompt.dtype == trace.response.dtype == np.int32 for trace in traces)
    assert len(read(tmp_path / "t.jsonl", Letters(), most=2)) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2 is not JSON"),
        ([1], "line 2 is list, not an object"),
        ({"prompt": [1]}, r"line 2 has the keys \['prompt'\]"),
        ({"prompt": [1], "messages": [], "response": [1]}, "line 2 has the keys"),
        ({"prompt": "a", "response": [1]}, "line 2, prompt is text: name the model's tokenizer"),
        ({"messages": [], "response": [1]}, "line 2, messages is text"),
        ({"prompt": [1], "response": [1.5]}, "line 2, response is"),
        ({"prompt": [True], "response": [1]}, "line 2, prompt is"),
        ({"prompt": [-1], "response": [1]}, "line 2, prompt is"),
        ({"prompt": [2**31], "response": [1]}, "line 2, prompt is"),
        ({"prompt": None, "response": [1]}, "line 2, prompt is 'None'"),
    ],
)
def test_bad_lines(tmp_path, row, said):
    path = write(tmp_path / "t.jsonl", [{"prompt": [1], "response": [1]}, row])
    with pytest.raises(TraceError, match=said):
        read(path)


def test_a_chat_template_that_refuses(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"messages": "a", "response": [1]}])
    with pytest.raises(TraceError, match="chat template does not take them"):
        read(path, Letters())


@pytest.fixture
def traces(tmp_path):
    """A phrase that comes back within every response, and from request to request."""
    phrase = [*range(100, 120)]
    rows = [{"prompt": [1, n], "response": [n, *phrase, n, *phrase, n]} for n in range(2, 8)]
    return write(tmp_path / "traces.jsonl", rows)


def simulate(*arguments):
    return main([str(one) for one in arguments], make=SuffixTwin)


def test_a_sweep_with_all_its_files(traces, tmp_path, capsys):
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    options = ["--passes", 2, "--concurrency", 2, "--json", out, "--plot", plot]
    assert simulate(traces, *options, "--capacity-tokens", "0,4096", "--max-depth", 16) == 0
    told = json.loads(out.read_text())
    assert told["traces"] == "traces.jsonl"
    assert told["requests"] == 6
    assert told["response_tokens"] == 6 * 43
    alone, alone_again, shared, shared_again = told["rows"]
    assert (alone["settings"]["capacity_tokens"], shared["settings"]["capacity_tokens"]) == (0, 4096)
    assert alone["swept"] == {"capacity_tokens": 0}  # what differs
    assert alone["settings"]["max_depth"] == 16
    assert [row["pass"] for row in told["rows"]] == [1, 2, 1, 2]
    assert alone["accept_length"] > 1.5
    assert shared["accept_length"] > alone["accept_length"]
    assert shared_again["accept_length"] > shared["accept_length"]
    assert alone_again["settings"] == alone["settings"]
    assert CostTable.from_dict(told["cost_table"]).max_batch == 2
    said = capsys.readouterr().out
    assert "6 requests with 12 tokens of prompts and 258 of responses, 2 at once" in said
    assert "Step times: assumed, 5 ms" in said
    assert f"{shared_again['accept_length']:.2f}" in said.splitlines()[-1]
    root = ET.fromstring(plot.read_text())
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Speed-up of decoding" in texts
    assert "4096 pass 2" in texts


def test_text_with_a_real_tokenizer(tmp_path, capsys):
    path = write(tmp_path / "text.jsonl", [{"prompt": "def f():", "response": "Return the sum of the sums."}])
    assert simulate(path, "--tokenizer", MODEL) == 0
    assert "1 requests with" in capsys.readouterr().out


def test_a_measured_cost_table(traces, tmp_path, capsys):
    table = tmp_path / "cost.json"
    costly = {(1, 1): 1.0, (8, 1): 1.0, (1, 4): 10.0, (8, 4): 10.0}
    table.write_text(json.dumps(CostTable(costly).to_dict()))
    out = tmp_path / "out.json"
    assert simulate(traces, "--cost-table", table, "--json", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["settings"]["max_draft"] == 3
    assert row["widths"] == {"1": row["steps"]}  # nothing pays
    assert simulate(traces, "--cost-table", table, "--json", out, "--whole") == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["accept_length"] > 1.5
    assert row["speedup"] < 0.7
    assert "from " + str(table) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concurrency", "0"], "--concurrency 0: wanted is 1 or more"),
        (["--max-depth", "24,x"], "--max-depth 'x': wanted is a number"),
        (["--max-depth", "0"], "max_depth"),
        (["--eviction", "never"], "eviction"),
        (["--max-draft", "32"], "--max-draft 32: the widest step of the cost table checks 31"),
        (["--cost-table", "missing.json"], "--cost-table missing.json"),
        (["--json", "nowhere/out.json"], "--json nowhere/out.json: there is no folder 'nowhere'"),
        (["--tokenizer", "/missing"], "--tokenizer /missing"),
    ],
)
def test_bad_options(traces, capsys, options, said):
    assert simulate(traces, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_bad_files(tmp_path, capsys):
    assert simulate(tmp_path / "missing.jsonl") == 2
    assert "missing.jsonl cannot be read" in capsys.readouterr().err
    assert simulate(write(tmp_path / "empty.jsonl", [])) == 2
    assert "has no trace" in capsys.readouterr().err
    (tmp_path / "cost.json").write_text('{"batch_width_seconds": [[1, 1, 0.1]]}')
    good = write(tmp_path / "good.jsonl", [{"prompt": [1], "response": [1, 2]}])
    assert simulate(good, "--cost-table", tmp_path / "cost.json") == 2
    assert "nothing to compare" in capsys.readouterr().err
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    assert simulate(tmp_path / "binary.jsonl") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_fast_one_plays_as_its_twin(traces, tmp_path):
    figures = []
    for number, arguments in enumerate(({}, {"make": SuffixTwin})):
        out = tmp_path / f"{number}.json"
        assert main([str(traces), "--passes", "2", "--whole", "--json", str(out)], **arguments) == 0
        rows = json.loads(out.read_text())["rows"]
        figures.append([[row[name] for name in ("accept_length", "draft_tokens", "widths")] for row in rows])
    assert figures[0] == figures[1]
