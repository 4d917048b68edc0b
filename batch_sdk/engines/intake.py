"""What stands before an engine: requests are tokenised ahead in a thread, and enter as tokens leave room.

The engine is kept full without being flooded: what it holds is bounded in tokens, which is what its memory and
its queue are made of, and at most two slices of requests are tokenised beyond that. What waits is text.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from batch_sdk.engines.base import Request
from batch_sdk.engines.tasks import TaskPool
from batch_sdk.errors import EngineError

Ids = TypeVar("Ids")
R = TypeVar("R")

_SLICE_ROWS = 256


class Room:
    """Tokens that may be in work at once, on one event loop, with one task that waits for room.

    Args:
        tokens: how many. A request of more is let in when it is alone.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._used = 0
        self._freed = asyncio.Event()

    async def take(self, tokens: int) -> None:
        """Wait until there is room for so many, and take it."""
        while self._used and self._used + tokens > self._tokens:
            self._freed.clear()
            await self._freed.wait()
        self._used += tokens

    def give(self, tokens: int) -> None:
        """Give it back."""
        self._used -= tokens
        self._freed.set()


class Intake(Generic[Ids, R]):
    """Requests on their way into a `TaskPool`, in the order in which they came.

    Args:
        loop: the pool's.
        pool: gets a task for every request.
        window_tokens: tokens of input in work at once; see `Room`.
        tokenize: the inputs of a slice of requests, tokenised. Runs in a thread of its own.
        tokens: how many tokens one of these is.
        work: the task of a request and its tokenised input.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: TaskPool[R],
        *,
        window_tokens: int,
        tokenize: Callable[[Sequence[Request]], list[Ids]],
        tokens: Callable[[Ids], int],
        work: Callable[[Any, Ids], Coroutine[Any, Any, R]],
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._room = Room(window_tokens)
        self._tokenize = tokenize
        self._tokens = tokens
        self._work = work
        self._waiting: deque[Request] = deque()
        self._feeder: asyncio.Task[None] | None = None
        # One thread: a tokenizer uses all cores for a slice by itself, and is not made for two callers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-sdk-tokenizer")

    @property
    def empty(self) -> bool:
        """Whether everything is in the pool."""
        return not self._waiting and (self._feeder is None or self._feeder.done())

    def add(self, requests: Sequence[Request]) -> None:
        """Take requests; they enter while the loop runs."""
        self._waiting.extend(requests)
        if self._waiting and (self._feeder is None or self._feeder.done()):
            self.check()
            self._feeder = self._loop.create_task(self._feed())

    def check(self) -> None:
        """Raise `EngineError` if tokenising failed."""
        if self._feeder is None or not self._feeder.done() or self._feeder.cancelled():
            return
        error = self._feeder.exception()
        if error is not None:
            raise EngineError(f"the tokenizer failed: {type(error).__name__}: {error}") from error

    def forget(self) -> None:
        """Drop what has not entered."""
        self._waiting.clear()
        if self._feeder is not None:
            self._feeder.cancel()
            self._pool.run(asyncio.wait([self._feeder]))
            self._feeder = None

    def close(self) -> None:
        """Drop what has not entered, and let the thread end."""
        self.forget()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _feed(self) -> None:
        ahead = self._next_slice()
        while ahead is not None:
            requests, future = ahead
            inputs = await future
            ahead = self._next_slice()
            for request, ids in zip(requests, inputs, strict=True):
                tokens = self._tokens(ids)
                await self._room.take(tokens)
                task = self._pool.start(self._work(request, ids))
                # Not in the task's own end: one that is cancelled before it begins has none.
                task.add_done_callback(partial(self._give, tokens))
            if ahead is None:
                ahead = self._next_slice()

    def _give(self, tokens: int, _: asyncio.Task[R]) -> None:
        self._room.give(tokens)

    def _next_slice(self) -> tuple[list[Request], asyncio.Future[list[Ids]]] | None:
        """Start to tokenise the next requests; None if there are none."""
        requests: list[Request] = []
        rows = 0
        while self._waiting and rows < _SLICE_ROWS:
            requests.append(self._waiting.popleft())
            rows += requests[-1].rows
        if not requests:
            return None
        return requests, self._loop.run_in_executor(self._thread, self._tokenize, requests)
