"""Any OpenAI-compatible server as an engine: SGLang's, vLLM's, llama.cpp's, or a service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.engines import children
from batch_sdk.engines.base import (
    EmbedRequest,
    EmbedResult,
    Engine,
    EngineInfo,
    GenerateRequest,
    GenerateResult,
    Lack,
    Request,
    Result,
    Task,
)
from batch_sdk.engines.http_client import HttpClient
from batch_sdk.engines.http_options import HttpOptions
from batch_sdk.engines.openai_api import Vectors, embedded, generate_body, generated
from batch_sdk.engines.tasks import TaskPool, refuse_running_loop
from batch_sdk.engines.token_rows import refusals
from batch_sdk.errors import EngineError, RowError
from batch_sdk.vectors import is_unit_length

_PROBE = "hello"
_UNKNOWN_TOKENS = -1
# What OpenAI's protocol has no name for.
_LACKS = {
    "logprobs": Lack(
        "http",
        "an engine that returns token ids: OpenAI's protocol has none",
        "drop it, or use engine 'sglang'",
    ),
    "on_too_long": Lack(
        "http",
        "an engine that sees the prompt's tokens: OpenAI's protocol has no name for cutting them",
        "drop it, or use engine 'sglang'",
    ),
    "truncate": Lack(
        "http",
        "the server to cut long texts: OpenAI's protocol has no name for it",
        "drop it, and start SGLang with --allow-auto-truncate",
    ),
}


class HttpEngine(Engine):
    """One or several servers that serve the same model.

    Args:
        model: the name under which `/v1/models` lists it.
        task: "generate" sends messages to `/v1/chat/completions` and plain prompts to `/v1/completions`;
            "embed" sends blocks of texts to `/v1/embeddings`.
        options: see `HttpOptions`.

    Raises:
        OptionError: an option is unknown or makes no sense.
    """

    def __init__(self, *, model: str, task: Task, options: dict[str, Any]) -> None:
        super().__init__(model=model, task=task, options=options)
        self._options = HttpOptions.from_mapping(options)
        self._info: EngineInfo | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: TaskPool[Result] | None = None
        self._client: HttpClient | None = None
        self._encoding = "base64"

    @property
    def started(self) -> bool:
        """Whether a server answered at the start."""
        return self._info is not None

    @property
    def info(self) -> EngineInfo:
        """What the servers say. They do not say whether they have a chat template: it is taken for
        granted."""
        if self._info is None:
            raise EngineError("info of an engine that is not started", "start() first")
        return self._info

    def start(self) -> None:
        """Ask every server for its models, and for embeddings how long a vector is.

        Raises:
            EngineError: no server answers, or one refuses the key, does not serve the model, or gives no
                embeddings.
        """
        if self._loop is not None:
            raise EngineError("start() on a running engine", "start() once")
        refuse_running_loop()
        self._loop = asyncio.new_event_loop()
        self._pool = TaskPool(self._loop)
        try:
            self._info = self._pool.run(self._open())
        finally:
            if self._info is None:
                self.close()

    async def _open(self) -> EngineInfo:
        self._client = HttpClient(self.model, self._options)
        longest = await self._client.look()
        info = EngineInfo(self.model, longest, has_chat_template=True, lacks=_LACKS)
        if self.task == "generate":
            return info
        vector = await self._probe_vector()
        return replace(info, embedding_size=vector.shape[1], unit_vectors=is_unit_length(vector))

    async def _probe_vector(self) -> np.ndarray:
        for self._encoding in ("base64", "float"):
            found = await self._vectors([_PROBE])
            if isinstance(found, Vectors):
                return found.values
        raise EngineError(
            f"the server gives no embeddings of {self.model!r}: {found.message}",
            "an embedding model",
            "start SGLang with --is-embedding",
        )

    def submit(self, requests: Sequence[Request]) -> None:
        """Send the requests, as far as `max_concurrency` allows; the others wait here."""
        if self._pool is None:
            raise EngineError("submit() on an engine that is not started", "start() first")
        for request in requests:
            if isinstance(request, GenerateRequest):
                self._pool.start(self._generate(request))
            else:
                self._pool.start(self._embed(request))
        # One turn of the loop: the tasks begin now, not at the next wait().
        self._pool.run(asyncio.sleep(0))

    def wait(self) -> list[Result]:
        """Run the loop until a request is done."""
        if self._pool is None or self._pool.empty:
            raise EngineError("wait() with nothing in flight", "submit() first")
        return [task.result() for task in self._pool.fetch(_go_on)]

    def abandon(self) -> None:
        """Cancel the requests; a server notices by their connections being closed."""
        if self._pool is not None:
            self._pool.forget()

    def close(self) -> None:
        """Cancel the requests and close all connections."""
        self._info = None
        pool, self._pool = self._pool, None
        client, self._client = self._client, None
        loop, self._loop = self._loop, None
        if pool is None or loop is None:
            return
        pool.forget()
        if client is not None:
            pool.run(client.close())
        children.close_loop(loop)

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any] | RowError:
        assert self._client is not None
        return await self._client.ask(path, body)

    async def _generate(self, request: GenerateRequest) -> GenerateResult:
        answer = await self._ask(*generate_body(self.model, request))
        if isinstance(answer, RowError):
            return GenerateResult(request.position, None, None, None, None, answer)
        return generated(request.position, answer, request.sampling.get("n", 1))

    async def _vectors(self, texts: list[str] | list[list[int]]) -> Vectors | RowError:
        body = {"model": self.model, "input": texts, "encoding_format": self._encoding}
        answer = await self._ask("embeddings", body)
        found = answer if isinstance(answer, RowError) else embedded(answer, len(texts))
        if isinstance(found, Vectors) and self._info is not None:
            size = self._info.embedding_size
            if found.values.shape[1] != size:
                raise EngineError(
                    f"a server returned vectors of {found.values.shape[1]} floats", f"{size}, as at the start"
                )
        return found

    async def _embed(self, request: EmbedRequest) -> EmbedResult:
        if request.ids is not None:
            return await self._embed_ids(request, request.ids)
        return await self._embed_inputs(request.position, request.texts)

    async def _embed_ids(self, request: EmbedRequest, rows: TokenRows) -> EmbedResult:
        """Lists of token ids, as OpenAI's protocol has them; those that no server takes are not sent."""
        # How long a row may be and which ids there are, the server knows.
        errors = refusals(rows, None, None)
        good = [row for row, error in enumerate(errors) if error is None]
        ids = rows.to_lists()
        size = self.info.embedding_size or 0
        result = EmbedResult(request.position, np.zeros((rows.rows, size), np.float32), rows.lengths, errors)
        if good:
            answered = await self._embed_inputs(request.position, [ids[row] for row in good])
            result.vectors[good] = answered.vectors
            for row, error in zip(good, answered.errors, strict=True):
                errors[row] = error
        return result

    async def _embed_inputs(self, position: int, texts: list[Any]) -> EmbedResult:
        found = [await self._vectors(texts)]
        pieces = [slice(0, len(texts))]
        if isinstance(found[0], RowError) and len(texts) > 1:
            # One row spoiled the block: ask for each alone, so that only that one fails.
            found = list(await asyncio.gather(*(self._vectors([text]) for text in texts)))
            pieces = [slice(row, row + 1) for row in range(len(texts))]
        vectors = np.zeros((len(texts), self.info.embedding_size or 0), np.float32)
        tokens = np.full(len(texts), _UNKNOWN_TOKENS, np.int32)
        errors: list[RowError | None] = [None] * len(texts)
        uncounted = 0
        for piece, answer in zip(pieces, found, strict=True):
            if isinstance(answer, RowError):
                errors[piece] = [answer]
                continue
            vectors[piece] = answer.values
            if answer.tokens is not None and len(answer.values) == 1:
                tokens[piece] = answer.tokens
            else:
                uncounted += answer.tokens or 0
        return EmbedResult(position, vectors, tokens, errors, uncounted)


def _go_on() -> None:
    """There is no process to look after: what goes wrong comes out of the tasks."""
