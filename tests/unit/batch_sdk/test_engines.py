"""The engines' contract, held against the dummy engine and against engines that break it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.engines.base import EmbedRequest, EmbedResult, GenerateRequest, GenerateResult
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError

TABLE = pa.table({"text": [f"t{i}" for i in range(10)]})


def request(position: int) -> GenerateRequest:
    return GenerateRequest(position, f"prompt {position}", {"max_new_tokens": 4})


def test_dummy_is_deterministic_and_bounded_by_max_new_tokens():
    results = []
    for _ in range(2):
        with DummyEngine(model="m", task="generate", options={}) as engine:
            engine.submit([request(0), request(1)])
            results.append(engine.wait())
    assert results[0] == results[1]
    assert results[0][0].text != results[0][1].text
    assert results[0][0].completion_tokens == 4
    assert results[0][0].finish_reason == "length"


def test_dummy_vectors():
    with DummyEngine(model="m", task="embed", options={"embedding_size": 5}) as engine:
        engine.submit([EmbedRequest(0, ["a", "b b", "a"])])
        (result,) = engine.wait()
    assert isinstance(result, EmbedResult)
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (3, 5)
    np.testing.assert_array_equal(result.vectors[0], result.vectors[2])
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), 1, rtol=1e-6)
    assert result.prompt_tokens.tolist() == [1, 2, 1]


def test_misuse_is_an_engine_error():
    engine = DummyEngine(model="m", task="generate", options={})
    with pytest.raises(EngineError):
        engine.submit([request(0)])
    engine.start()
    with pytest.raises(EngineError):
        engine.wait()
    engine.submit([request(0)])
    with pytest.raises(EngineError):
        engine.submit([request(0)])
    engine.abandon()
    with pytest.raises(EngineError):
        engine.wait()
    engine.close()
    engine.close()
    assert not engine.started


def foreign(result: GenerateResult) -> GenerateResult:
    return result._replace(position=result.position + 10_000)


def negative(result: GenerateResult) -> GenerateResult:
    return result._replace(position=-1)


@pytest.mark.parametrize(
    "broken",
    [
        lambda results: [],
        lambda results: [*results, results[0]],
        lambda results: [foreign(results[0])],
        lambda results: [negative(results[0])],
        lambda results: [EmbedResult(0, np.zeros((1, 2), np.float32), np.zeros(1, int), [None])],
    ],
    ids=["nothing", "twice", "foreign", "negative", "kind"],
)
def test_an_engine_that_breaks_the_contract_stops_the_job(broken):
    class Broken(DummyEngine):
        def wait(self):
            return broken(super().wait())

    with Broken(model="m", task="generate", options={}) as engine, pytest.raises(EngineError):
        batch_sdk.generate(TABLE, prompt="{{ text }}", model=engine, window_rows=4, progress=False)


@pytest.mark.parametrize("shape", [(9, 16), (10, 15)])
def test_vectors_of_a_wrong_shape_stop_the_job(shape):
    class Broken(DummyEngine):
        def wait(self):
            return [result._replace(vectors=np.zeros(shape, np.float32)) for result in super().wait()]

    with Broken(model="m", task="embed", options={}) as engine, pytest.raises(EngineError, match="shape"):
        batch_sdk.embed(TABLE, column="text", model=engine, progress=False)


def test_an_engine_that_cannot_embed_is_refused():
    class NoVectors(DummyEngine):
        @property
        def info(self):
            return batch_sdk.engines.base.EngineInfo(model="m")

    with (
        NoVectors(model="m", task="embed", options={}) as engine,
        pytest.raises(EngineError, match="no embeddings"),
    ):
        batch_sdk.embed(TABLE, column="text", model=engine, progress=False)
