"""A server of two ranks on the CPU: what it tells of their steps, and how it ends when one of them is killed."""

import contextlib
import http.client
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.servers import running_server

TINY = str(Path(__file__).parents[2] / "examples" / "tiny_lm" / "model")
ARGS = [
    "--model-path", TINY, "--dtype", "float32", "--ulysses-sequence-parallel-size", "2", "--enable-shift-parallel",
    "--shift-parallel-threshold", "24", "--chunked-prefill-size", "64", "--max-total-tokens", "8192",
    "--cpu-threads-per-rank", "1", "--served-model-name", "tiny", "--enable-metrics",
]  # fmt: skip
END_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(ARGS, tmp_path_factory.mktemp("shift") / "server.log") as server:
        yield server


def post(server, body):
    """The answer to a request, open for reading."""
    request = urllib.request.Request(
        f"{server.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=120)


def told(server):
    return server.get("/server_info")["internal_states"][0]["shift"]


def counters(server):
    """Values of our counters by name and mode, and the labels that they all have besides."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found, labels = {}, set()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("arctic:shift_"):
            key = (sample.name.removeprefix("arctic:shift_"), sample.labels.pop("mode", None))
            assert key not in found, "two ranks publish"
            found[key] = sample.value
            labels.add(tuple(sorted(sample.labels.items())))
    return found, labels


def told_and_counted(server):
    """What both say between two steps."""
    for _ in range(100):
        before, (found, labels) = told(server), counters(server)
        if told(server) == before:
            return before, found, labels
        time.sleep(0.1)
    return pytest.fail("a server without requests goes on counting")


def test_metrics_and_server_info_agree(server):
    first, _, _ = told_and_counted(server)
    with post(server, {"text": "def f(x): " * 40, "sampling_params": {"max_new_tokens": 8}}) as answer:
        prompt = json.load(answer)["meta_info"]["prompt_tokens"]
    info, found, labels = told_and_counted(server)
    assert found == {
        **{("steps_total", mode): info["steps"][mode] for mode in ("tp", "sp")},
        **{("tokens_total", mode): info["tokens"][mode] for mode in ("tp", "sp")},
        ("switches_total", None): info["switches"],
        ("exchange_seconds_total", None): pytest.approx(info["exchange_seconds"]),
    }
    (only,) = (dict(pairs) for pairs in labels)
    assert only["model_name"] == "tiny"
    assert only["tp_rank"] == "0"
    steps, tokens = ({m: info[k][m] - first[k][m] for m in ("tp", "sp")} for k in ("steps", "tokens"))
    assert prompt > 64
    assert steps["sp"] >= 2  # chunks of 64 tokens
    assert steps["tp"] >= 7  # an answer's tokens but for the first
    assert 0 < prompt - tokens["sp"] <= 24 or tokens["sp"] == prompt  # the last chunk's may be few
    assert info["switches"] > first["switches"]
    assert info["exchange_seconds"] > first["exchange_seconds"]
    assert all(seconds > 0 for seconds in info["exchange_seconds_of_a_step"].values())


def kill(server, victim, stopped=None):
    """Kills a rank while requests run, and looks at what becomes of the server, which must end.

    Args:
        server: that runs.
        victim: rank that is killed.
        stopped: rank that hears of nothing, as one on a GPU that waits in a kernel for the other; None: none.
    """
    children = psutil.Process(server.process.pid).children(recursive=True)
    ranks = {rank: p for rank in (0, 1) for p in children if f"scheduler_TP{rank}" in " ".join(p.cmdline())}
    running, ended = threading.Barrier(5), []

    def ask(number):
        sampling = {"max_new_tokens": 900, "ignore_eos": True}
        with post(
            server, {"text": f"def f{number}(x):", "sampling_params": sampling, "stream": True}
        ) as answer:
            answer.readline()
            running.wait(60)
            with contextlib.suppress(urllib.error.URLError, http.client.HTTPException, ConnectionError):
                for line in answer:
                    assert b"[DONE]" not in line
        ended.append(number)

    clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(4)]
    for client in clients:
        client.start()
    running.wait(60)
    if stopped is not None:
        ranks[stopped].send_signal(signal.SIGSTOP)
    ranks[victim].kill()
    code = server.process.wait(END_SECONDS)
    log = server.log.read_text()
    assert code != 0
    assert f"these processes have ended: scheduler_{victim} (pid {ranks[victim].pid}, exit code -9)" in log
    _, alive = psutil.wait_procs(children, 30)
    assert alive == []
    for client in clients:
        client.join(10)
    assert sorted(ended) == [0, 1, 2, 3], "a client waits, or was answered"


def test_a_killed_rank_ends_the_server_though_the_other_hears_of_nothing(server):
    kill(server, 1, stopped=0)


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_server(victim, tmp_path):
    with running_server(ARGS, tmp_path / "server.log") as server:
        kill(server, victim)
