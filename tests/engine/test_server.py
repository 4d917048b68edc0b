"""Servers on the CPU, asked by the real openai client."""

import json

import numpy as np
import openai
import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.engines.base import GenerateRequest
from tests.engine.servers import starting_server


@pytest.fixture(scope="module")
def servers(tiny_model_dir, minilm_dir, tmp_path_factory):
    """Two that start side by side: half of a start is one process that imports SGLang on one core."""
    folder = tmp_path_factory.mktemp("servers")
    config = folder / "server.yaml"
    config.write_text(
        f"model-path: {minilm_dir}\nis-embedding: true\nembedding-pooling: checkpoint\ncpu-threads-per-rank: 1\n"
    )
    generating = [
        "--model-path",
        tiny_model_dir,
        "--device",
        "cpu",
        "--constrained-json-disable-any-whitespace",
    ]
    embedding = ["--config", str(config), "--device", "cpu"]
    with (
        starting_server(generating, folder / "tiny.log") as tiny,
        starting_server(embedding, folder / "minilm.log") as minilm,
    ):
        tiny.wait_until_healthy()
        minilm.wait_until_healthy()
        yield tiny, minilm


@pytest.fixture(scope="module")
def tiny_server(servers):
    """The tiny model behind HTTP, as the README starts it."""
    return servers[0]


@pytest.fixture(scope="module")
def minilm_server(servers):
    """MiniLM behind HTTP, configured by SGLang's YAML file."""
    return servers[1]


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
