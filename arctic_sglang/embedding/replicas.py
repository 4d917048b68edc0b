"""Looks after the further instances of an embedding server: starts them, sees them die, starts them again.

Everything runs on the event loop of the front door and asks by polling; a test drives `tick` by hand. The first
instance is SGLang's own scheduler, whose end is the server's; it is not looked after here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from arctic_sglang.embedding.front import FrontDoor, Instance
from arctic_sglang.embedding.wire import BlockVectors

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 60
_MOST_FAILURES = 5
# One that served for so long did not die of its start.
_STEADY_SECONDS = 60
STALL_SECONDS = 300


class ReplicaStartError(RuntimeError):
    """An instance did not start with the server; the message has the reason."""


class Worker(Protocol):
    """One process with an instance in it, and the sockets to it.

    Attributes:
        pid: of the process.
        broken: a message could not be handed over.
    """

    pid: int
    broken: bool

    def send(self, message: Any) -> None:
        """Hand a message over; does not wait, does not raise."""

    async def receive(self) -> Any:
        """Wait for the next message from the process."""

    def ready(self) -> bool:
        """Whether the process has said that it can embed."""

    def alive(self) -> bool:
        """Whether the process is there."""

    def reason(self) -> str:
        """Why it ended, as far as is known."""

    def kill(self) -> None:
        """End the process without waiting for its end, and close the sockets."""

    def join(self) -> None:
        """Wait until a killed process is gone."""


class State(StrEnum):
    """Of a replica."""

    STARTING = "starting"
    SERVING = "serving"
    WAITING = "waiting to start again"
    OUT = "given up"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Replica:
    """A further instance through all its processes.

    Attributes:
        name: for messages.
        state: where it is.
        worker: its latest process; None before the first.
        instance: what the front door knows of it while it serves.
        listener: takes its answers in while it serves.
        failures: starts in a row that came to nothing.
        restarts: of its process since the server's start.
        since: clock, seconds: when it began to serve, or when it is to start again.
        answered: blocks of the process when last looked at.
        quiet: seconds that it has held blocks without answering one.
    """

    name: str
    state: State = State.STARTING
    worker: Worker | None = None
    instance: Instance | None = None
    listener: asyncio.Task[None] | None = None
    failures: int = 0
    restarts: int = 0
    since: float = 0.0
    answered: int = 0
    quiet: float = 0.0


class Replicas:
    """All further instances behind one front door.

    Args:
        front: the front door.
        launch: begins the process of the replica with this number, from 0.
        names: one of each replica.
        stall_seconds: an instance that holds blocks and answers none for so long is killed.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        front: FrontDoor,
        launch: Callable[[int], Worker],
        names: list[str],
        *,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._front = front
        self._launch = launch
        self._replicas = [Replica(name) for name in names]
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin all processes; does not wait for them."""
        try:
            for number, replica in enumerate(self._replicas):
                replica.worker = self._launch(number)
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Block until all instances are ready.

        Raises:
            ReplicaStartError: one of them ended instead. All are ended then.
        """
        waiting = list(self._replicas)
        while waiting:
            for replica in list(waiting):
                worker = replica.worker
                assert worker is not None
                if worker.ready():
                    waiting.remove(replica)
                elif not worker.alive():
                    reason = worker.reason()
                    self.close()
                    msg = f"{replica.name} did not start: {reason}"
                    raise ReplicaStartError(msg)
            if waiting:
                time.sleep(_LOOK_SECONDS)

    def attach(self) -> None:
        """Take those that are ready into service, and look after all of them from now on. Idempotent.

        Must be called on the event loop of the front door.
        """
        if self._watch is None and not self._closed:
            self.tick()
            self._watch = asyncio.get_running_loop().create_task(self._look_after())

    def close(self) -> None:
        """End all instances and wait until they are gone. Idempotent."""
        self._closed = True
        if self._watch is not None and not self._watch.get_loop().is_closed():
            self._watch.cancel()
        workers = [replica.worker for replica in self._replicas if replica.worker is not None]
        for replica in self._replicas:
            # The front door keeps them: what they had must not go to a first instance that ends as well.
            self._stop_listening(replica)
            replica.state = State.ENDED
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()

    def pids(self) -> list[int]:
        """Of the processes that are there."""
        workers = [replica.worker for replica in self._replicas]
        return [worker.pid for worker in workers if worker is not None and worker.alive()]

    def status(self) -> dict[str, Any]:
        """For a status page: plain values. `instances` and `in_service` count the first instance too."""
        return {
            "instances": len(self._replicas) + 1,
            "in_service": len(self._front.instances),
            "restarts": sum(replica.restarts for replica in self._replicas),
            "replicas": [
                {
                    "name": replica.name,
                    "state": str(replica.state),
                    "pid": replica.worker.pid if replica.worker is not None else None,
                    "restarts": replica.restarts,
                    "tokens": replica.instance.tokens if replica.instance is not None else 0,
                }
                for replica in self._replicas
            ],
        }

    def tick(self) -> None:
        """Look at every replica once, and do what is due."""
        for number, replica in enumerate(self._replicas):
            try:
                self._look_at(number, replica)
            except Exception:
                # Whatever went wrong with this look, nobody else would look after it and the others.
                logger.exception("arctic-sglang: looking after %s failed", replica.name)

    def _look_at(self, number: int, replica: Replica) -> None:
        worker = replica.worker
        if replica.state in (State.OUT, State.ENDED) or worker is None:
            return
        if replica.state is State.WAITING:
            # Its memory is free only when the last process is gone.
            if self._clock() >= replica.since and not worker.alive():
                self._start_again(number, replica)
        elif not worker.alive():
            self._failed(replica, f"its process (pid {worker.pid}) ended: {worker.reason()}")
        elif replica.state is State.STARTING:
            if worker.ready():
                self._serve(replica, worker)
        elif worker.broken:
            self._failed(replica, "it takes no messages")
        elif replica.listener is not None and replica.listener.done():
            self._failed(replica, f"its answers cannot be read: {replica.listener.exception()!r}")
        elif self._stalled(replica):
            self._failed(replica, f"it has answered nothing for {self._stall_seconds:g} seconds")

    async def _look_after(self) -> None:
        while not self._closed:
            await asyncio.sleep(_LOOK_SECONDS)
            self.tick()

    def _serve(self, replica: Replica, worker: Worker) -> None:
        replica.state = State.SERVING
        replica.since = self._clock()
        replica.answered, replica.quiet = 0, 0.0
        replica.instance = Instance(replica.name, worker.send)
        replica.listener = asyncio.get_running_loop().create_task(self._listen(worker))
        self._front.add(replica.instance)
        again = f" again, after {replica.restarts} restarts" if replica.restarts else ""
        logger.info("arctic-sglang: %s (pid %d) is in service%s", replica.name, worker.pid, again)

    async def _listen(self, worker: Worker) -> None:
        while True:
            message = await worker.receive()
            if isinstance(message, BlockVectors):
                self._front.answer(message)

    def _stalled(self, replica: Replica) -> bool:
        """Whether it holds blocks and answers none. Looks are counted, not time: the loop may have stood still."""
        instance = replica.instance
        assert instance is not None
        if not instance.blocks or instance.answered != replica.answered:
            replica.answered, replica.quiet = instance.answered, 0.0
        else:
            replica.quiet += _LOOK_SECONDS
        return replica.quiet >= self._stall_seconds

    def _failed(self, replica: Replica, reason: str) -> None:
        worker = replica.worker
        assert worker is not None
        now = self._clock()
        if replica.state is State.SERVING and now - replica.since >= _STEADY_SECONDS:
            replica.failures = 0
        self._leave(replica)
        worker.kill()
        self._back_off(replica, reason, now)

    def _back_off(self, replica: Replica, reason: str, now: float) -> None:
        replica.failures += 1
        if replica.failures >= _MOST_FAILURES:
            replica.state = State.OUT
            logger.error(
                "arctic-sglang: %s is given up after %d failures in a row, the last: %s. The others serve on.",
                replica.name, replica.failures, reason,
            )  # fmt: skip
            return
        wait = min(_LONGEST_BACKOFF_SECONDS, 2 ** (replica.failures - 1))
        replica.state, replica.since = State.WAITING, now + wait
        logger.warning(
            "arctic-sglang: %s is out of service, and what it had goes to others: %s. It starts again in %d s.",
            replica.name, reason, wait,
        )  # fmt: skip

    def _start_again(self, number: int, replica: Replica) -> None:
        replica.restarts += 1
        try:
            replica.worker = self._launch(number)
        except Exception as error:  # noqa: BLE001  # no memory, processes or sockets left, perhaps for now
            self._back_off(replica, f"it cannot be started: {error!r}", self._clock())
        else:
            replica.state = State.STARTING

    def _leave(self, replica: Replica) -> None:
        self._stop_listening(replica)
        if replica.instance is not None:
            self._front.remove(replica.instance)
            replica.instance = None

    @staticmethod
    def _stop_listening(replica: Replica) -> None:
        if replica.listener is not None and not replica.listener.get_loop().is_closed():
            replica.listener.cancel()
        replica.listener = None
