"""Servers as processes of their own."""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from batch_sdk.engines import children

START_SECONDS = 240


@contextmanager
def added_plugin(folder: Path):
    """SGLang finds another plugin, in this folder, in processes that start meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.syspath_prepend(str(folder))
        yield


@contextmanager
def running_engine(log: Path | None = None, **options):
    """An `sglang.Engine`, whose own processes are ended afterwards.

    `Engine.shutdown` would kill every child of this process, other tests' servers among them.

    Args:
        log: where its processes write to; None for where this one does.
        options: of the engine.
    """
    import sglang

    before = children.pids()
    with _output_to(log):
        engine = sglang.Engine(**options)
    mine = children.since(before)
    try:
        yield engine
    finally:
        atexit.unregister(engine.shutdown)
        engine.tokenizer_manager._subprocess_watchdog.stop()
        children.end_replicas(engine)
        children.kill(mine)


@contextmanager
def _output_to(log: Path | None):
    """Processes started meanwhile inherit a file as their output."""
    if log is None:
        yield
        return
    kept = [os.dup(1), os.dup(2)]
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    try:
        yield
    finally:
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)


@dataclass
class Server:
    """A server process that answers."""

    url: str
    process: subprocess.Popen
    log: Path

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.5)
        pytest.fail(f"no healthy server (exit code {self.process.poll()}):\n{self.log.read_text()[-4000:]}")

    def client(self):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(args: list[str], log: Path, env: dict[str, str] | None = None):
    """Starts `python -m sglang.launch_server` with these arguments, waits, and takes all of it down."""
    with starting_server(args, log, env) as server:
        server.wait_until_healthy()
        yield server


@contextmanager
def starting_server(args: list[str], log: Path, env: dict[str, str] | None = None):
    """`running_server` without the wait, for several that start side by side."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        *args,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **(env or {})}, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
