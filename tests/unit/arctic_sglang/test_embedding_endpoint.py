"""`POST /v1/embeddings` at ASGI level, and its place in an application like SGLang's."""

import asyncio
import base64
from types import SimpleNamespace

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse
from starlette.routing import Match

from arctic_sglang.compat import vendor
from arctic_sglang.embedding import openai_api, serving
from arctic_sglang.embedding.endpoint import EmbeddingsEndpoint
from arctic_sglang.embedding.front import EmbeddingFailedError
from arctic_sglang.embedding.manager import around_generate_request, service_of
from arctic_sglang.embedding.metrics import RoadMetrics
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
        model_config=SimpleNamespace(vocab_size=258, is_embedding_gemma=False),
        tokenizer=tiny("<s> $A </s>"),
        served_model_name="served",
        enable_trace=False,
        request_logger=SimpleNamespace(log_requests=False),
        server_args=SimpleNamespace(
            enable_metrics=False, allow_auto_truncate=False, _arctic=SimpleNamespace(pooling=None), **flags
        ),
    )


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
