"""A real server and real clients: the HTTP part of `embed_speed.py`."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from engine_child import Piped
from servers import end, launch, wait_healthy

CLIENT = Path(__file__).with_name("embed_client.py")


def latency(values: list[float]) -> dict[str, float]:
    """Percentiles of milliseconds."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    named = {"p50": p50, "p95": p95, "p99": p99, "max": max(values)}
    return {**{name: round(float(value), 3) for name, value in named.items()}, "requests": len(values)}


@contextlib.contextmanager
def server(model: Path, flags: list[str], plugins: str, log: Path) -> Iterator[str]:
    """A server process; yields its URL once it answers.

    Raises:
        RuntimeError: it ended, or was not healthy in time; the message has the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = launch(model, port, ["--is-embedding", *flags], plugins, log)
    try:
        wait_healthy(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process.pid)


class Clients:
    """Client processes, and what is asked of all of them at once.

    Args:
        url: of the server.
        count: processes.
        tokenizer: file of the tokenizer.
        tokens: of a row.
        log: folder for what they print.
    """

    def __init__(self, url: str, count: int, tokenizer: Path, tokens: int, log: Path) -> None:
        self.tokens = tokens
        self._pool = ThreadPoolExecutor(count)
        self._clients: list[Piped] = []
        self._lock = threading.Lock()

        def start(seed: int) -> None:
            command = [sys.executable, str(CLIENT), url, str(tokenizer), str(tokens), str(seed)]
            client = Piped(command, {}, log / f"embed_client_{seed}.log", 900)
            with self._lock:
                self._clients.append(client)

        list(self._pool.map(start, range(count)))

    def load(self, seconds: float, concurrency: int, batch: int, encoding: str) -> dict[str, Any]:
        """Rows and tokens a second, and latencies, with `concurrency` requests in flight in all."""
        count = min(len(self._clients), concurrency)
        shares = [concurrency // count + (index < concurrency % count) for index in range(count)]
        questions = [
            {"kind": "load", "seconds": seconds, "in_flight": share, "batch": batch, "encoding": encoding}
            for share in shares
        ]
        answers = list(
            self._pool.map(lambda pair: pair[0].ask(pair[1]), zip(self._clients, questions, strict=False))
        )
        latencies = [value for answer in answers for value in answer["latency_ms"]]
        if not latencies:
            message = f"no request ended within {seconds} seconds"
            raise RuntimeError(message)
        rate = len(latencies) * batch / seconds
        return {
            "rate": rate * self.tokens, "rows_per_second": rate, "latency_ms": latency(latencies),
            "busiest_client": round(max(answer["busy"] for answer in answers), 2),
        }  # fmt: skip

    def fair(self, rows: int, encoding: str) -> dict[str, Any]:
        """Milliseconds of single rows, alone and beside one request of `rows`, each from a process of its own."""
        if len(self._clients) < 2:
            raise ValueError(
                "two client processes are needed: one for the large request, one for the single rows"
            )
        large = {"kind": "large", "rows": rows, "encoding": encoding}
        once = self._clients[0].ask(large)
        seconds = 1.5 * (once["ended"] - once["began"]) + 2
        probes = self._pool.submit(
            self._clients[1].ask, {"kind": "probe", "seconds": seconds, "encoding": encoding}
        )
        time.sleep(1)
        found = self._clients[0].ask(large)
        sent = probes.result()
        return {
            "alone_ms": [ms for at, ms in sent if at + ms / 1000 < found["began"]],
            "beside_ms": [ms for at, ms in sent if found["began"] <= at < found["ended"]],
            "large_seconds": found["ended"] - found["began"],
        }

    def close(self) -> None:
        """Ends them."""
        for client in self._clients:
            client.close()
        self._pool.shutdown()
