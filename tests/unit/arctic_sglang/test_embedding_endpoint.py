"""`POST /v1/embeddings` at ASGI level, and its place in an application like SGLang's."""

import asyncio
import base64
from functools import partial
from types import SimpleNamespace

import httpx
import numpy as np
import orjson
import pytest
import zmq
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse
from starlette.routing import Match
from transformers import BertConfig, LlamaConfig, XLMRobertaConfig

from arctic_sglang.compat import vendor
from arctic_sglang.embedding import endpoint as endpoint_module
from arctic_sglang.embedding import manager as manager_module
from arctic_sglang.embedding import openai_api, serving
from arctic_sglang.embedding.checkpoint import DenseSpec, PoolingSpec
from arctic_sglang.embedding.endpoint import EmbeddingsEndpoint
from arctic_sglang.embedding.front import EmbeddingFailedError
from arctic_sglang.embedding.manager import around_generate_request, called, service_of, takes
from arctic_sglang.embedding.metrics import RoadMetrics
from arctic_sglang.embedding.workers import SchedulerWorker
from tests.unit.arctic_sglang.test_embedding_service import make
from tests.unit.arctic_sglang.test_tokens import tiny


async def stock(scope, receive, send):
    """Stands for SGLang's handler: says what it got."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    await JSONResponse({"stock": body.decode()})(scope, receive, send)


class Served:
    """An endpoint with a service behind it."""

    def __init__(self, *, truncate=False, diverted=None, **options):
        self.service = make(**options)
        self.registry = CollectorRegistry()
        self.endpoint = EmbeddingsEndpoint(
            self.service, stock, model="served", truncate=truncate, diverted=diverted,
            metrics=RoadMetrics("served", registry=self.registry),
        )  # fmt: skip

    def post(self, content=None, **options) -> httpx.Response:
        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.endpoint)) as client:
                return await client.post("http://x/v1/embeddings", content=content, **options)

        return asyncio.run(ask())

    def count(self, outcome: str) -> float | None:
        labels = {"model_name": "served", "outcome": outcome}
        return self.registry.get_sample_value("arctic:embedding_requests_total", labels)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_vectors_usage_and_figures(form):
    served = Served()
    texts = ["a", "some words", "more"]
    answer = served.post(json={"input": texts, "model": "m", "encoding_format": form, "dimensions": 4})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    found = answer.json()
    vectors, lengths = asyncio.run(served.service.embed_texts(texts, dimensions=4))
    assert found["model"] == "m"
    assert found["usage"] == {"prompt_tokens": int(lengths.sum()), "total_tokens": int(lengths.sum())}
    for item, vector in zip(found["data"], vectors, strict=True):
        value = item["embedding"]
        got = np.frombuffer(base64.b64decode(value), "<f4") if form == "base64" else np.array(value, "<f4")
        np.testing.assert_array_equal(got, vector)
    value = served.registry.get_sample_value
    assert served.count("ok") == 1
    assert value("arctic:embedding_rows_total", {"model_name": "served"}) == 3
    assert value("arctic:embedding_prompt_tokens_total", {"model_name": "served"}) == lengths.sum()
    assert value("arctic:embedding_request_seconds_count", {"model_name": "served"}) == 1


def test_token_ids_and_no_model():
    found = Served().post(json={"input": [[1, 2, 3], [4]]}).json()
    assert found["model"] == "served"
    assert [item["embedding"][:2] for item in found["data"]] == [[3, 6], [1, 4]]
    assert Served().post(json={"input": [1, 2, 3]}).json()["usage"]["prompt_tokens"] == 3


def test_a_long_answer_comes_in_pieces(monkeypatch):
    monkeypatch.setattr(openai_api, "_PIECE_FLOATS", 60)
    answer = Served().post(json={"input": [[n] for n in range(100)]})
    assert "content-length" not in answer.headers
    assert [item["embedding"][1] for item in answer.json()["data"]] == list(range(100))


def test_errors_name_the_row():
    served = Served(max_tokens=10)
    answer = served.post(json={"input": ["a", "x" * 20]})
    assert answer.status_code == 400
    error = answer.json()
    assert error.pop("message").startswith("row 1 has 22 tokens, and the model takes 10")
    assert error == {"object": "error", "type": "BadRequestError", "param": None, "code": 400}
    assert served.post(json={"input": ["a", " "]}).json()["message"].startswith("Input at index 1")
    assert served.count("refused") == 2
    assert (
        served.post(json={"input": ["a", "x" * 20], "truncate": True}).json()["usage"]["total_tokens"] == 13
    )
    assert Served(max_tokens=10, truncate=True).post(json={"input": "x" * 20}).status_code == 200


def test_what_this_road_does_not_do_goes_to_sglang_as_it_came():
    body = '{"input": [{"text": "a", "image": "b"}]}'
    json = {"content-type": "application/json; charset=utf-8"}
    assert Served().post(body, headers=json).json() == {"stock": body}
    assert Served().post("{", headers=json).json() == {"stock": "{"}
    plain = '{"input": "a"}'
    assert Served().post(plain, headers={"content-type": "text/plain"}).json() == {"stock": plain}
    assert Served().post(plain).json() == {"stock": plain}
    assert Served(diverted=lambda: True).post(plain, headers=json).json() == {"stock": plain}
    assert "data" in Served(diverted=lambda: False).post(plain, headers=json).json()


def test_a_failing_engine_is_a_500(monkeypatch):
    served = Served()

    async def fail(rows, *, dimensions):
        msg = "out of memory"
        raise EmbeddingFailedError(msg)

    monkeypatch.setattr(served.service, "_embed", fail)
    answer = served.post(json={"input": "a"})
    assert answer.status_code == 500
    assert answer.json()["type"] == "InternalServerError"
    assert "out of memory" in answer.json()["message"]
    assert served.count("failed") == 1


def test_a_client_that_goes_away_ends_the_work(monkeypatch):
    served = Served()
    ended = []

    async def forever(rows, *, dimensions):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(rows.rows)

    monkeypatch.setattr(served.service, "_embed", forever)
    body = orjson.dumps({"input": "a"})
    messages = [{"type": "http.request", "body": body[:5], "more_body": True}]
    messages += [{"type": "http.request", "body": body[5:], "more_body": False}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        await asyncio.sleep(0.01)
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(asyncio.wait_for(served.endpoint(scope, receive, send), 5))
    assert (ended, sent) == ([1], [])
    assert served.count("gone") == 1
    messages[:] = [{"type": "http.disconnect"}]  # before the body is there
    asyncio.run(asyncio.wait_for(served.endpoint(scope, receive, send), 5))
    assert sent == []


def test_a_server_that_stops_cancels_the_work(monkeypatch):
    served = Served()
    ended = []

    async def forever(rows, *, dimensions):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(rows.rows)

    monkeypatch.setattr(served.service, "_embed", forever)

    async def run():
        messages = [{"type": "http.request", "body": b'{"input": "a"}', "more_body": False}]

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        task = asyncio.create_task(served.endpoint(scope, receive, None))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled(), len(asyncio.all_tasks())

    assert asyncio.run(run()) == (True, 1)
    assert ended == [1]


@pytest.fixture
def sglang_app(monkeypatch):
    """An application with a route of the same path, as SGLang's has."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def stock_embeddings(body: dict) -> dict:
        return {"stock": body}

    monkeypatch.setattr(vendor, "app", app, raising=False)
    return app


