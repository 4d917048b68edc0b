"""`POST /v1/embeddings` as an ASGI application: raw body in, bytes out, no model of the request in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_sglang.embedding import openai_api
from arctic_sglang.embedding.front import EmbeddingFailedError
from arctic_sglang.embedding.in_work import AbortedError, InWork
from arctic_sglang.embedding.openai_api import EmbeddingCall
from arctic_sglang.embedding.service import EmbeddingService
from arctic_sglang.embedding.tokens import InputError

if TYPE_CHECKING:  # prometheus_client looks at the environment when it is imported, so it is imported late
    from arctic_sglang.embedding.metrics import RoadMetrics

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A request whose client is so slow to read its answer is in work no more: a server that ends waits for those that are.
SENDING_SECONDS = 30.0
# What was asked for while SGLang's own handler has the request: it passes on what it knows, which is not all.
diverted_call: ContextVar[EmbeddingCall | None] = ContextVar("arctic_diverted_call", default=None)


class EmbeddingsEndpoint:
    """Answers what the vectorised road can do, and hands everything else to `other` as it came.

    Args:
        service: embeds.
        other: SGLang's own handler of the same path: it has multimodal inputs, adapters, malformed requests.
        model: the name that answers carry where a request names none.
        truncate: cut what is too long even if the request does not ask for it.
        diverted: says whether all requests go to `other` at this moment; None is never. `other` finds what it has no
            field for in `diverted_call`.
        in_work: lists a request as long as it is worked on; None: nowhere.
        metrics: counts requests; None counts nothing.
    """

    def __init__(
        self,
        service: EmbeddingService,
        other: App,
        *,
        model: str,
        truncate: bool = False,
        diverted: Callable[[], bool] | None = None,
        in_work: Callable[[EmbeddingCall], AbstractContextManager[InWork]] | None = None,
        metrics: RoadMetrics | None = None,
    ) -> None:
        self._service = service
        self._other = other
        self._model = model
        self._truncate = truncate
        self._diverted = diverted or (lambda: False)
        self._in_work = in_work or (lambda _: nullcontext(InWork()))
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if not _is_json(scope):
            await self._other(scope, receive, send)
            return
        start = time.perf_counter()
        body = await _body(receive)
        if body is None:
            return
        outcome, rows, tokens = "refused", 0, 0
        try:
            call = openai_api.parse(body)
            if call is None or self._diverted():
                await self._hand_on(call, scope, _again(body, receive), send)
                return
            sending = None
            with self._in_work(call) as work:
                # After the body nothing comes but the end.
                found = await work.result(self._embed(call), receive())
                if found is None:
                    outcome = "gone"
                else:
                    outcome, rows, tokens = "ok", len(found[1]), int(found[1].sum(dtype=np.int64))
                    name = call.model or self._model
                    pieces = openai_api.answer(found[0], tokens, name, base64=call.base64)
                    sending = asyncio.ensure_future(_send_pieces(send, pieces))
                    await _wait_some(sending)
            if sending is not None:
                await sending
        except InputError as error:
            await _send(send, 400, openai_api.error(str(error)))
        except AbortedError as error:
            outcome = "aborted"
            await _send(send, error.status_code, openai_api.error(str(error), status=error.status_code))
        except EmbeddingFailedError as error:
            outcome = "failed"
            logger.error("arctic-sglang: /v1/embeddings: %s", error)
            await _send(send, 500, openai_api.error(f"The engine failed: {error}", status=500))
        if self._metrics is not None:
            self._metrics.observe(outcome, rows=rows, tokens=tokens, seconds=time.perf_counter() - start)

    async def _hand_on(self, call: EmbeddingCall | None, scope: Scope, receive: Receive, send: Send) -> None:
        token = diverted_call.set(call)
        try:
            await self._other(scope, receive, send)
        finally:
            diverted_call.reset(token)

    async def _embed(self, call: EmbeddingCall) -> tuple[np.ndarray, np.ndarray]:
        truncate = call.truncate or self._truncate
        if call.ids is not None:
            return await self._service.embed_ids(call.ids, truncate=truncate, dimensions=call.dimensions)
        return await self._service.embed_texts(
            call.texts or [], prompt_name=call.prompt_name, truncate=truncate, dimensions=call.dimensions
        )


def _is_json(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower() == b"application/json"
    return False


async def _body(receive: Receive) -> bytes | None:
    """The request's body; None from a client that went away before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` for a second reader of the body."""
    bodies = [body]

    async def receive_again() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receive_again


async def _wait_some(sending: asyncio.Future[None]) -> None:
    """Waits for the end, for `SENDING_SECONDS` at most; cancelled, it cancels that too."""
    try:
        await asyncio.wait([sending], timeout=SENDING_SECONDS)
    except asyncio.CancelledError:
        sending.cancel()
        raise


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_pieces(send: Send, pieces: Any) -> None:
    """An answer of one piece with its length; of several, each made when the one before is on its way."""
    first = next(pieces)
    second = next(pieces, None)
    if second is None:
        await _send(send, 200, first)
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    )
    for piece in (first, second):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    for piece in pieces:
        await asyncio.sleep(0)  # a `send` with room does not let others run
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
