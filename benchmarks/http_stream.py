"""Streamed answers of an SGLang server, timed: what a client sees of one request."""

import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

PREFIX = b"data: "
DONE = b"[DONE]"


@dataclass(slots=True)
class Answer:
    """One answer.

    Attributes:
        sent: seconds of the monotonic clock when the request was sent.
        first: when the first token came; None if none did.
        last: when the last message came, or the connection ended.
        tokens: of the answer, as the server counted them last.
        error: why it is not whole; None if it is.
    """

    sent: float
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    error: str | None = None


def session(limit: float) -> aiohttp.ClientSession:
    """A session of as many connections as are asked for.

    Args:
        limit: seconds without a byte after which a request has failed.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_read=limit)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, read_bufsize=2**20)


def body(ids: list[int], tokens_out: int, **sampling: Any) -> bytes:
    """A streamed request for exactly `tokens_out` tokens."""
    wanted = {"temperature": 0, "max_new_tokens": tokens_out, "ignore_eos": True, **sampling}
    return json.dumps({"input_ids": ids, "sampling_params": wanted, "stream": True}).encode()


async def stream(http: aiohttp.ClientSession, url: str, data: bytes, stop_after: int | None = None) -> Answer:
    """Sends one request and reads its answer.

    Only the last message is parsed, so that the client costs little beside the server.

    Args:
        http: the session.
        url: of the server.
        data: of `body`.
        stop_after: messages after which the connection is closed; 0: as soon as the request is sent.
    """
    answer = Answer(time.monotonic())
    last, messages = b"", 0
    try:
        async with http.post(
            f"{url}/generate", data=data, headers={"Content-Type": "application/json"}
        ) as reply:
            if reply.status != 200:
                answer.error = f"{reply.status}: {(await reply.text())[:300]}"
            elif stop_after != 0:
                async for line in reply.content:
                    if not line.startswith(PREFIX) or line[len(PREFIX) :].startswith(DONE):
                        continue
                    last, messages = line, messages + 1
                    answer.last = time.monotonic()
                    answer.first = answer.first or answer.last
                    if messages == stop_after:
                        break
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.last = answer.last or time.monotonic()
    if last and answer.error is None:
        _finish(answer, json.loads(last[len(PREFIX) :]))
    return answer


def _finish(answer: Answer, message: dict[str, Any]) -> None:
    """Takes count and reason from the last message."""
    if "error" in message:
        answer.error = str(message["error"])
        return
    about = message["meta_info"]
    answer.tokens = about["completion_tokens"]
    reason = about.get("finish_reason")
    if reason is not None and reason["type"] == "abort":
        answer.error = f"aborted: {reason.get('message')}"
