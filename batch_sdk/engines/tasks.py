"""Many requests as asyncio tasks on a loop that only runs while somebody waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from batch_sdk.errors import EngineError

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.5
_CANCEL_SECONDS = 30


def refuse_running_loop() -> None:
    """Raise `EngineError` inside a running event loop: another one could not run in its thread."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise EngineError(
            "an engine started inside a running event loop (a notebook, or async code)",
            "a thread of its own",
            "call through asyncio.to_thread(...)",
        )


class TaskPool(Generic[R]):
    """Tasks in flight, and those that are done and not yet fetched.

    Args:
        loop: driven from the thread that calls `run` and `fetch`; nothing else may run it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[asyncio.Task[R]] = set()
        self._finished: deque[asyncio.Task[R]] = deque()
        self._wake = asyncio.Event()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._running and not self._finished

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the loop until `work` is done; the tasks move on meanwhile."""
        return self._loop.run_until_complete(work)

    def start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Add a task and return it; it begins when the loop runs next."""
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[R]) -> None:
        if not task.cancelled():
            # Looked at here, or asyncio prints every failure that nobody fetches after the first one ended the job.
            task.exception()
        if task in self._running:
            self._running.discard(task)
            self._finished.append(task)
            self._wake.set()

    def fetch(self, check: Callable[[], None]) -> list[asyncio.Task[R]]:
        """Run the loop until a task is done and return all that are; `check` is called twice a second meanwhile.

        Whatever `check` raises ends the waiting.
        """
        while not self._finished:
            self.run(self._first())
            if not self._finished:
                check()
        done = list(self._finished)
        self._finished.clear()
        return done

    async def _first(self) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._wake.wait()

    def forget(self) -> None:
        """Cancel all tasks and drop all results."""
        tasks, self._running = self._running, set()
        self._finished.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            self.run(_settled(tasks))


async def _settled(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
