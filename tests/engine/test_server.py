"""Servers on the CPU, asked by the real openai client: one that generates, two that embed, one of them vectorised."""

import asyncio
import base64
import contextlib
import json
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.engines.base import GenerateRequest
from tests.engine.servers import starting_server

TEXTS = ["a cat sits on the mat", "stock markets fell sharply", "ein kurzer Satz", "1234 !?", "東京タワー 🗼"]


@pytest.fixture(scope="module")
def servers(tiny_model_dir, minilm_dir, tmp_path_factory):
    """Three that start side by side: half of a start is one process that imports SGLang on one core."""
    folder = tmp_path_factory.mktemp("servers")
    config = folder / "server.yaml"
    config.write_text(
        f"model-path: {minilm_dir}\nis-embedding: true\nembedding-pooling: checkpoint\ncpu-threads-per-rank: 1\n"
    )
    generating = ["--model-path", tiny_model_dir, "--constrained-json-disable-any-whitespace"]
    embedding = ["--config", str(config)]
    # Without --is-embedding: SGLang makes an embedding server of a BertModel by itself.
    fast = ["--model-path", minilm_dir, "--enable-fast-embedding", "--cpu-threads-per-rank", "1"]
    fast += ["--api-key", "secret", "--enable-metrics"]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(starting_server([*args, "--device", "cpu"], folder / f"{number}.log"))
            for number, args in enumerate((generating, embedding, fast))
        ]
        for server in started:
            server.wait_until_healthy()
        yield started


@pytest.fixture(scope="module")
def tiny_server(servers):
    """The tiny model behind HTTP, as the README starts it."""
    return servers[0]


@pytest.fixture(scope="module")
def minilm_server(servers):
    """MiniLM behind HTTP, configured by SGLang's YAML file."""
    return servers[1]


@pytest.fixture(scope="module")
def fast_server(servers):
    """MiniLM on the vectorised road, with an API key and metrics."""
    return servers[2]


def ask(server, code, **more):
    messages = [{"role": "user", "content": code}]
    return server.client().chat.completions.create(
        model="m", messages=messages, temperature=0, max_tokens=32, **more
    )


def test_chat(tiny_server, functions):
    answer = ask(tiny_server, functions[0])
    assert len(answer.choices[0].message.content) > 5
    assert answer.usage.completion_tokens > 1


def test_chat_stream_equals_chat(tiny_server, functions):
    whole = ask(tiny_server, functions[1]).choices[0].message.content
    parts = [
        c.choices[0].delta.content or "" for c in ask(tiny_server, functions[1], stream=True) if c.choices
    ]
    assert len(parts) > 2
    assert "".join(parts) == whole


def test_completion(tiny_server):
    answer = tiny_server.client().completions.create(
        model="m", prompt="def add(a, b):\n", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text


def test_json_schema(tiny_server, functions):
    schema = {
        "type": "object", "properties": {"lines": {"type": "integer", "maximum": 99}}, "required": ["lines"],
        "additionalProperties": False,
    }  # fmt: skip
    answer = ask(
        tiny_server, functions[0],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content)["lines"], int)


def test_a_request_that_is_too_long_is_an_error_and_the_server_lives(tiny_server):
    with pytest.raises(openai.BadRequestError, match="context length"):
        ask(tiny_server, "x = 1\n" * 5000)
    assert ask(tiny_server, "def f(): pass").choices


def test_server_info_shows_the_flags(tiny_server):
    info = tiny_server.get("/server_info")
    assert info["embedding_pooling"] == "auto"
    assert info["cpu_threads_per_rank"] is None
    assert info["device"] == "cpu"


def test_yaml_flags_arrive(minilm_server):
    info = minilm_server.get("/server_info")
    assert info["embedding_pooling"] == "checkpoint"
    assert info["cpu_threads_per_rank"] == 1


def test_embeddings(minilm_server, minilm_dir):
    from sentence_transformers import SentenceTransformer

    texts = ["a cat sits on the mat", "stock markets fell sharply", "ein kurzer Satz", "1234 !?"]
    answer = minilm_server.client().embeddings.create(model="m", input=texts, encoding_format="float")
    expected = SentenceTransformer(minilm_dir, device="cpu").encode(texts)
    for item, vector in zip(answer.data, expected, strict=True):
        assert float(vector @ item.embedding) > 0.9999


