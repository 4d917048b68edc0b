"""Two instances of MiniLM behind one front door on the CPU: one of them is killed, and no row is lost."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.engines import children

HELD_OUT = Path(__file__).parents[2] / "examples" / "tiny_lm" / "heldout.jsonl"
ROWS = 3000
BACK_SECONDS = 120


@pytest.fixture(scope="module")
def texts():
    docs = [json.loads(line)["doc"] for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    return [f"{row}: {docs[row % len(docs)]}" for row in range(ROWS)]


@pytest.fixture(scope="module")
def engine(minilm_dir):
    before = children.pids()
    options = {"enable_fast_embedding": True, "embedding_replicas": 2, "embedding_step_tokens": 512}
    with batch_sdk.create_engine("sglang", model=minilm_dir, task="embed", options=options) as started:
        yield started
    assert children.since(before) == []


@pytest.fixture(scope="module")
def expected(texts, minilm_dir):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm_dir, device="cpu").encode(texts, batch_size=64)


def embed(texts, engine):
    table = batch_sdk.embed(
        pa.table({"text": texts}), column="text", model=engine, truncate=True, progress=False
    )
    assert table["error"].null_count == len(texts)
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False))


def manager_of(engine):
    return engine._engine.tokenizer_manager


def wait_until_back(engine, restarts):
    """Run the engine's loop, as any use of it does, until the replica serves again."""
    import asyncio

    replicas = manager_of(engine).arctic_replicas
    deadline = time.monotonic() + BACK_SECONDS
    while time.monotonic() < deadline:
        status = replicas.status()
        if status["restarts"] == restarts and status["in_service"] == 2:
            return status
        engine._engine.loop.run_until_complete(asyncio.sleep(0.1))
    pytest.fail(f"the replica is not back: {replicas.status()}")


def test_both_work_and_one_killed_at_work_loses_nothing(engine, texts, expected):
    manager = manager_of(engine)
    replicas = manager.arctic_replicas
    (pid,) = replicas.pids()
    assert psutil.Process(pid).cmdline()[0] == "sglang::embedding_replica_1"
    killed = []

    def kill_at_work(stock=manager.arctic_front.answer):
        def answer(message):
            stock(message)
            held = replicas.status()["replicas"][0]["tokens"]
            answered = [row["answered_blocks"] for row in manager.arctic_front.status()["instances"]]
            if not killed and held and len(answered) == 2 and min(answered) > 3:
                os.kill(pid, signal.SIGKILL)
                killed.append(held)

        return answer

    manager.arctic_front.answer, stock = kill_at_work(), manager.arctic_front.answer
    try:
        vectors = embed(texts, engine)
    finally:
        manager.arctic_front.answer = stock
    assert killed, "the replica was never at work"
    assert ((vectors * expected).sum(axis=1) > 0.9999).all()
    status = wait_until_back(engine, restarts=1)
    assert status["replicas"][0]["pid"] != pid
    again = embed(texts[:500], engine)
    assert ((again * expected[:500]).sum(axis=1) > 0.9999).all()
    assert all(row["answered_blocks"] > 0 for row in manager.arctic_front.status()["instances"])


@pytest.mark.full
def test_one_killed_while_nothing_is_in_work(engine, texts, expected):
    (pid,) = manager_of(engine).arctic_replicas.pids()
    before = manager_of(engine).arctic_replicas.status()["restarts"]
    os.kill(pid, signal.SIGKILL)
    vectors = embed(texts[:300], engine)
    assert ((vectors * expected[:300]).sum(axis=1) > 0.9999).all()
    wait_until_back(engine, restarts=before + 1)


def test_the_servers_information_tells_of_both_and_new_weights_are_refused(engine, minilm_dir):
    sglang_engine = engine._engine
    told = json.loads(json.dumps(sglang_engine.get_server_info()["embedding"]))
    assert [row["name"] for row in told["instances"]] == ["0", "embedding replica 1"]
    assert told["replicas"]["in_service"] == 2
    done, message, _ = sglang_engine.update_weights_from_disk(minilm_dir)
    assert not done
    assert "--embedding-replicas" in message
