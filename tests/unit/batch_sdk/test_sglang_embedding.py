"""Both roads to SGLang's vectors, with a stand-in for SGLang."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from arctic_sglang.embedding.front import EmbeddingFailedError
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.tokens import Tokenizing
from batch_sdk.engines.base import EmbedRequest
from batch_sdk.engines.sglang_embedding import FastEmbedder, PlainEmbedder

VOCABULARY = 100


class Tokenizer:
    """A token is a character's code, 1 stands before and 2 behind; cutting keeps the 2."""

    eos_token_id = 2

    def __call__(
        self, texts, verbose=True, truncation=False, max_length=None, return_special_tokens_mask=False
    ):
        if return_special_tokens_mask:
            return {"special_tokens_mask": [1, *[0] * len(texts), 1]}
        rows = [[1, *(ord(c) - 90 for c in text), 2] for text in texts]
        if truncation:
            rows = [row if len(row) <= max_length else [*row[: max_length - 1], 2] for row in rows]
        return {"input_ids": rows}


def vectors_of(rows: TokenRows) -> np.ndarray:
    return np.array([[len(row), sum(row)] for row in rows.to_lists()], np.float32)


class Manager:
    """SGLang's tokenizer manager, as far as it is used here."""

    def __init__(self, fails=None, cuts=False):
        self.tokenizer = Tokenizer()
        self.model_config = SimpleNamespace(vocab_size=VOCABULARY, is_embedding_gemma=False)
        self.server_args = SimpleNamespace(allow_auto_truncate=cuts)
        self.arctic_front = SimpleNamespace(max_tokens=8, step_tokens=16)
        self.fails = fails
        self.asked: list[list[list[int]]] = []

    async def embed(self, rows):
        self.asked.append(rows.to_lists())
        if self.fails is not None:
            raise self.fails
        return vectors_of(rows)

    async def generate_request(self, request, _):
        self.asked.append(request.input_ids)
        if any(row[1:2] == [50] for row in request.input_ids):
            raise ValueError("a token that is not liked")
        yield [{"embedding": [len(row), sum(row)]} for row in request.input_ids]


@pytest.fixture(params=["fast", "plain"])
def road(request, monkeypatch):
    # The real modules behind these two import SGLang.
    fast = ModuleType("arctic_sglang.embedding.manager")
    fast.embed = lambda manager, rows: manager.embed(rows)
    fast.service_of = lambda manager: SimpleNamespace(tokenizing=Tokenizing(manager.tokenizer))
    vendor = ModuleType("arctic_sglang.compat.vendor")
    vendor.EmbeddingReqInput = SimpleNamespace
    monkeypatch.setitem(sys.modules, fast.__name__, fast)
    monkeypatch.setitem(sys.modules, vendor.__name__, vendor)
    monkeypatch.setattr("arctic_sglang.compat.vendor", vendor, raising=False)
    return request.param


def make(road, manager=None):
    manager = manager or Manager()
    return FastEmbedder(manager) if road == "fast" else PlainEmbedder(manager, 8)


def run(embedder, request):
    (rows,) = embedder.tokenize([request])
    return asyncio.run(embedder.embed(request, rows))


def kinds(result):
    return [error and error.kind for error in result.errors]


def test_texts(road):
    result = run(make(road), EmbedRequest(5, ["ab", "", "b"]))
    assert result.position == 5
    assert kinds(result) == [None] * 3
    assert result.prompt_tokens.tolist() == [4, 2, 3]
    assert result.vectors.tolist() == [[4, 18], [2, 3], [3, 11]]
    assert result.vectors.dtype == np.float32


def test_wrong_rows_cost_nothing_but_themselves(road):
    ids = [[3], [], [1] * 9, [VOCABULARY], [4, 5], [-1, 7]]
    manager = Manager()
    result = run(make(road, manager), EmbedRequest(0, [], False, TokenRows.from_lists(ids)))
    assert kinds(result) == [None, "rejected", "too_long", "rejected", None, "rejected"]
    assert result.vectors[[0, 4]].tolist() == [[1, 3], [2, 9]]
    assert manager.asked == [[[3], [4, 5]]]


def test_no_row_is_left(road):
    result = run(make(road), EmbedRequest(0, ["a" * 9, "b" * 9]))
    assert kinds(result) == ["too_long"] * 2
    assert len(result.vectors) == 2


def test_truncate(road):
    manager = Manager()
    embedder = make(road, manager)
    run(embedder, EmbedRequest(0, ["abcdefghi", "a"], True))
    run(embedder, EmbedRequest(0, [], True, TokenRows.from_lists([list(range(20)), [1]])))
    text, ids = manager.asked
    assert text == [[1, 7, 8, 9, 10, 11, 12, 2], [1, 7, 2]], "a text keeps its last special token"
    assert ids == [list(range(8)), [1]], "ids are cut as they are"


def test_the_servers_own_truncation_on_the_fast_road(road):
    if road == "fast":
        embedder = make(road, Manager(cuts=True))
        assert embedder.limit is None
        assert kinds(run(embedder, EmbedRequest(0, ["a" * 50]))) == [None]
        assert make(road).limit == 8


def test_a_step_that_fails_fails_its_rows(road):
    if road == "fast":
        manager = Manager(fails=EmbeddingFailedError("out of memory"))
        result = run(make(road, manager), EmbedRequest(0, ["a", "b" * 20, "c"]))
        assert kinds(result) == ["aborted", "too_long", "aborted"]
        assert result.errors[0].message == "out of memory"


def test_a_spoiled_block_costs_one_row_on_sglangs_own_road(road):
    if road == "plain":
        manager = Manager()
        ids = TokenRows.from_lists([[1], [1, 50], [1, 2]])
        result = run(make(road, manager), EmbedRequest(0, [], False, ids))
        assert kinds(result) == [None, "rejected", None]
        assert result.vectors[2].tolist() == [2, 3]
        assert len(manager.asked) == 4


def test_the_window_is_in_steps(road):
    if road == "fast":
        assert make(road).window_tokens == 64 * 16