def test_embedding_of_a_text_longer_than_the_window_is_an_error(minilm_server):
    with pytest.raises(openai.BadRequestError, match="longer than the model's context length"):
        minilm_server.client().embeddings.create(model="m", input="word " * 600)


def test_http_engine_gives_what_the_openai_client_gives(tiny_server, tiny_model_dir, functions):
    codes = [*functions[:11], "x = 1\n" * 5000]
    table, summary = batch_sdk.generate(
        pa.table({"code": codes}), prompt="{{ code }}", model=tiny_model_dir, engine="http",
        engine_options={"url": tiny_server.url}, temperature=0, max_new_tokens=32, progress=False,
        return_summary=True,
    )  # fmt: skip
    answers = [ask(tiny_server, code) for code in codes[:11]]
    assert table.column("response").to_pylist() == [a.choices[0].message.content for a in answers] + [None]
    assert table.column("prompt_tokens").to_pylist() == [a.usage.prompt_tokens for a in answers] + [None]
    assert table.column("finish_reason").to_pylist() == [a.choices[0].finish_reason for a in answers] + [None]
    # SGLang's answer to a row that is too long has no code that would say so.
    assert table.column("error")[11].as_py()["kind"] == "rejected"
    assert "context length" in table.column("error")[11].as_py()["message"]
    assert summary.completion_tokens == sum(a.usage.completion_tokens for a in answers)


def test_http_engine_sends_plain_prompts_and_every_sampling_option(tiny_server, tiny_model_dir):
    prompts = ["def add(a, b):\n", "def f(x):\n"]
    table = batch_sdk.generate(
        pa.table({"text": prompts}), prompt="{{ text }}", model=tiny_model_dir, engine="http", chat=False,
        engine_options={"url": tiny_server.url}, temperature=0, max_new_tokens=8, min_new_tokens=8, top_p=0.9,
        top_k=5, min_p=0.1, frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, ignore_eos=True,
        skip_special_tokens=False, stop=["never this"], stop_token_ids=[1], seed=3, progress=False,
    )  # fmt: skip
    assert table.column("error").null_count == 2, table.column("error")
    extra = {"min_tokens": 8, "ignore_eos": True, "skip_special_tokens": False, "top_k": 5, "min_p": 0.1}
    for prompt, text in zip(prompts, table.column("response").to_pylist(), strict=True):
        answer = tiny_server.client().completions.create(
            model="m", prompt=prompt, max_tokens=8, temperature=0, top_p=0.9, extra_body=extra
        )
        assert text == answer.choices[0].text
    assert table.column("completion_tokens").to_pylist() == [8, 8]


def test_http_engine_embeds_and_the_bad_row_fails_alone(minilm_server, minilm_dir):
    texts = ["a cat sits on the mat", "word " * 600, "ein kurzer Satz", " ", "1234 !?"]
    table = batch_sdk.embed(
        pa.table({"text": texts}), column="text", model=minilm_dir, engine="http",
        engine_options={"url": minilm_server.url}, progress=False,
    )  # fmt: skip
    kinds = [error and error["kind"] for error in table.column("error").to_pylist()]
    assert kinds == [None, "rejected", None, "rejected", None]
    answer = minilm_server.client().embeddings.create(model="m", input=[texts[0], texts[2], texts[4]])
    for row, item in zip((0, 2, 4), answer.data, strict=True):
        vector = np.array(table.column("embedding")[row].as_py(), np.float32)
        np.testing.assert_allclose(vector, item.embedding, atol=1e-5)


