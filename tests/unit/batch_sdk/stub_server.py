"""An OpenAI-compatible server in a thread, which answers deterministically and misbehaves as told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading
from collections import Counter
from contextlib import contextmanager

import numpy as np
from aiohttp import web

from tests.engine.servers import free_port

SIZE = 6


def text_of(body: dict) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def vector(text: str) -> np.ndarray:
    digest = hashlib.shake_128(text.encode()).digest(2 * SIZE)
    return np.frombuffer(digest, "<i2").astype(np.float32)


def error(status: int, message: str = "no", headers: dict | None = None, **fields) -> web.Response:
    return web.json_response({"error": {"message": message, **fields}}, status=status, headers=headers)


class Stub:
    """`trouble(stub, body, seen)` is asked before every answer: a response, or None for the right one.

    `seen` is how often this very input has come, this time included.
    """

    def __init__(self, *, model="m", trouble=None, port=None, base64_ok=True, slow=None, models=None):
        self.model, self.trouble, self.base64_ok, self.slow = model, trouble, base64_ok, slow
        self.models = models
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.peak = self._now = 0
        self.runner: web.AppRunner | None = None

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            return await self._answer(request, body)
        finally:
            self._now -= 1

    async def _answer(self, request, body):
        key = str(body["input"]) if "input" in body else text_of(body)
        self.seen[key] += 1
        if self.trouble is not None:
            response = self.trouble(self, body, self.seen[key])
            if asyncio.iscoroutine(response):
                response = await response
            if response == "reset":
                linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
                request.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                request.transport.abort()
                return web.Response()
            if response is not None:
                return response
        if self.slow is not None:
            await asyncio.sleep(self.slow(key))
        self.answered[key] += 1
        if "input" in body:
            return self._embeddings(body)
        return web.json_response(self._text(body))

    def _text(self, body):
        text = text_of(body)
        samples = body.get("n", 1)
        choices = []
        for index in range(samples):
            choice = {"index": index, "finish_reason": "stop"}
            if "prompt" in body:
                choice["text"] = f"plain {text}"
            else:
                choice["message"] = {"role": "assistant", "content": f"chat {text}"}
            choices.append(choice)
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 2 * samples}
        return {"choices": choices, "usage": usage}

    def _embeddings(self, body):
        if body["encoding_format"] == "base64" and not self.base64_ok:
            return error(400, "encoding_format")
        data = []
        for index, text in enumerate(body["input"]):
            raw = vector(text)
            as_text = base64.b64encode(raw.tobytes()).decode()
            value = as_text if body["encoding_format"] == "base64" else raw.tolist()
            data.append({"index": index, "embedding": value})
        # Backwards: an answer's order is what its indices say.
        usage = {"prompt_tokens": sum(len(text.split()) for text in body["input"])}
        return web.json_response({"data": data[::-1], "usage": usage})

    async def _models(self, request: web.Request) -> web.Response:
        if self.models is not None:
            return self.models
        return web.json_response({"data": [{"id": self.model, "max_model_len": 100}]})

    async def open(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/{path:.*}", self._post)
        app.router.add_get("/v1/models", self._models)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def shut(self) -> None:
        """Refuse connections from now on, and drop those there are."""
        runner, self.runner = self.runner, None
        if runner is not None:
            for connection in list(runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()


class Stubs:
    """Servers on one loop in one thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.open: list[Stub] = []

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def start(self, **options) -> Stub:
        stub = Stub(**options)
        self.run(stub.open())
        self.open.append(stub)
        return stub

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        for stub in self.open:
            self.run(stub.shut())
        self.run(self._cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@contextmanager
def running_stubs():
    stubs = Stubs()
    try:
        yield stubs
    finally:
        stubs.close()
