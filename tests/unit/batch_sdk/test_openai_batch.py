"""OpenAI batch files: all three URLs, and one answer for every line whatever is wrong with it."""

from __future__ import annotations

import gzip
import json

import fsspec
import pytest

import batch_sdk
from batch_sdk import cli
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError, OptionError, OutputError, RowError, RowErrorKind, SourceError
from batch_sdk.openai_batch.answers import Answers
from batch_sdk.openai_batch.requests import parse
from tests.unit.batch_sdk.stub_server import running_stubs

USER = [{"role": "user", "content": "Grüß Gott 🎌"}]


def line(custom_id: str, body: dict, url: str = "/v1/chat/completions", **more) -> str:
    entry = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "gpt-4o"} | body}
    return json.dumps(entry | more, ensure_ascii=False)


def chat(custom_id: str, **body) -> str:
    return line(custom_id, {"messages": USER} | body)


def text(custom_id: str, **body) -> str:
    return line(custom_id, {"prompt": "Once upon"} | body, "/v1/completions")


def vector(custom_id: str, **body) -> str:
    return line(custom_id, {"input": "one two"} | body, "/v1/embeddings")


class Recording(DummyEngine):
    """Keeps every request."""

    def start(self):
        super().start()
        self.seen = []

    def submit(self, requests):
        self.seen += requests
        super().submit(requests)


@pytest.fixture
def answers(tmp_path):
    def run(*lines: str | bytes, task: str = "generate", options: dict | None = None, **kw) -> list[dict]:
        raw = b"\n".join(
            one.encode("utf-8", "surrogatepass") if isinstance(one, str) else one for one in lines
        )
        (tmp_path / "in.jsonl").write_bytes(raw)
        run.engine = Recording(model="tiny", task=task, options=options or {})
        run.engine.start()
        run.summary = batch_sdk.run_openai_batch(
            tmp_path / "in.jsonl",
            tmp_path / "out.jsonl",
            model=run.engine,
            overwrite=True,
            progress=False,
            **kw,
        )
        return [json.loads(one) for one in (tmp_path / "out.jsonl").read_bytes().decode().split("\n")[:-1]]

    return run


