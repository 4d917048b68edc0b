"""Asks OpenAI-compatible servers, again and again where that may help."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import aiohttp
import orjson

from batch_sdk.engines.balance import Balancer, Server
from batch_sdk.engines.http_options import HttpOptions
from batch_sdk.engines.openai_api import Again, judge
from batch_sdk.errors import EngineError, RowError, RowErrorKind

_CONNECT_SECONDS = 10.0
_LONGEST_RETRY_SECONDS = 60.0
# Uvicorn, which most of these servers run on, closes a connection that was idle for 5 s; a request sent
# just then would be lost and cost a retry.
_KEEP_ALIVE_SECONDS = 4.0
# Nothing was sent, so that the row itself has not failed.
_NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class HttpClient:
    """A pool of connections to servers that all serve one model. Made, used and closed on one loop.

    Args:
        model: the name that the servers know it by.
        options: see `HttpOptions`.
    """

    def __init__(self, model: str, options: HttpOptions) -> None:
        self._model = model
        self._options = options
        self._random = random.Random(options.seed)
        self._done = 0
        headers = {"Content-Type": "application/json", **options.headers}
        if options.api_key is not None:
            headers["Authorization"] = f"Bearer {options.api_key}"
        connect = min(_CONNECT_SECONDS, options.timeout_seconds)
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=options.timeout_seconds, sock_connect=connect),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._balancer = Balancer(
            options.urls,
            max_concurrency=options.max_concurrency,
            probe=self._probe,
            probe_seconds=options.retry_seconds,
            down_seconds=options.down_seconds,
        )

    async def look(self) -> int | None:
        """Ask every server for its models; return the smallest context length that they name, in tokens.

        Servers that cannot be reached are taken out, and probed again.

        Raises:
            EngineError: no server can be reached, or one refuses the key or does not serve the model.
        """
        servers = self._balancer.servers
        found = await asyncio.gather(*(self._card(server) for server in servers))
        failed = [
            (s.url, card.reason) for s, card in zip(servers, found, strict=True) if isinstance(card, Again)
        ]
        if len(failed) == len(servers):
            listed = "; ".join(f"{url} ({reason})" for url, reason in failed)
            raise EngineError(
                f"no server answers: {listed}", "at least one", "start it, or check the engine's url"
            )
        lengths = []
        for server, card in zip(servers, found, strict=True):
            if isinstance(card, Again):
                self._balancer.take_out(server, card.reason)
            elif isinstance(card.get("max_model_len"), int):
                lengths.append(card["max_model_len"])
        return min(lengths, default=None)

    async def _card(self, server: Server) -> dict[str, Any] | Again:
        """Return what a server says of the model. Raises `EngineError` if that is that it has none."""
        try:
            answer = await self._send("GET", f"{server.url}/models", None)
        except _NO_CONNECTION as error:
            return Again(_reason(error))
        if isinstance(answer, Again):
            return answer
        cards = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
            said = answer.message if isinstance(answer, RowError) else "something else"
            raise EngineError(
                f"{server.url}/models answered {said}", "a list of models", "check the engine's url"
            )
        for card in cards:
            if card.get("id") == self._model:
                return card
        names = ", ".join(repr(card.get("id")) for card in cards[:5]) or "no model"
        raise EngineError(
            f"{server.url} does not serve {self._model!r}",
            f"one of its models as model=...: {names}{', ...' if len(cards) > 5 else ''}",
        )

    async def _probe(self, server: Server) -> bool:
        try:
            card = await self._card(server)
        except EngineError as error:
            server.reason = str(error)
            return False
        if isinstance(card, Again):
            server.reason = card.reason
        return not isinstance(card, Again)

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any] | RowError:
        """Return the answer to one request, or why it has none.

        A try that fails in a way that may pass keeps its place at the server while it waits for the next:
        that slows the job down to what the server can take. A try that found the server busy counts as one only
        if no other request was answered since the one before: under a rate limit a row waits for its turn.

        Args:
            path: below the base URL, e.g. "completions".
            body: sent as JSON.

        Raises:
            EngineError: the key is refused, the URL is wrong, or all servers have been out for too long.
        """
        try:
            data = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            return RowError(RowErrorKind.PROMPT_ERROR, f"the request cannot be written as JSON: {error}")
        failed_at: Server | None = None
        tries = waits = 0
        done = self._done
        while True:
            server = await self._balancer.acquire(failed_at)
            failed_at = server
            try:
                answer = await self._send("POST", f"{server.url}/{path}", data)
                self._balancer.answered(server)
                if not isinstance(answer, Again):
                    self._done += 1
                    return answer
                if not answer.busy or done == self._done:
                    tries += 1
                waits, done = waits + 1, self._done
                if tries > self._options.max_retries:
                    return RowError(RowErrorKind.SERVER_ERROR, f"{answer.reason} ({tries} tries)")
                await asyncio.sleep(self._delay(waits) + answer.after_seconds)
            except _NO_CONNECTION as error:
                self._balancer.take_out(server, _reason(error))
            finally:
                self._balancer.release(server)

    async def _send(self, method: str, url: str, data: bytes | None) -> dict[str, Any] | RowError | Again:
        try:
            # A redirected POST would arrive as a GET without its body.
            async with self._session.request(method, url, data=data, allow_redirects=False) as response:
                raw = await response.read()
        except _NO_CONNECTION:
            raise
        except TimeoutError:
            return Again(f"no answer within {self._options.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Again(_reason(error))
        return judge(url, response.status, response.headers.get("Retry-After"), raw)

    def _delay(self, waits: int) -> float:
        # The exponent is bounded too: a row may wait for its turn more than a thousand times.
        longest = min(self._options.retry_seconds * 2.0 ** min(waits - 1, 30), _LONGEST_RETRY_SECONDS)
        return longest * self._random.uniform(0.5, 1.0)

    async def close(self) -> None:
        """Close all connections."""
        self._balancer.close()
        await self._session.close()


def _reason(error: Exception) -> str:
    # The numbers of the SSL library are its own, not the system's.
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.os_error.errno
        # Names that cannot be resolved have numbers below 0, and say in words what is wrong.
        return os.strerror(number) if number and number > 0 else str(error.os_error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
