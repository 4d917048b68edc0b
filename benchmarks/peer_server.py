"""An OpenAI-compatible server with a fixed latency and no model, for `batch_peers.py`: what is measured is the client.

    python benchmarks/peer_server.py --port 31000 --latency-ms 10

It answers `/v1/chat/completions` with a text that names the row it was asked about (`row 17:` in the prompt). A prompt
over `LONGEST` characters is refused with SGLang's 400. A prompt that holds `KILLER` takes the engine down: all
connections are cut without an answer, nothing listens for `DOWN_SECONDS`, then it is back, as under a supervisor.
`/stats` says what was asked since `/reset`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import time
from collections import Counter
from typing import Any

from aiohttp import web

LONGEST = 10_000
KILLER = "KILL-THE-ENGINE"
DOWN_SECONDS = 1.0
MODEL = "stub"
ROW = re.compile(r"row (\d+):")


def answer_of(row: int | None) -> str:
    """The text that this server answers about a row, so that an output can be checked."""
    return f"a summary of row {row}"


def prompt_of(body: dict[str, Any]) -> str:
    """The text of the last message, which is a string or a list of parts."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class Server:
    """One port.

    Args:
        port: where it listens on this machine alone.
        latency: seconds of every answer.
    """

    def __init__(self, port: int, latency: float) -> None:
        self.port, self.latency = port, latency
        self.app = web.Application()
        self.app.router.add_post("/v1/chat/completions", self.chat)
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_get("/stats", self.stats)
        self.app.router.add_post("/reset", self.reset)
        self.runner = web.AppRunner(self.app, shutdown_timeout=0.01)
        self.site: web.TCPSite | None = None
        self._forget()

    def _forget(self) -> None:
        self.rows: Counter[int] = Counter()
        self.requests = self.refused = self.deaths = self.now = self.peak = 0
        self.first = self.last = self.busy = 0.0

    async def listen(self) -> None:
        """Takes connections from now on."""
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await self.site.start()

    async def die(self) -> None:
        """Cuts every connection, and is back after `DOWN_SECONDS`. What comes while it is down does not count again."""
        site, self.site = self.site, None
        if site is None:
            return
        self.deaths += 1
        await site.stop()
        for connection in list(self.runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(DOWN_SECONDS)
        await self.listen()

    async def chat(self, request: web.Request) -> web.Response:
        """Answers after the latency."""
        body = await request.json()
        prompt = prompt_of(body)
        found = ROW.search(prompt)
        row = int(found.group(1)) if found else None
        self.requests += 1
        if row is not None:
            self.rows[row] += 1
        self.first = self.first or time.monotonic()
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            if KILLER in prompt:
                self.dying = asyncio.create_task(self.die())
                await asyncio.sleep(DOWN_SECONDS)
            if len(prompt) > LONGEST:
                self.refused += 1
                tokens = f"The input ({len(prompt)} tokens)"
                message = f"{tokens} is longer than the model's context length ({LONGEST} tokens)."
                refusal = {"object": "error", "message": message, "type": "BadRequestError", "code": 400}
                return web.json_response(refusal, status=400)
            await asyncio.sleep(self.latency)
            return web.json_response(self._completion(body, prompt, row))
        finally:
            self.now -= 1
            self.last = time.monotonic()

    def _completion(self, body: dict[str, Any], prompt: str, row: int | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer_of(row)}
        words = len(prompt.split())
        return {
            "id": "0", "object": "chat.completion", "created": 0, "model": body.get("model", MODEL),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": words, "completion_tokens": 5, "total_tokens": words + 5},
        }  # fmt: skip

    async def models(self, request: web.Request) -> web.Response:
        """Lists the one model."""
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def stats(self, request: web.Request) -> web.Response:
        """What was asked since the last reset, and this process's share of its core meanwhile."""
        seconds = self.last - self.first
        return web.json_response({
            "requests": self.requests, "distinct_rows": len(self.rows), "refused": self.refused,
            "asked_twice": sum(count - 1 for count in self.rows.values()), "deaths": self.deaths,
            "peak_in_flight": self.peak, "seconds": round(seconds, 4),
            "cpu_seconds": round(time.process_time() - self.busy, 3),
        })  # fmt: skip

    async def reset(self, request: web.Request) -> web.Response:
        """Forgets what was asked."""
        self._forget()
        self.busy = time.process_time()
        return web.json_response({})


async def serve(port: int, latency: float) -> None:
    """Serves until it is ended."""
    server = Server(port, latency)
    await server.runner.setup()
    await server.listen()
    await asyncio.Event().wait()


def main() -> None:
    """Parses the options and serves."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--latency-ms", type=float, default=10.0)
    args = options.parse_args()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # clients are cut off on purpose
    asyncio.run(serve(args.port, args.latency_ms / 1000))


if __name__ == "__main__":
    main()