def test_http_engine_holds_a_chat_to_a_json_schema(tiny_server, tiny_model_dir, functions):
    schema = {
        "type": "object",
        "properties": {"lines": {"type": "integer", "maximum": 99}},
        "required": ["lines"],
    }
    sampling = {"max_new_tokens": 32, "temperature": 0, "json_schema": json.dumps(schema)}
    options = {"url": tiny_server.url}
    with batch_sdk.create_engine("http", model=tiny_model_dir, task="generate", options=options) as engine:
        engine.submit([GenerateRequest(0, [{"role": "user", "content": functions[0]}], sampling)])
        (result,) = engine.wait()
    assert result.error is None
    assert isinstance(json.loads(result.text)["lines"], int)


@pytest.fixture(scope="module")
def client(fast_server):
    return openai.OpenAI(base_url=f"{fast_server.url}/v1", api_key="secret", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def expected(minilm_dir):
    """sentence-transformers' vectors of TEXTS, float32 `[5, 384]`."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm_dir, device="cpu").encode(TEXTS)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_vectors_are_those_of_sentence_transformers(client, expected, form):
    answer = client.embeddings.create(model="m", input=TEXTS, encoding_format=form)
    for index, (item, vector) in enumerate(zip(answer.data, expected, strict=True)):
        got = np.frombuffer(base64.b64decode(item.embedding), "<f4") if form == "base64" else item.embedding
        assert item.index == index
        assert float(vector @ np.asarray(got, np.float32)) > 0.9999
    assert answer.model == "m"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3 * len(TEXTS)


def test_token_ids_give_what_texts_give(client, minilm_dir, expected):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(minilm_dir)(TEXTS)["input_ids"]
    answer = client.embeddings.create(model="m", input=ids)
    for item, vector in zip(answer.data, expected, strict=True):
        assert float(vector @ np.asarray(item.embedding, np.float32)) > 0.9999
    assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_what_is_wrong_is_a_400_that_names_the_row(client):
    for more, message in (
        ({"input": ["a", "word " * 600]}, "row 1 has 602 tokens, and the model takes "),
        ({"input": ["a", ""]}, "Input at index 1 cannot be empty"),
        ({"input": [[1], [10**6]]}, "row 1 has the token id 1000000"),
        ({"input": "a", "dimensions": 8}, "does not support matryoshka"),
        ({"input": "a", "encoding_format": "hex"}, "it must be one of"),
        ({"input": ["a", 1]}, ""),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.embeddings.create(model="m", **more)


def test_a_long_text_is_cut_if_asked(client):
    answer = client.embeddings.create(model="m", input="word " * 600, extra_body={"truncate": True})
    cut = client.embeddings.create(model="m", input="word " * (answer.usage.prompt_tokens - 2))
    assert cut.usage.prompt_tokens == answer.usage.prompt_tokens
    np.testing.assert_allclose(answer.data[0].embedding, cut.data[0].embedding, atol=1e-5)


def test_a_small_request_does_not_wait_for_a_large_one(fast_server):
    async def run():
        options = {"base_url": f"{fast_server.url}/v1", "api_key": "secret", "max_retries": 0, "timeout": 300}
        async with openai.AsyncOpenAI(**options) as client:
            texts = [f"{text} {n}" for n in range(400) for text in TEXTS]
            start = time.monotonic()
            large = asyncio.create_task(client.embeddings.create(model="m", input=texts))
            await asyncio.sleep(0.1)
            small = await client.embeddings.create(model="m", input="a few words")
            waited = time.monotonic() - start
            assert not large.done()
            assert len(small.data) == 1
            answer = await large
            assert [item.index for item in answer.data] == list(range(2000))
            return waited, time.monotonic() - start

    waited, whole = asyncio.run(run())
    assert waited < whole


def test_keys_and_metrics_hold_for_the_road(fast_server, client):
    request = urllib.request.Request(
        f"{fast_server.url}/v1/embeddings",
        json.dumps({"input": "a"}).encode(),
        {"content-type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=30)
    client.embeddings.create(model="m", input=TEXTS)
    with urllib.request.urlopen(f"{fast_server.url}/metrics", timeout=30) as answer:
        figures = answer.read().decode()
    assert "arctic:embedding_requests_total{model_name=" in figures
    assert "arctic:embedding_rows_total" in figures
    assert 'sglang:http_requests_total{endpoint="/v1/embeddings"' in figures