def manager_of(service, **flags) -> SimpleNamespace:
    return SimpleNamespace(
        arctic_front=service.front,
        auto_create_handle_loop=lambda: None,
        is_pause=False,
        is_pause_cond=asyncio.Condition(),
        model_update_lock=SimpleNamespace(reader_lock=asyncio.Lock()),
        model_config=SimpleNamespace(
            vocab_size=258, is_embedding_gemma=False, is_matryoshka=True, matryoshka_dimensions=None, hidden_size=6,
            model_path="m",
        ),
        rid_to_state={},
        disaggregation_mode=None,
        child_rid_to_logical_rid={},
        enable_metrics=False,
        _dispatch_to_scheduler=lambda message: None,
        tokenizer=tiny("<s> $A </s>"),
        served_model_name="served",
        enable_trace=False,
        request_logger=SimpleNamespace(log_requests=False),
        server_args=SimpleNamespace(
            enable_metrics=False, allow_auto_truncate=False, _arctic=SimpleNamespace(pooling=None), **flags
        ),
    )  # fmt: skip


def test_the_route_is_ahead_of_sglangs_and_falls_back_to_it(sglang_app):
    manager = manager_of(make())
    serving.after_set_global_state(None, SimpleNamespace(tokenizer_manager=manager))
    assert service_of(manager) is service_of(manager)

    async def ask(method="POST", **options):
        transport = httpx.ASGITransport(sglang_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, "/v1/embeddings", **options)

    found = asyncio.run(ask(json={"input": "a"})).json()
    assert found["usage"]["prompt_tokens"] == 3
    image = {"input": [{"image": "b"}]}
    assert asyncio.run(ask(json=image)).json() == {"stock": image}
    assert asyncio.run(ask("GET")).status_code == 405
    refused = asyncio.run(ask(json={"input": "a", "prompt_name": "query"}))
    assert "not one of the checkpoint's prompts; it has: none" in refused.json()["message"]
    # SGLang's check of API keys looks for a level at the endpoint of the first route that matches.
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings"}
    match, child = sglang_app.router.routes[0].matches(scope)
    assert match == Match.FULL
    assert getattr(child["endpoint"], "_auth_level", None) is None
    manager.request_logger.log_requests = True
    assert asyncio.run(ask(json={"input": "a"})).json() == {"stock": {"input": "a"}}


