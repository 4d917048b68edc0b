"""Texts and ids to vectors through a front door with a pretended engine."""

import asyncio

import numpy as np
import pytest

from arctic_sglang.embedding import service as module
from arctic_sglang.embedding import tokens
from arctic_sglang.embedding.front import FrontDoor, Instance
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.service import EmbeddingService
from arctic_sglang.embedding.tokens import InputError, Tokenizing
from arctic_sglang.embedding.wire import BlockVectors
from tests.unit.arctic_sglang.test_tokens import tiny

TEXTS = ["a", "some words", "", "more words than before"]


def vectors_of(ids: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """A vector of a row: its length, its ids' sum and its last id, over and over."""
    rows = TokenRows(ids, lengths).to_lists()
    return np.array([[(len(r), sum(r), r[-1])[i % 3] for i in range(width)] for r in rows], np.float32)


def make(*, max_tokens=40, step_tokens=64, tokenizer="both", **options) -> EmbeddingService:
    front = FrontDoor(step_tokens=step_tokens, max_tokens=max_tokens)

    def send(block):
        answer = BlockVectors(block.number, vectors_of(block.ids, block.lengths, block.dimensions or 6))
        asyncio.get_running_loop().call_soon(front.answer, answer)

    front.add(Instance("0", send))
    tokenizing = tokenizer and Tokenizing(tiny("<s> $A </s>"))
    return EmbeddingService(front, tokenizing, vocabulary=258, **options)


def embed(service: EmbeddingService, texts, **options):
    return asyncio.run(service.embed_texts(texts, **options))


def test_texts_in_order():
    service = make()
    vectors, lengths = embed(service, TEXTS)
    rows = service.tokenizing(TEXTS)
    assert vectors.dtype == np.float32
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, rows.lengths)
    np.testing.assert_array_equal(vectors, vectors_of(rows.ids, rows.lengths, 6))
    ids_vectors, ids_lengths = asyncio.run(service.embed_ids(rows.to_lists()))
    np.testing.assert_array_equal(ids_vectors, vectors)
    np.testing.assert_array_equal(ids_lengths, lengths)
    assert embed(service, TEXTS, dimensions=2)[0].shape == (4, 2)
    assert embed(service, [])[1].shape == (0,)


def test_a_large_request_in_parts_gives_the_same(monkeypatch):
    service = make()
    texts = [f"{'word ' * (n % 6)}{n}" for n in range(500)]
    expected = embed(service, texts)
    monkeypatch.setattr(tokens, "_SLICE_CHARACTERS", 300)
    monkeypatch.setattr(module, "_PART_STEPS", 2)
    calls = []
    whole = service._embed

    async def counted(rows, *, dimensions):
        calls.append(rows.rows)
        return await whole(rows, dimensions=dimensions)

    monkeypatch.setattr(service, "_embed", counted)
    found = embed(service, texts)
    assert len(calls) > 10
    assert sum(calls) == 500
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_text_that_is_too_long_is_named_or_cut(monkeypatch):
    monkeypatch.setattr(tokens, "_SLICE_CHARACTERS", 60)
    service = make(max_tokens=10)
    texts = ["short"] * 5 + ["x" * 20]
    with pytest.raises(InputError, match=r'row 5 has 22 tokens, and the model takes 10; .*"truncate": true'):
        embed(service, texts)
    vectors, lengths = embed(service, texts, truncate=True)
    assert lengths.tolist() == [7] * 5 + [10]
    assert vectors[5, 2] == 257  # the closing special token
    with pytest.raises(InputError, match="row 1 has 11 tokens"):
        asyncio.run(service.embed_ids([[1], [1] * 11]))
    _, lengths = asyncio.run(service.embed_ids([[1], [1] * 11], truncate=True))
    assert lengths.tolist() == [1, 10]
    _, lengths = asyncio.run(make(max_tokens=3, tokenizer=None).embed_ids([[1] * 5], truncate=True))
    assert lengths.tolist() == [3]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1], [2, 258]], r"row 1 has the token id 258; this model's vocabulary is 0 to 257"),
        ([[-1]], "row 0 has the token id -1"),
        ([[1], []], "row 1 has no tokens"),
        ([[1], ["a"]], "row 1 has 'a' where a token id is wanted"),
    ],
)
def test_wrong_ids_are_named(ids, message):
    with pytest.raises(InputError, match=message):
        asyncio.run(make().embed_ids(ids))


def test_prompts():
    def prompt_text(name):
        if name == "none such":
            msg = "there is no such prompt"
            raise ValueError(msg)
        return {"query": "query: "}[name]

    service = make(prompt_text=prompt_text)
    assert embed(service, ["a"], prompt_name="query")[1].tolist() == [10]
    assert embed(service, ["a"])[1].tolist() == [3]
    with pytest.raises(InputError, match="no such prompt"):
        embed(service, ["a"], prompt_name="none such")
    with pytest.raises(InputError, match="row 0 is of type int"):
        embed(service, [1], prompt_name="query")
    with pytest.raises(InputError, match="this model has no prompts"):
        embed(make(), ["a"], prompt_name="query")


def test_dimensions_that_the_model_does_not_give():
    def check(n):
        if n > 4:
            msg = f"{n} is too many"
            raise ValueError(msg)

    service = make(check_dimensions=check)
    assert embed(service, ["a"], dimensions=4)[0].shape == (1, 4)
    with pytest.raises(InputError, match="5 is too many"):
        embed(service, ["a"], dimensions=5)


def test_a_server_without_a_tokenizer_takes_ids_alone():
    with pytest.raises(InputError, match="send token ids"):
        embed(make(tokenizer=None), ["a"])


def test_a_cancelled_request_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(tokens, "_SLICE_CHARACTERS", 300)
    monkeypatch.setattr(module, "_PART_STEPS", 2)
    front = FrontDoor(step_tokens=64, max_tokens=40)
    sent = []
    front.add(Instance("0", sent.append))
    service = EmbeddingService(front, Tokenizing(tiny("<s> $A </s>")), vocabulary=258)

    async def run():
        task = asyncio.create_task(service.embed_texts(["some words"] * 200))
        while not sent:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        return task.cancelled(), len(asyncio.all_tasks())

    assert asyncio.run(run()) == (True, 1)
    assert not front._large
    assert not front._small
