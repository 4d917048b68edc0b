"""A client of `POST /v1/embeddings` in a process of its own, told over a pipe how long to ask. Run by `embed_http.py`.

It keeps a number of requests in flight with aiohttp, reads every answer to the end and turns it into a float32
array, as a user would. Latency is from the request to the last byte of the answer, before it is parsed.
"""

import asyncio
import base64
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
from embed_model import Texts, read_tokenizer
from engine_child import own_output

TEXTS = 20_000
PAUSE_SECONDS = 0.005  # between the single rows of `probe`


class Client:
    """Asks one server.

    Args:
        url: of the server.
        tokenizer: file of the tokenizer, to cut rows of exact length.
        tokens: of a row.
        seed: where in the texts it begins, so that clients ask for different ones.
    """

    def __init__(self, url: str, tokenizer: str, tokens: int, seed: int) -> None:
        self._url = f"{url}/v1/embeddings"
        texts = Texts(read_tokenizer(Path(tokenizer))).rows(TEXTS, tokens).texts
        self._texts = texts[997 * seed % TEXTS :] + texts[: 997 * seed % TEXTS]
        self._at = itertools.cycle(range(TEXTS))

    async def load(self, seconds: float, in_flight: int, batch: int, encoding: str) -> dict[str, Any]:
        """Keeps `in_flight` requests of `batch` rows under way; counts those that end within `seconds`."""
        latencies: list[float] = []
        started = time.perf_counter()
        async with self._session() as session:

            async def worker() -> None:
                while time.perf_counter() - started < seconds:
                    latency = await self._ask(session, batch, encoding)
                    if time.perf_counter() - started < seconds:
                        latencies.append(latency)

            busy = time.process_time()
            await asyncio.gather(*(worker() for _ in range(in_flight)))
            busy = (time.process_time() - busy) / (time.perf_counter() - started)
        return {"latency_ms": latencies, "busy": busy}

    async def large(self, rows: int, encoding: str) -> dict[str, Any]:
        """One request of many rows; when it began and ended, by the clock of the machine."""
        async with self._session() as session:
            began = time.time()
            await self._ask(session, rows, encoding)
        return {"began": began, "ended": time.time()}

    async def probe(self, seconds: float, encoding: str) -> list[tuple[float, float]]:
        """Single rows, one after another: when each was sent, by the clock of the machine, and its milliseconds."""
        found = []
        started = time.perf_counter()
        async with self._session() as session:
            while time.perf_counter() - started < seconds:
                sent = time.time()
                found.append((sent, await self._ask(session, 1, encoding)))
                await asyncio.sleep(PAUSE_SECONDS)
        return found

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=600)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def _ask(self, session: aiohttp.ClientSession, rows: int, encoding: str) -> float:
        texts = [self._texts[next(self._at)] for _ in range(rows)]
        body = orjson.dumps({"model": "model", "input": texts, "encoding_format": encoding})
        started = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        async with session.post(self._url, data=body, headers=headers) as response:
            content = await response.read()
            latency = 1000 * (time.perf_counter() - started)
            if response.status != 200:
                message = f"the server answered {response.status}: {content[:300]!r}"
                raise RuntimeError(message)
        vectors = [_vector(item["embedding"], encoding) for item in orjson.loads(content)["data"]]
        if len(vectors) != rows or not all(len(vector) == len(vectors[0]) for vector in vectors):
            message = f"{len(vectors)} vectors for {rows} rows"
            raise RuntimeError(message)
        return latency


def _vector(value: Any, encoding: str) -> np.ndarray:
    if encoding == "base64":
        return np.frombuffer(base64.b64decode(value), np.float32)
    return np.array(value, np.float32)


def serve(channel: Any, url: str, tokenizer: str, tokens: str, seed: str) -> None:
    """Answers questions until the pipe closes."""
    client = Client(url, tokenizer, int(tokens), int(seed))
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        kind = {"load": client.load, "large": client.large, "probe": client.probe}[question.pop("kind")]
        print(json.dumps(asyncio.run(kind(**question))), file=channel, flush=True)


if __name__ == "__main__":
    serve(own_output(), *sys.argv[1:])