def test_sglangs_routes_get_lists_and_callers_in_the_process_rows_of_one_array():
    manager = manager_of(make())

    async def ask(route="/encode", **fields):
        request = vendor.EmbeddingReqInput(**fields)
        return await around_generate_request(None, manager, request, route).__anext__()

    rows = [item["embedding"] for item in asyncio.run(ask(None, text=["a", "bc"]))]
    assert rows[0].dtype == np.float32
    assert rows[0].base is rows[1].base is not None
    found = asyncio.run(ask(text=["a", "bc"]))
    assert [item["meta_info"]["prompt_tokens"] for item in found] == [3, 4]
    assert [type(item["embedding"]) for item in found] == [list, list]
    assert asyncio.run(ask(input_ids=[1, 2, 3]))["embedding"][:3] == [3, 6, 3]
    assert asyncio.run(ask(text="a"))["embedding"] == found[0]["embedding"]


def test_a_manager_without_a_front_door_keeps_sglangs_route(sglang_app):
    before = list(sglang_app.router.routes)
    serving.after_set_global_state(None, SimpleNamespace(tokenizer_manager=SimpleNamespace()))
    assert sglang_app.router.routes == before


def test_requests_that_are_logged_keep_what_sglangs_handler_has_no_field_for(monkeypatch):
    """SGLang's handler reads them again, and drops `truncate` and `prompt_name`."""
    app = FastAPI()
    manager = manager_of(make(max_tokens=30))
    manager.server_args._arctic.pooling = PoolingSpec("cls", True, prompts={"query": "query: "})
    manager.request_logger.log_requests = True

    @app.post("/v1/embeddings")
    async def sglangs(body: dict, raw: Request):
        extra = {} if raw.headers.get("x-routing") is None else {"routing_key": "k"}
        asked = vendor.EmbeddingReqInput(text=body["input"], **extra)
        try:
            return await around_generate_request(None, manager, asked, raw).__anext__()
        except ValueError as error:
            return JSONResponse({"message": str(error)}, status_code=400)

    monkeypatch.setattr(vendor, "app", app, raising=False)
    serving.after_set_global_state(None, SimpleNamespace(tokenizer_manager=manager))

    def ask(headers=None, **body):
        async def post():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
                return await client.post("/v1/embeddings", json=body, headers=headers)

        answer = asyncio.run(post()).json()
        return answer["meta_info"]["prompt_tokens"] if "meta_info" in answer else answer["message"]

    assert ask(input="who") == 5
    assert ask(input="who", prompt_name="query") == 12
    assert "it has: 'query'" in ask(input="who", prompt_name="none such")
    assert "the model takes 30" in ask(input="x" * 60)
    assert ask(input="x" * 60, truncate=True) == 30
    assert "routing key" in ask({"x-routing": "k"}, input="who", prompt_name="query")
    assert ask(input="who") == 5


