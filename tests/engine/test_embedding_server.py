"""`/v1/embeddings` with --enable-fast-embedding on the CPU, asked by the real openai client."""

import asyncio
import base64
import json
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest

from tests.engine.servers import running_server

TEXTS = ["a cat sits on the mat", "stock markets fell sharply", "ein kurzer Satz", "1234 !?", "東京タワー 🗼"]


@pytest.fixture(scope="module")
def server(minilm_dir, tmp_path_factory):
    """MiniLM on the vectorised road, with an API key and metrics."""
    args = ["--model-path", minilm_dir, "--is-embedding", "--enable-fast-embedding", "--device", "cpu"]
    args += ["--cpu-threads-per-rank", "1", "--api-key", "secret", "--enable-metrics"]
    with running_server(args, tmp_path_factory.mktemp("fast") / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=120)


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


def test_a_small_request_does_not_wait_for_a_large_one(server):
    async def run():
        options = {"base_url": f"{server.url}/v1", "api_key": "secret", "max_retries": 0, "timeout": 300}
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


def test_keys_and_metrics_hold_for_the_road(server, client):
    request = urllib.request.Request(
        f"{server.url}/v1/embeddings",
        json.dumps({"input": "a"}).encode(),
        {"content-type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=30)
    client.embeddings.create(model="m", input=TEXTS)
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        figures = answer.read().decode()
    assert "arctic:embedding_requests_total{model_name=" in figures
    assert "arctic:embedding_rows_total" in figures
    assert 'sglang:http_requests_total{endpoint="/v1/embeddings"' in figures
