"""The http engine against servers that fail on purpose: nothing lost, nothing twice, order kept."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

import batch_sdk
from batch_sdk import cli
from batch_sdk.engines import openai_api
from batch_sdk.engines.base import GenerateRequest, GenerateResult
from batch_sdk.engines.http import HttpEngine
from batch_sdk.engines.http_client import _reason
from batch_sdk.errors import EngineError, OptionError
from tests.engine.servers import free_port
from tests.unit.batch_sdk.stub_server import SIZE, error, running_stubs, text_of, vector

ROWS = 53
TABLE = pa.table({"text": [f"row {i}" for i in range(ROWS)]})
RIGHT = [f"chat row {i}" for i in range(ROWS)]


def answer(message, finish_reason="stop") -> dict:
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


@pytest.fixture(scope="module")
def shared():
    with running_stubs() as stubs:
        yield stubs


@pytest.fixture
def stubs(shared):
    yield shared
    while shared.open:
        shared.run(shared.open.pop().shut())


def options(*servers, **more):
    quick = {"retry_seconds": 0.01, "timeout_seconds": 5, "seed": 1}
    return {"url": [getattr(server, "url", server) for server in servers], **quick, **more}


def generate(*servers, table=TABLE, prompt="{{ text }}", model="m", engine=None, **kw):
    return batch_sdk.generate(
        table, prompt=prompt, model=model, engine="http", engine_options=options(*servers, **(engine or {})),
        progress=False, **kw,
    )  # fmt: skip


def embed(*servers, table=TABLE, engine=None, **kw):
    return batch_sdk.embed(
        table, column="text", model="m", engine="http", engine_options=options(*servers, **(engine or {})),
        progress=False, **kw,
    )  # fmt: skip


def responses(table):
    return table.column("response").to_pylist()


def kinds(table):
    return [e and e["kind"] for e in table.column("error").to_pylist()]


def test_chats_and_plain_prompts(stubs):
    stub = stubs.start()
    out = generate(stub, system="be brief", stop=["END"], temperature=0, top_k=3, seed=5, min_new_tokens=1)
    assert responses(out) == RIGHT
    assert set(kinds(out)) == {None}
    assert out.column("prompt_tokens").to_pylist() == [2] * ROWS
    assert out.column("completion_tokens").to_pylist() == [2] * ROWS
    assert set(out.column("finish_reason").to_pylist()) == {"stop"}
    body = stub.bodies[0]
    sent = {k: v for k, v in body.items() if k not in ("messages", "model")}
    wanted = {"max_tokens": 128, "stop": ["END"], "temperature": 0, "top_k": 3, "seed": 5, "min_tokens": 1}
    assert sent == wanted
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert responses(generate(stub, chat=False, ignore_eos=True)) == [f"plain row {i}" for i in range(ROWS)]
    assert stub.bodies[-1]["ignore_eos"] is True
    assert "skip_special_tokens" not in stub.bodies[-1]


def test_samples(stubs):
    stub = stubs.start()
    out = generate(stub, n=3, temperature=0.5)
    assert responses(out) == [[text] * 3 for text in RIGHT]
    assert out.column("finish_reason").to_pylist() == [["stop"] * 3] * ROWS
    assert out.column("completion_tokens").to_pylist() == [6] * ROWS
    one = {"choices": [{"text": "x", "finish_reason": "stop"}]}
    short = stubs.start(trouble=lambda *_: web.json_response(one))
    assert set(kinds(generate(short, n=3, temperature=0.5))) == {"server_error"}


@pytest.mark.parametrize("option", [{"logprobs": True}, {"on_too_long": "truncate_middle"}])
def test_what_the_protocol_has_no_name_for_is_refused_before_the_first_row(stubs, tmp_path, option):
    ((name, value),) = option.items()
    stub = stubs.start()
    with pytest.raises(OptionError, match=f"{name}={value!r} with engine 'http'"):
        generate(stub, output=tmp_path / "out", **option)
    assert stub.bodies == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("table", [TABLE.slice(0, 0), TABLE.slice(0, 1)])
def test_no_rows_and_one(stubs, table):
    stub = stubs.start()
    assert responses(generate(stub, table=table)) == RIGHT[: len(table)]
    assert len(embed(stub, table=table)) == len(table)


def test_the_key_and_headers_are_sent_and_never_shown(stubs, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    stub = stubs.start()
    more = {"api_key_env": "MY_KEY", "headers": {"X-Team": "search"}}
    generate(stub, table=TABLE.slice(0, 1), engine=more)
    assert stub.headers[0]["Authorization"] == "Bearer s3cret"
    assert stub.headers[0]["X-Team"] == "search"
    engine = HttpEngine(model="m", task="generate", options=options(stub, **more))
    assert "s3cret" not in repr(vars(engine))


def test_answers_out_of_order(stubs):
    draw = random.Random(3)
    stub = stubs.start(slow=lambda key: draw.random() * 0.03)
    assert responses(generate(stub, window_rows=16, batch_rows=5)) == RIGHT
    assert max(stub.answered.values()) == 1


@pytest.mark.parametrize(
    "failure",
    [
        lambda: error(500),
        lambda: error(503, headers={"Retry-After": "0.01"}),
        lambda: error(429),
        lambda: error(408),
        lambda: error(409),
        lambda: web.Response(text="<html>not JSON"),
        lambda: web.Response(status=502, text="<html>Bad gateway"),
        lambda: "reset",
    ],
    ids=["500", "503", "429", "408", "409", "html200", "html502", "reset"],
)
def test_twice_bad_and_then_fine(stubs, failure):
    def trouble(stub, body, seen):
        return failure() if seen <= 2 and text_of(body).endswith("7") else None

    stub = stubs.start(trouble=trouble)
    assert responses(generate(stub, engine={"max_retries": 2})) == RIGHT
    assert set(stub.answered.values()) == {1}
    assert stub.seen["row 7"] == 3
    out = generate(stubs.start(trouble=trouble), engine={"max_retries": 1}, window_rows=1)
    assert kinds(out) == ["server_error" if i % 10 == 7 else None for i in range(ROWS)]
    assert "(2 tries)" in out.column("error")[7].as_py()["message"]


def test_a_hang_is_a_timeout_and_a_retry(stubs):
    async def hang(stub, body, seen):
        if seen == 1 and text_of(body) == "row 3":
            await asyncio.sleep(60)

    stub = stubs.start(trouble=hang)
    assert responses(generate(stub, engine={"timeout_seconds": 1.0})) == RIGHT
    assert stub.seen["row 3"] == 2
    out = generate(stubs.start(trouble=hang), engine={"timeout_seconds": 1.0, "max_retries": 0})
    assert kinds(out).count("server_error") == 1
    assert "no answer within 1" in out.column("error")[3].as_py()["message"]


def test_retry_after_is_respected(stubs):
    times = []

    def trouble(stub, body, seen):
        times.append(time.monotonic())
        return error(429, headers={"Retry-After": "0.3"}) if seen == 1 else None

    assert responses(generate(stubs.start(trouble=trouble), table=TABLE.slice(0, 1))) == RIGHT[:1]
    assert times[1] - times[0] >= 0.3


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (lambda: error(400), "rejected"),
        (lambda: error(404), "rejected"),
        (lambda: error(413), "rejected"),
        (lambda: error(422), "rejected"),
        (lambda: error(400, code="context_length_exceeded"), "too_long"),
        (lambda: error(400, type="exceed_context_size_error", code=400), "too_long"),
        (lambda: error(400, "longer than the context length", type="BadRequestError", code=400), "rejected"),
        (lambda: web.json_response({"choices": [{"text": "x", "finish_reason": "abort"}]}), "aborted"),
        (lambda: web.json_response({"error": {"message": "no upstream"}}), "server_error"),
        (lambda: web.json_response({"choices": []}), "server_error"),
        (lambda: web.json_response(answer({"content": [{"type": "text", "text": "x"}]})), "server_error"),
        (lambda: web.json_response(answer({"content": "x"}, finish_reason={"type": "stop"})), "server_error"),
        (lambda: web.json_response(answer("x")), "server_error"),
    ],
)
def test_a_poison_row_fails_alone_and_at_once(stubs, response, kind):
    def trouble(stub, body, seen):
        return response() if text_of(body) == "row 9" else None

    stub = stubs.start(trouble=trouble)
    out = generate(stub)
    assert kinds(out) == [kind if i == 9 else None for i in range(ROWS)]
    assert responses(out) == [None if i == 9 else text for i, text in enumerate(RIGHT)]
    assert stub.seen["row 9"] == 1


ODD_USAGES = [
    [1],
    "7",
    {"prompt_tokens": "7", "completion_tokens": 1.5},
    {"prompt_tokens": 2**31, "completion_tokens": True},
    {"prompt_tokens": -1, "prompt_tokens_details": [3]},
    {"prompt_tokens_details": {"cached_tokens": "3"}},
]


@pytest.mark.parametrize("usage", ODD_USAGES)
def test_counts_that_are_none_are_unknown(usage):
    found = openai_api.generated(0, answer({"content": "x"}) | {"usage": usage})
    assert found == GenerateResult(0, "x", None, None, "stop")
    vectors = openai_api.embedded({"data": [{"index": 0, "embedding": [0.5]}], "usage": usage}, 1)
    assert vectors.tokens is None


def test_sglangs_flat_error_is_read(stubs):
    flat = {"object": "error", "message": "too odd", "type": "BadRequestError", "param": None, "code": 400}
    stub = stubs.start(trouble=lambda *_: web.json_response(flat, status=400))
    out = generate(stub, table=TABLE.slice(0, 1))
    assert out.column("error")[0].as_py() == {"kind": "rejected", "message": "400: too odd"}


@pytest.mark.parametrize(("status", "says"), [(401, "api_key_env"), (403, "api_key_env"), (405, "url")])
def test_a_refused_key_or_a_wrong_url_stops_the_job_at_once(stubs, status, says):
    stub = stubs.start(trouble=lambda stub, body, seen: error(status) if text_of(body) == "row 20" else None)
    with pytest.raises(EngineError, match=says) as caught:
        generate(stub)
    assert str(status) in str(caught.value)
    assert stub.seen["row 20"] == 1


def test_least_loaded_and_bounded(stubs):
    fast = stubs.start(slow=lambda key: 0.005)
    slow = stubs.start(slow=lambda key: 0.08)
    assert responses(generate(fast, slow, engine={"max_concurrency": 4})) == RIGHT
    assert fast.answered.total() + slow.answered.total() == ROWS
    assert fast.answered.total() > 2 * slow.answered.total() > 0
    assert fast.peak == 4
    assert slow.peak <= 4


def test_a_retry_goes_to_another_server(stubs):
    bad, good = stubs.start(trouble=lambda *_: error(500)), stubs.start()
    out = generate(bad, good, engine={"max_retries": 1, "max_concurrency": 4})
    assert responses(out) == RIGHT
    assert max(bad.seen.values()) == 1
    assert good.answered.total() == ROWS


def test_a_rate_limit_slows_the_job_down_and_fails_no_row(stubs):
    taken = []

    def trouble(stub, body, seen):
        now = time.monotonic()
        taken[:] = [then for then in taken if now - then < 0.05]
        if len(taken) >= 8:
            return error(429, headers={"Retry-After": "0.05"})
        taken.append(now)
        return None

    table = pa.table({"text": [f"row {i}" for i in range(200)]})
    stub = stubs.start(trouble=trouble)
    out = generate(stub, table=table, engine={"max_concurrency": 16, "max_retries": 4})
    assert set(kinds(out)) == {None}
    assert max(stub.seen.values()) > 5, "more tries than max_retries, since the server was at work on others"
    assert stub.seen.total() < 1000


def test_one_of_two_servers_dies_half_way_and_comes_back(stubs):
    def trouble(stub, body, seen):
        if stub.seen.total() == 10 and not stub.__dict__.get("dead"):
            stub.dead = True
            stubs.loop.create_task(stub.shut())
        if stub.__dict__.get("dead"):
            return "reset"
        return None

    dying = stubs.start(trouble=trouble, slow=lambda key: 0.005)
    steady = stubs.start(slow=lambda key: 0.01)
    timer = threading.Timer(0.3, lambda: (dying.__dict__.update(trouble=None), stubs.run(dying.open())))
    timer.start()
    table = pa.table({"text": [f"row {i}" for i in range(400)]})
    out = generate(dying, steady, table=table, engine={"max_concurrency": 4, "max_retries": 3})
    timer.join()
    assert responses(out) == [f"chat row {i}" for i in range(400)]
    both = dying.answered + steady.answered
    assert len(both) == 400
    assert dying.answered.total() > 20, "it never came back"


def test_a_server_that_is_down_at_the_start_costs_no_row_its_tries(stubs):
    out = generate(f"http://127.0.0.1:{free_port()}", stubs.start(), engine={"max_retries": 0})
    assert responses(out) == RIGHT


def test_all_down_for_too_long_names_them(stubs, caplog):
    def trouble(stub, body, seen):
        if stub.seen.total() > 5:
            stubs.loop.create_task(stub.shut())
            return "reset"
        return None

    one, two = stubs.start(trouble=trouble), stubs.start(trouble=trouble)
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"no server has taken a request for 0\.4 s") as caught:
        generate(one, two, engine={"max_concurrency": 1, "down_seconds": 0.4})
    assert 0.4 < time.monotonic() - begun < 3
    assert one.url in str(caught.value)
    assert two.url in str(caught.value)
    gc.collect()
    assert caplog.records == [], "no task's failure is printed by asyncio"


def test_what_the_start_finds(stubs):
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EngineError, match=f"no server answers: {nowhere}"):
        generate(nowhere)
    with pytest.raises(EngineError, match=r"does not serve 'n'; wanted .* model=\.\.\.: 'm'"):
        generate(stubs.start(), model="n")
    with pytest.raises(EngineError, match="a list of models"):
        generate(stubs.start(models=web.Response(status=404)))
    with pytest.raises(EngineError, match="api_key_env"):
        generate(stubs.start(models=web.Response(status=401)))
    with HttpEngine(model="m", task="generate", options=options(stubs.start())) as engine:
        assert engine.info.max_input_tokens == 100
        assert engine.info.has_chat_template


@pytest.mark.parametrize("base64_ok", [True, False])
def test_embeddings(stubs, base64_ok):
    stub = stubs.start(base64_ok=base64_ok)
    table = pa.table({"text": [None if i == 4 else f"row {i}" for i in range(ROWS)]})
    out, summary = embed(stub, table=table, block_rows=8, return_summary=True)
    assert out.schema.field("embedding").type == pa.list_(pa.float32(), SIZE)
    for row, found in enumerate(out.column("embedding").to_pylist()):
        wanted = None if row == 4 else vector(f"row {row}").tolist()
        assert found == wanted
    # The server counts a block's tokens, not a row's.
    assert out.column("prompt_tokens").null_count == ROWS
    assert summary.prompt_tokens == 2 * (ROWS - 1)
    assert {body["encoding_format"] for body in stub.bodies[2:]} == {"base64" if base64_ok else "float"}
    single = embed(stub, table=table.slice(0, 2), block_rows=1)
    assert single.column("prompt_tokens").to_pylist() == [2, 2]


@pytest.mark.parametrize("unit", [False, True])
def test_dimensions_are_scaled_as_the_servers_vectors_are(stubs, unit):
    def of_length_1(stub, body, seen):
        vectors = [vector(text) / np.linalg.norm(vector(text)) for text in body["input"]]
        data = [{"index": i, "embedding": found.tolist()} for i, found in enumerate(vectors)]
        return web.json_response({"data": data})

    stub = stubs.start(trouble=of_length_1 if unit else None)
    out = embed(stub, dimensions=2)
    assert not any("dimensions" in body for body in stub.bodies), "a server may refuse them"
    for row, found in enumerate(out.column("embedding").to_pylist()):
        left = vector(f"row {row}")[:2]
        np.testing.assert_allclose(found, left / np.linalg.norm(left) if unit else left, rtol=1e-5)


@pytest.mark.parametrize("status", [400, 500])
def test_a_poison_row_in_a_block_fails_alone(stubs, status):
    def trouble(stub, body, seen):
        return error(status) if "row 11" in body["input"] else None

    out, summary = embed(
        stubs.start(trouble=trouble), block_rows=8, engine={"max_retries": 1}, return_summary=True
    )
    kind = "rejected" if status == 400 else "server_error"
    assert kinds(out) == [kind if i == 11 else None for i in range(ROWS)]
    for row, found in enumerate(out.column("embedding").to_pylist()):
        assert found == (None if row == 11 else vector(f"row {row}").tolist())
    assert summary.prompt_tokens == 2 * (ROWS - 1)


def test_servers_that_embed_wrongly(stubs):
    data = [{"index": 0, "embedding": [0.5] * SIZE}]
    few = stubs.start(
        trouble=lambda s, b, n: web.json_response({"data": data}) if len(b["input"]) > 1 else None
    )
    assert set(kinds(embed(few, block_rows=8))) == {None}, "asked row by row"
    short = [{"index": 0, "embedding": [0.5] * (SIZE - 1)}]
    other = stubs.start(
        trouble=lambda s, b, n: web.json_response({"data": short}) if s.seen.total() > 1 else None
    )
    with pytest.raises(EngineError, match=f"vectors of {SIZE - 1} floats; wanted {SIZE}"):
        embed(other, block_rows=1)
    with pytest.raises(EngineError, match="gives no embeddings of 'm'"):
        embed(stubs.start(trouble=lambda *_: error(400, "not an embedding model")))
    with pytest.raises(OptionError, match="--allow-auto-truncate"):
        embed(stubs.start(), truncate=True)


def test_an_engine_serves_several_jobs_and_abandons(stubs):
    stub = stubs.start(slow=lambda key: 30 if key == "slow" else 0)
    with HttpEngine(model="m", task="generate", options=options(stub, max_concurrency=2)) as engine:
        engine.submit([GenerateRequest(i, "slow", {}) for i in range(5)])
        engine.abandon()
        for _ in range(2):
            assert (
                responses(batch_sdk.generate(TABLE, prompt="{{ text }}", model=engine, progress=False))
                == RIGHT
            )
    engine.close()
    assert not engine.started
    assert stub.answered["slow"] == 0


def test_misuse(stubs):
    engine = HttpEngine(model="m", task="generate", options=options(stubs.start()))
    with pytest.raises(EngineError, match="start"):
        engine.submit([])
    with engine:
        with pytest.raises(EngineError, match="nothing in flight"):
            engine.wait()
        with pytest.raises(EngineError, match="running"):
            engine.start()

    async def inside():
        HttpEngine(model="m", task="generate", options={"url": "http://h"}).start()

    with pytest.raises(EngineError, match="event loop"):
        asyncio.run(inside())


def test_text_that_is_no_unicode_is_a_row_error(stubs):
    out = generate(stubs.start(), prompt="{{ text }}{{ '\\ud800' if text == 'row 2' }}")
    assert kinds(out) == ["prompt_error" if i == 2 else None for i in range(ROWS)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "--engine-option url=http://host:30000"),
        ({"url": []}, "a URL or a list"),
        ({"url": "localhost:30000"}, "a URL such as"),
        ({"url": "ftp://h"}, "a URL such as"),
        ({"url": "http://h:99999"}, "a URL such as"),
        ({"url": "http://h?x=1"}, "a URL such as"),
        ({"url": ["http://h", "http://h/v1/"]}, "each URL once"),
        ({"url": "http://h", "max_concurency": 2}, "did you mean 'max_concurrency'"),
        ({"url": "http://h", "max_concurrency": 0}, "from 1"),
        ({"url": "http://h", "max_retries": -1}, "from 0"),
        ({"url": "http://h", "timeout_seconds": 0}, "above 0"),
        ({"url": "http://h", "down_seconds": "5"}, "above 0"),
        ({"url": "http://h", "seed": 1.5}, "whole number"),
        ({"url": "http://h", "headers": {"a": 1}}, "mapping of text"),
        ({"url": "http://h", "headers": {"a": "b\r\nc: d"}}, "mapping of text"),
        ({"url": "http://h", "api_key": "k", "api_key_env": "K"}, "one of them"),
        ({"url": "http://h", "api_key_env": "NOT_SET_ANYWHERE"}, "'NOT_SET_ANYWHERE' names no"),
    ],
)
def test_options_that_make_no_sense(wrong, says):
    with pytest.raises(OptionError) as caught:
        HttpEngine(model="m", task="generate", options=wrong)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line(stubs, tmp_path, capsys):
    pq.write_table(TABLE, tmp_path / "in.parquet")
    args = [
        "generate",
        str(tmp_path / "in.parquet"),
        "--model",
        "m",
        "--engine",
        "http",
        "--prompt",
        "{{ text }}",
    ]
    urls = json.dumps([stubs.start().url, stubs.start().url])
    out = tmp_path / "out.parquet"
    assert cli.main([*args, "-o", str(out), "--engine-option", f"url={urls}"]) == 0
    assert responses(pq.read_table(out)) == RIGHT
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert cli.main([*args, "-o", str(tmp_path / "o"), "--engine-option", f"url={nowhere}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"arctic-batch: error: no server answers: {nowhere}/v1 (Connection refused);")
    assert said.splitlines()[1:] == ["arctic-batch: nothing was written"]
    assert not (tmp_path / "o").exists()


def date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (lambda: None, 0, 0),
        (lambda: "2.5", 2.5, 2.5),
        (lambda: "-1", 0, 0),
        (lambda: "soon", 0, 0),
        (lambda: date(90), 60, 90),
        (lambda: date(-90), 0, 0),
        (lambda: "inf", 0, 0),
        (lambda: "nan", 0, 0),
        (lambda: "1e9", 3600, 3600),
        (lambda: date(1e8), 3600, 3600),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, low, high):
    again = openai_api.judge("http://h", 503, header(), b"")
    assert isinstance(again, openai_api.Again)
    assert low <= again.after_seconds <= high


def test_a_certificate_that_is_not_trusted_is_named():
    key = SimpleNamespace(host="h", port=443, ssl=True, is_ssl=True)
    cause = ssl.SSLCertVerificationError(1, "self-signed certificate")
    assert "self-signed certificate" in _reason(aiohttp.ClientConnectorCertificateError(key, cause))
    assert (
        _reason(aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "x"))) == "Connection refused"
    )


def test_a_json_schema_goes_under_openais_name():
    sampling = {"max_new_tokens": 3, "json_schema": '{"type": "object"}'}
    path, body = openai_api.generate_body(
        "m", GenerateRequest(0, [{"role": "user", "content": "x"}], sampling)
    )
    assert path == "chat/completions"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "json_schema" not in body


def test_vectors_are_the_receivers_own(stubs):
    with HttpEngine(model="m", task="embed", options=options(stubs.start())) as engine:
        engine.submit([batch_sdk.engines.base.EmbedRequest(0, ["a"])])
        (result,) = engine.wait()
    assert result.vectors.flags.writeable
    assert result.vectors.dtype == np.float32
