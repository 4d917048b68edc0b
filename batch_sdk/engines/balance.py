"""Which of several servers gets the next request: the least loaded of those that take connections."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from batch_sdk.errors import EngineError

_LONGEST_PROBE_SECONDS = 30.0


@dataclass(eq=False)
class Server:
    """One base URL.

    Attributes:
        url: without a slash at the end.
        in_flight: requests that it has now.
        out: whether it is left out until a probe succeeds.
        silent_since: when it was first taken out since it last answered (`time.monotonic()`); None if it
            was not.
        reason: why it was taken out.
    """

    url: str
    in_flight: int = 0
    out: bool = False
    silent_since: float | None = None
    reason: str = ""


Probe = Callable[[Server], Awaitable[bool]]
Waiting = tuple[asyncio.Future[Server], Server | None]
"""A request that waits for a server, and the server that it avoids."""


class Balancer:
    """Hands out servers. All methods are called on one running loop.

    Args:
        urls: at least one.
        max_concurrency: requests at one server at most.
        probe: whether a server takes requests again.
        probe_seconds: before the first probe of a server that was taken out; doubled with each.
        down_seconds: how long all may be out before `acquire` raises.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        max_concurrency: int,
        probe: Probe,
        probe_seconds: float,
        down_seconds: float,
    ) -> None:
        self.servers = [Server(url) for url in urls]
        self._max_concurrency = max_concurrency
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._down_seconds = down_seconds
        self._fresh: deque[Waiting] = deque()
        self._retrying: deque[Waiting] = deque()
        self._probes: set[asyncio.Task[None]] = set()
        self._dead: EngineError | None = None

    async def acquire(self, avoid: Server | None = None) -> Server:
        """Return the least loaded server, once one has room; `release` it afterwards.

        Args:
            avoid: the server where this request just failed: taken only if all others are out. Such a request
                goes before those that come for the first time, since its row is the older one.

        Raises:
            EngineError: all servers have been out for too long.
        """
        if self._dead is not None:
            raise self._dead
        queue = self._fresh if avoid is None else self._retrying
        if not queue:
            server = self._best(avoid)
            if server is not None:
                server.in_flight += 1
                return server
        future: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        queue.append((future, avoid))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise

    def _best(self, avoid: Server | None) -> Server | None:
        usable = [s for s in self.servers if not s.out and s is not avoid]
        if not usable and avoid is not None and not avoid.out:
            usable = [avoid]
        free = [s for s in usable if s.in_flight < self._max_concurrency]
        return min(free, key=lambda s: s.in_flight, default=None)

    def release(self, server: Server) -> None:
        """Give a server's slot back."""
        server.in_flight -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        for _ in range(len(self._retrying)):
            # One that has to wait for another server goes to the end and holds up none behind it.
            entry = self._retrying.popleft()
            if not self._serve(*entry):
                self._retrying.append(entry)
        while self._fresh and self._serve(*self._fresh[0]):
            self._fresh.popleft()

    def _serve(self, future: asyncio.Future[Server], avoid: Server | None) -> bool:
        """Give a waiting request a server; return whether it waits no more."""
        if future.done():  # cancelled
            return True
        server = self._best(avoid)
        if server is None:
            return False
        server.in_flight += 1
        future.set_result(server)
        return True

    def answered(self, server: Server) -> None:
        """Note that a server has answered a request."""
        server.silent_since = None

    def take_out(self, server: Server, reason: str) -> None:
        """Leave a server out until its probe succeeds."""
        server.reason = reason
        if server.out:
            return
        server.out = True
        if server.silent_since is None:
            server.silent_since = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._probe_until_back(server))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe_until_back(self, server: Server) -> None:
        wait = self._probe_seconds
        while self._dead is None:
            await asyncio.sleep(min(wait, max(0.0, self._seconds_left())))
            wait = min(2 * wait, _LONGEST_PROBE_SECONDS)
            if await self._probe(server):
                server.out = False
                self._hand_out()
                return
            if self._seconds_left() <= 0:
                self._give_up()

    def _seconds_left(self) -> float:
        """Seconds until all servers have been out for too long."""
        since = [s.silent_since for s in self.servers if s.out and s.silent_since is not None]
        if len(since) < len(self.servers):
            return self._down_seconds
        return max(since) + self._down_seconds - time.monotonic()

    def _give_up(self) -> None:
        listed = "; ".join(f"{server.url} ({server.reason})" for server in self.servers)
        self._dead = EngineError(
            f"no server has taken a request for {self._down_seconds:g} s: {listed}",
            "at least one of them",
            "start it again and run the job again",
        )
        for future, _ in (*self._fresh, *self._retrying):
            if not future.done():
                future.set_exception(self._dead)

    def close(self) -> None:
        """End the probing."""
        for task in self._probes:
            task.cancel()
