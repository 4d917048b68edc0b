"""OpenAI's embeddings protocol: bytes to a call, vectors to bytes."""

import base64

import numpy as np
import orjson
import pytest

from arctic_sglang.embedding import openai_api
from arctic_sglang.embedding.openai_api import EmbeddingCall, answer, error, parse
from arctic_sglang.embedding.tokens import InputError


def asked(**fields) -> EmbeddingCall | None:
    return parse(orjson.dumps({"model": "m", **fields}))


def test_texts_and_ids():
    assert asked(input="a") == EmbeddingCall(["a"], None, "m")
    assert asked(input=["a", "b"], user="u", encoding_format="base64") == EmbeddingCall(
        ["a", "b"], None, "m", base64=True
    )
    assert asked(input=[1, 2]) == EmbeddingCall(None, [[1, 2]], "m")
    assert asked(input=[[1, 2], [3]], dimensions=8) == EmbeddingCall(None, [[1, 2], [3]], "m", dimensions=8)
    assert parse(b'{"input": "a"}').model is None


def test_extensions():
    assert asked(input="a", truncate=True).truncate
    assert asked(input="a", truncate="END").truncate
    for value in (False, None, "NONE"):
        assert not asked(input="a", truncate=value).truncate
    assert asked(input="a", prompt_name="query").prompt_name == "query"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"input": {"a": 1}}',
        b'{"input": [{"text": "a", "image": "b"}]}',
        b'{"input": ["a", 1]}',
        b'{"input": [null]}',
        b'{"input": [1.5]}',
        b'{"input": 5}',
        b'{"input": "half \\ud83d"}',
        b'{"input": "a", "lora_path": "x"}',
        b'{"input": "a", "embed_override_token_id": 0}',
        b'{"input": "a", "priority": 1}',
        b'{"input": "a", "rid": "r"}',
        b'{"input": "a", "model": "base:adapter"}',
        b'{"input": "a", "model": 5}',
    ],
)
def test_what_is_left_to_sglang(body):
    assert parse(body) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": ""}, "Input cannot be empty or whitespace only"),
        ({"input": []}, "Input cannot be empty"),
        ({"input": ["a", " \n"]}, "Input at index 1 cannot be empty or whitespace only"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format is 'hex'; it must be one of \"float\", \"base64\""),
        ({"input": "a", "truncate": "START"}, "truncate is 'START'; it must be one of false, true, \"NONE\", \"END\""),
        ({"input": "a", "truncate": 1}, "truncate is 1; it must be one of"),
        ({"input": "a", "dimensions": "8"}, "dimensions is '8'; an integer is wanted"),
        ({"input": "a", "dimensions": True}, "dimensions is True; an integer is wanted"),
        ({"input": [1], "prompt_name": "query"}, "send texts, not token ids"),
        ({"input": "a", "prompt_name": 1}, "prompt_name is the name of a prompt"),
        ({"input": "a", "prompt_name": "query", "lora_path": "x"}, "prompt_name is for plain texts without"),
        ({"input": [{"text": "a"}], "truncate": True}, "truncate is for plain texts without"),
    ],
)  # fmt: skip
def test_what_is_wrong(fields, message):
    with pytest.raises(InputError) as caught:
        asked(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("in_base64", [False, True])
@pytest.mark.parametrize("piece_floats", [4, 40, 1 << 20])
@pytest.mark.parametrize("rows", [1, 7, 21])
def test_an_answer_in_pieces_is_what_openai_says(monkeypatch, in_base64, piece_floats, rows):
    monkeypatch.setattr(openai_api, "_PIECE_FLOATS", piece_floats)
    monkeypatch.setattr(openai_api, "_PIECE_FLOATS_BASE64", piece_floats)
    vectors = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float32)
    pieces = list(answer(vectors, 42, 'a "model"', base64=in_base64))
    assert len(pieces) == -(-rows // max(1, piece_floats // 5))
    found = orjson.loads(b"".join(pieces))
    data = found.pop("data")
    assert found == {
        "object": "list",
        "model": 'a "model"',
        "usage": {"prompt_tokens": 42, "total_tokens": 42},
    }
    assert [item["index"] for item in data] == list(range(rows))
    assert {item["object"] for item in data} == {"embedding"}
    for item, vector in zip(data, vectors, strict=True):
        value = item["embedding"]
        got = np.frombuffer(base64.b64decode(value), "<f4") if in_base64 else np.array(value, np.float32)
        np.testing.assert_array_equal(got, vector)


def test_an_answer_takes_a_view_of_other_vectors():
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    found = orjson.loads(b"".join(answer(wide[:, ::2], 2, "m", base64=False)))
    assert [item["embedding"] for item in found["data"]] == [[0, 2, 4], [6, 8, 10]]


def test_errors_have_sglangs_shape():
    assert orjson.loads(error("no")) == {
        "object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400,
    }  # fmt: skip
    assert orjson.loads(error("no", status=500))["type"] == "InternalServerError"
