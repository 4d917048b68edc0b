"""SGLang servers as processes of their own: start, wait, ask, end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HEALTHY_SECONDS = 300


def flags(options: dict[str, Any]) -> list[str]:
    """Engine keywords as a command line."""
    made = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        made += [flag] if value is True else [] if value in (False, None) else [flag, str(value)]
    return made


def launch(
    model: Path,
    port: int,
    options: list[str],
    plugins: str,
    log: Path,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen:
    """Starts a server on this machine alone, in a process session of its own.

    Args:
        model: folder of the model.
        port: of the HTTP server.
        options: more of the command line.
        plugins: value of SGLANG_PLUGINS.
        log: gets what it prints.
        environment: variables to add.
    """
    command = [
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", *options,
    ]  # fmt: skip
    with log.open("w", encoding="utf-8") as stream:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            env={**os.environ, "SGLANG_PLUGINS": plugins, **(environment or {})},
        )  # fmt: skip


def wait_healthy(process: subprocess.Popen, url: str, log: Path, limit: float = HEALTHY_SECONDS) -> None:
    """Waits until a server answers.

    Raises:
        RuntimeError: it ended, or was not healthy within `limit` seconds; the message has the end of its log.
    """
    until = time.monotonic() + limit
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.5)
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
    raise RuntimeError(
        "\n".join([f"the server is not healthy (exit code {process.poll()}); {log} ends:", *tail])
    )


def ask(url: str, body: dict[str, Any] | None = None, limit: float = 60) -> Any:
    """What a URL answers to GET, or to POST if there is a body; JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=limit) as answer:
        return json.load(answer)


def end(pid: int) -> None:
    """Ends a server's whole process session; waits up to ten seconds until none of it is left."""
    for _ in range(100):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