def test_chats_and_completions(answers):
    got = answers(
        chat("a", max_tokens=3, temperature=0, top_p=0.9, stop="END", seed=7, user="me", n=1, stream=False),
        "",
        text("b-ü\n", stop=["x", "y"], logprobs=None),
        "  \r",
        chat("c", max_completion_tokens=5) + "\r",
    )
    assert [one["custom_id"] for one in got] == ["a", "b-ü\n", "c"]
    first, second, third = (one["response"]["body"] for one in got)
    assert all(one["error"] is None and one["response"]["status_code"] == 200 for one in got)
    assert len({one["id"] for one in got} | {one["response"]["request_id"] for one in got}) == 6
    assert set(got[0]) == {"id", "custom_id", "response", "error"}
    assert first["object"] == "chat.completion"
    assert first["model"] == "tiny"
    (choice,) = first["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 3
    assert first["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert second["object"] == "text_completion"
    assert len(second["choices"][0]["text"].split()) == 8
    assert third["usage"]["completion_tokens"] == 5
    requests = answers.engine.seen
    assert requests[0].prompt == USER
    assert requests[1].prompt == "Once upon"
    sampling = [
        {k: v for k, v in r.sampling.items() if k in ("max_new_tokens", "temperature", "top_p", "stop")}
        for r in requests
    ]
    assert sampling == [
        {"max_new_tokens": 3, "temperature": 0, "top_p": 0.9, "stop": ["END"]},
        {"max_new_tokens": 16, "stop": ["x", "y"]},
        {"max_new_tokens": 5},
    ]
    assert requests[0].sampling["sampling_seed"] == 7
    assert (answers.summary.rows, answers.summary.errors) == (3, {})


def test_embeddings(answers):
    got = answers(
        vector("a"),
        vector("b", input=["x", "y z", ""], encoding_format="float"),
        vector("c", input=["fine", "poison"]),
        chat("d"),
        vector("e", dimensions=8),
        task="embed",
        options={"fail_on": "poison", "shuffle": True},
        window_rows=2,
    )
    assert [one["custom_id"] for one in got] == list("abcde")
    body = got[1]["response"]["body"]
    assert (body["object"], body["usage"]) == ("list", {"prompt_tokens": 3, "total_tokens": 3})
    assert [(one["index"], len(one["embedding"])) for one in body["data"]] == [(0, 16), (1, 16), (2, 16)]
    assert [one["response"]["status_code"] for one in got] == [200, 200, 400, 400, 400]
    assert "poison" in got[2]["error"]["message"]
    assert "one job runs one model" in got[3]["error"]["message"]
    assert "dimensions" in got[4]["error"]["message"]


POISON = {
    "not json": ("line-2", "not JSON"),
    "[1, 2]": ("line-2", "not a JSON object"),
    '{"custom_id": 7}': ("line-2", "custom_id=7"),
    "null": ("line-2", "not a JSON object"),
    "[" * 100_000: ("line-2", "not JSON"),
    line("x", {}, method="GET"): ("x", "method='GET'"),
    line("x", {}, "/v1/responses"): ("x", "url='/v1/responses'"),
    line("x", {}, extra=1): ("x", "extra"),
    line("x", {})[:-3] + "1}}": ("line-2", "not JSON"),
    '{"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": []}': ("x", "body is not"),
    line("x", {}): ("x", "messages is not a list"),
    chat("x", messages=[]): ("x", "messages is not a list"),
    chat("x", messages=["hi"]): ("x", r"messages[0] is not an object"),
    chat("x", messages=[{"role": "tool", "content": "x"}]): ("x", "role='tool'"),
    chat("x", messages=[{"role": "user", "content": None}]): ("x", "messages[0].content"),
    chat("x", messages=[*USER, {"role": "user", "content": "x", "name": "n"}]): ("x", "messages[1]"),
    chat("x", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]): (
        "x",
        "a part that is not text",
    ),
    chat("x", n=2): ("x", "n=2 is not supported, only 1"),
    chat("x", n=True): ("x", "n=True is not supported"),
    chat("x", stream=True): ("x", "stream=True"),
    chat("x", response_format={"type": "json_object"}): ("x", "response_format"),
    chat("x", zeta=1, alpha=2): ("x", "alpha, zeta"),
    chat("x", max_tokens=1, max_completion_tokens=2): ("x", "max_completion_tokens"),
    chat("x", max_tokens="many"): ("x", "max_new_tokens='many'"),
    chat("x", temperature=-1): ("x", "temperature=-1"),
    chat("x", stop=[""]): ("x", "stop"),
    chat("x", stop="\ud800").replace("\ud800", "\\ud800"): ("x", "stop has half of a surrogate pair"),
    text("x", stop=["a", "\ud800"]).replace("\ud800", "\\ud800"): ("x", "stop has half of a surrogate pair"),
    text("x", prompt=["a", "b"]): ("x", "several prompts"),
    text("x", prompt=[1, 2]): ("x", "token ids"),
    text("x", max_completion_tokens=3): ("x", "max_completion_tokens"),
    vector("x"): ("x", "one job runs one model"),
    chat("x", messages=[{"role": "user", "content": "poison"}]): ("x", "poison"),
    chat("x", messages=[{"role": "user", "content": "\ud800"}]): ("line-2", "not JSON"),
    r'{"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "\ud800"}}': (
        "x",
        "surrogate",
    ),
    r'{"custom_id": "\ud800", "method": "POST", "url": "/", "body": {}}': ("\ud800", "url"),
}


@pytest.mark.parametrize("bad", POISON, ids=lambda bad: bad[:60].encode("ascii", "replace").decode())
def test_a_poison_line_fails_alone(answers, bad):
    custom_id, says = POISON[bad]
    good, got, after = answers(chat("first"), bad, chat("last"), options={"fail_on": "poison"})
    assert (good["error"], after["error"]) == (None, None)
    assert (good["custom_id"], after["custom_id"]) == ("first", "last")
    assert got["custom_id"] == custom_id
    assert says in got["error"]["message"]
    assert got["response"]["status_code"] == 400
    assert got["response"]["body"]["error"]["message"] == got["error"]["message"]
    assert answers.summary.errors == {"rejected": 1}


def test_what_the_engine_gave_up_has_status_500():
    made, call = Answers("m"), parse(chat("x").encode(), 5)
    codes = {
        kind: json.loads(made.failed(1, call, RowError(kind, "no")))["response"]["status_code"]
        for kind in RowErrorKind
    }
    assert {kind for kind, code in codes.items() if code == 500} == {"aborted", "server_error", "engine_died"}
    assert {code for kind, code in codes.items() if code != 500} == {400}


def test_a_server_as_the_engine(tmp_path):
    (tmp_path / "chats.jsonl").write_text("\n".join([chat("a", max_tokens=3), text("b")]))
    (tmp_path / "vectors.jsonl").write_text("\n".join([vector("a", input=["one two", "three"]), vector("b")]))
    with running_stubs() as stubs:
        server = {
            "model": "m",
            "engine": "http",
            "engine_options": {"url": stubs.start().url},
            "progress": False,
        }
        for name, wanted in (("chats", 5), ("vectors", 5)):
            out = tmp_path / f"{name}-out.jsonl"
            summary = batch_sdk.run_openai_batch(tmp_path / f"{name}.jsonl", out, **server)
            got = [json.loads(one)["response"]["body"]["usage"]["prompt_tokens"] for one in out.open()]
            assert (summary.errors, summary.prompt_tokens, sum(got)) == ({}, wanted, wanted)


def test_bytes_that_are_no_utf8(answers):
    assert "not JSON" in answers(b'{"custom_id": "\xff"}', chat("a"))[0]["error"]["message"]


def test_text_parts_and_roles(answers):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert answers(chat("a", messages=messages, temperature=None))[0]["error"] is None
    assert answers.engine.seen[0].prompt == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


def test_models_without_a_chat_template_take_completions(answers):
    got = answers(chat("a"), text("b"), options={"chat_template": False})
    assert "chat template" in got[0]["error"]["message"]
    assert got[1]["error"] is None


def test_order_window_and_limit(answers):
    rows = [chat(f"c{i}", messages=[{"role": "user", "content": f"n {i}"}]) for i in range(3000)]
    got = answers(*rows, options={"shuffle": True}, window_rows=64, limit_rows=2999)
    assert [one["custom_id"] for one in got] == [f"c{i}" for i in range(2999)]
    assert answers.engine.peak_span_rows <= 64
    assert answers.summary.rows == 2999


def test_files_of_all_places(tmp_path):
    (tmp_path / "b.jsonl").write_text(chat("b"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(("\ufeff" + chat("a")).encode()))
    options = {"model": "tiny", "engine": "dummy", "progress": False}
    output = "memory://openai/out.jsonl.gz"
    summary = batch_sdk.run_openai_batch(tmp_path, output, **options)
    assert summary.output == output
    with fsspec.open(output, compression="gzip") as file:
        assert [json.loads(one)["custom_id"] for one in file] == ["a", "b"]
    (tmp_path / "empty.jsonl").touch()
    assert batch_sdk.run_openai_batch(tmp_path / "empty.jsonl", tmp_path / "e.jsonl", **options).rows == 0
    assert (tmp_path / "e.jsonl").read_bytes() == b""


def test_jobs_that_make_no_sense(tmp_path, answers):
    path = tmp_path / "x.jsonl"
    path.write_text(chat("a"))
    (tmp_path / "x.csv").write_text("a\n1\n")
    options = {"model": "tiny", "engine": "dummy", "progress": False}
    for output in ("out", "out.parquet", "out.jsonl.xz", "out.csv"):
        with pytest.raises(OutputError, match=r"\.jsonl"):
            batch_sdk.run_openai_batch(path, tmp_path / output, **options)
    with pytest.raises(OutputError, match="own place"):
        batch_sdk.run_openai_batch(path, path, overwrite=True, **options)
    with pytest.raises(SourceError, match=r"x\.csv' is csv"):
        batch_sdk.run_openai_batch(tmp_path / "x.csv", tmp_path / "o.jsonl", **options)
    with pytest.raises(OptionError, match="default_max_tokens=0"):
        batch_sdk.run_openai_batch(path, tmp_path / "o.jsonl", default_max_tokens=0, **options)
    with pytest.raises(OptionError, match="started for 'generate'"):
        answers(vector("a"))
    with pytest.raises(EngineError):
        answers(chat("a"), chat("b"), options={"die_after_requests": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "x.csv", "x.jsonl"]


def test_command_line(capsys, tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(f"{chat('a')}\nbroken\n")
    command = ["openai", str(path), "-o", str(out), "--model", "tiny", "--engine", "dummy"]
    assert cli.main([*command, "--default-max-tokens", "2", "--engine-option", "words=4"]) == 0
    assert "errors    1 (rejected 1)" in capsys.readouterr().out
    got = [json.loads(one) for one in out.read_text().splitlines()]
    assert [one["custom_id"] for one in got] == ["a", "line-2"]
    assert got[0]["response"]["body"]["usage"]["completion_tokens"] == 2
    assert cli.main([*command, "--overwrite", "--fail-on-error"]) == 1
    assert cli.main(command) == 2
    assert "exists" in capsys.readouterr().err


class NotFinite(DummyEngine):
    def _embed(self, request):
        result = super()._embed(request)
        result.vectors[-1, 3] = float("nan")
        return result


def test_vectors_that_json_cannot_hold_are_the_engines_error(tmp_path):
    (tmp_path / "in.jsonl").write_text(vector("a"))
    engine = NotFinite(model="m", task="embed", options={})
    engine.start()
    options = {"model": engine, "progress": False}
    summary = batch_sdk.run_openai_batch(tmp_path / "in.jsonl", tmp_path / "out.jsonl", **options)
    assert summary.errors == {"aborted": 1}
    got = json.loads((tmp_path / "out.jsonl").read_text())
    assert (got["response"]["status_code"], got["error"]["code"]) == (500, "aborted")