class Slow:
    """A manager whose instances never answer, and the road's two ways in."""

    def __init__(self, monkeypatch):
        self.manager = manager_of(make())
        self.service = service_of(self.manager)
        self.began = asyncio.Event()
        monkeypatch.setattr(self.service, "_embed", self.forever)
        self.sent = []

    async def forever(self, rows, *, dimensions):
        self.began.set()
        await asyncio.Event().wait()

    def post(self, input_="a", send=None):
        endpoint = EmbeddingsEndpoint(self.service, stock, model="m", in_work=partial(called, self.manager))
        messages = [{"type": "http.request", "body": orjson.dumps({"input": input_}), "more_body": False}]

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        async def keep(message):
            self.sent.append(message)

        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        return endpoint(scope, receive, send or keep)

    def generate(self, request=None, **fields):
        asked = vendor.EmbeddingReqInput(**fields)
        return anext(around_generate_request(None, self.manager, asked, request))

    def abort(self, rid="", **options):
        from sglang.srt.managers.tokenizer_manager import TokenizerManager

        TokenizerManager.abort_request(self.manager, rid, **options)

    async def start(self, work):
        self.began.clear()
        task = asyncio.ensure_future(work)
        await self.began.wait()
        return task


def test_sglang_waits_for_requests_in_work_and_can_abort_them(monkeypatch):
    """Its end, `/abort_request`, `pause_generation` and its dumps go by what `rid_to_state` lists."""

    async def main():
        slow = Slow(monkeypatch)
        states = slow.manager.rid_to_state
        posted = await slow.start(slow.post())
        assert [state.obj.text for state in states.values()] == [["a"]]
        named = await slow.start(slow.generate(text=["a", "b"], rid=["x", "y"]))
        unnamed = await slow.start(slow.generate(text=["a", "b", "c"]))
        assert len(states) == 4
        assert not any(state.finished or state.abort_requested for state in states.values())
        assert all(state.get_crash_dump_output() == {} for state in states.values())
        with pytest.raises(ValueError, match="Duplicate request ID detected: y"):
            await slow.generate(text="a", rid="y")
        slow.abort("y")
        with pytest.raises(ValueError, match="aborted"):
            await named
        assert len(states) == 2
        assert not any(task.done() for task in (posted, unnamed))
        slow.abort(abort_all=True)
        with pytest.raises(ValueError, match="aborted"):
            await unnamed
        await posted
        assert slow.sent[0]["status"] == 499
        assert orjson.loads(slow.sent[1]["body"])["message"] == "the request was aborted"
        assert states == {}
        cancelled = await slow.start(slow.generate(text="a", rid="z"))
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        assert states == {}

    asyncio.run(main())


def test_a_client_that_reads_nothing_keeps_no_server_from_its_end(monkeypatch):
    monkeypatch.setattr(endpoint_module, "SENDING_SECONDS", 0.01)

    async def main():
        slow = Slow(monkeypatch)
        read = asyncio.Event()

        async def vectors(rows, *, dimensions):
            return np.zeros((rows.rows, 4), np.float32)

        async def send(message):
            await read.wait()
            slow.sent.append(message)

        monkeypatch.setattr(slow.service, "_embed", vectors)
        task = asyncio.ensure_future(slow.post(send=send))
        while not slow.manager.rid_to_state:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert slow.manager.rid_to_state == {}
        assert not task.done()
        read.set()
        await task
        assert slow.sent[0]["status"] == 200

    asyncio.run(main())


