"""Servers on the CPU, asked by the real openai client."""

import json

import openai
import pytest

from tests.engine.servers import running_server


@pytest.fixture(scope="module")
def minilm_server(minilm_dir, tmp_path_factory):
    """MiniLM behind HTTP, configured by SGLang's YAML file."""
    folder = tmp_path_factory.mktemp("minilm")
    config = folder / "server.yaml"
    config.write_text(
        f"model-path: {minilm_dir}\nis-embedding: true\nembedding-pooling: checkpoint\ncpu-threads-per-rank: 1\n"
    )
    with running_server(["--config", str(config), "--device", "cpu"], folder / "server.log") as server:
        yield server


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