def test_a_client_of_sglangs_routes_that_goes_away_ends_the_work(monkeypatch):
    monkeypatch.setattr(manager_module, "_LOOK_SECONDS", 0.001)

    class Raw:
        looks = 0

        async def is_disconnected(self):
            self.looks += 1
            return self.looks > 2

    async def main():
        slow, raw = Slow(monkeypatch), Raw()
        with pytest.raises(ValueError, match="the client of request r is gone"):
            await asyncio.wait_for(slow.generate(raw, text="a", rid="r"), 5)
        assert raw.looks == 3
        assert slow.manager.rid_to_state == {}
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_what_the_road_does_not_do_is_left_to_sglang():
    assert takes(vendor.EmbeddingReqInput(text="a", rid="x", dimensions=3))
    assert not takes(vendor.EmbeddingReqInput(text="a", priority=3))
    assert not takes(vendor.EmbeddingReqInput(text="a", lora_path="l"))


@pytest.mark.parametrize("pooling", [None, PoolingSpec("mean", True), PoolingSpec("cls", True, 300)])
@pytest.mark.parametrize(
    ("config", "context", "window"),
    [
        (XLMRobertaConfig(max_position_embeddings=514, architectures=["XLMRobertaModel"]), 514, 512),
        (BertConfig(max_position_embeddings=512, architectures=["BertModel"]), 1000, 512),
        # A decoder computes its positions: what it was trained with is SGLang's to know.
        (LlamaConfig(max_position_embeddings=512, architectures=["LlamaModel"]), 2048, 2048),
    ],
)
def test_no_row_is_longer_than_a_position_table(pooling, config, context, window):
    args = SimpleNamespace(
        enable_fast_embedding=True, embedding_step_tokens=64, embedding_replicas=1,
        _arctic=SimpleNamespace(pooling=pooling),
    )  # fmt: skip
    manager = SimpleNamespace(
        server_args=args, context_len=context, model_config=SimpleNamespace(hf_config=config),
        _dispatch_to_scheduler=None, _result_dispatcher=vendor.TypeBasedDispatcher([]),
    )  # fmt: skip
    manager_module.after_init(None, manager)
    assert manager.arctic_front.max_tokens == (300 if pooling and pooling.max_input_tokens else window)


def dense(width):
    return PoolingSpec(
        "mean", True, dense=(DenseSpec(6, 3, True, "Tanh", "w"), DenseSpec(3, width, True, "Tanh", "w"))
    )


@pytest.mark.parametrize(
    ("pooling", "changes", "good", "bad", "words"),
    [
        (None, {}, (1, 6), (0, 7), "vectors have 6, so 1 to 6 are wanted"),
        (dense(4), {}, (1, 4), (0, 5), "vectors have 4, so 1 to 4 are wanted"),
        (dense(9), {}, (7, 9), (10,), "vectors have 9"),
        (PoolingSpec("cls", True, truncate_dim=3), {}, (3,), (4,), "truncate_dim cuts its vectors to 3"),
        (None, {"matryoshka_dimensions": [2, 4]}, (2, 4), (3,), "config.json has 2, 4"),
        (None, {"is_matryoshka": False}, (), (4,), "m does not support matryoshka"),
    ],
)
def test_dimensions_are_those_that_the_model_gives(pooling, changes, good, bad, words):
    manager = manager_of(make())
    manager.server_args._arctic.pooling = pooling
    vars(manager.model_config).update(changes)
    check = service_of(manager)._check_dimensions
    for number in good:
        check(number)
    for number in bad:
        with pytest.raises(ValueError, match=words):
            check(number)


def test_a_process_that_cannot_begin_leaves_no_sockets(monkeypatch, tmp_path):
    made = []
    paths = [tmp_path / "in", tmp_path / "out"]

    def socket(context, kind, name, bind):
        made.append(context.socket(kind))
        (tmp_path / name.removeprefix("ipc://")).touch()
        if len(made) == 2:
            raise zmq.ZMQError(24)
        return made[-1]

    ports = SimpleNamespace(
        scheduler_input_ipc_name=f"ipc://{paths[0]}", tokenizer_ipc_name=f"ipc://{paths[1]}"
    )
    monkeypatch.setitem(vars(vendor), "PortArgs", SimpleNamespace(init_new=lambda args: ports))
    monkeypatch.setitem(vars(vendor), "get_zmq_socket", socket)
    with pytest.raises(zmq.ZMQError):
        SchedulerWorker(None, 0, "replica 1")
    assert made[0].closed
    assert not any(path.exists() for path in paths)
    made[1].close()
