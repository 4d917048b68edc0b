"""The front door: requests of any size become blocks, blocks go to instances, vectors come back as one array.

It lives where SGLang's tokenizer manager does, on its event loop. What an instance holds is bounded in tokens, so
memory does not grow with a request, blocks of several large requests take turns, and a small request goes ahead
of them. Small and large ones have an account each, so that neither keeps the other out. What an instance that dies had
in work goes to another one, once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from arctic_sglang.embedding.rows import TokenRows, pack
from arctic_sglang.embedding.wire import BlockVectors, DropBlocks, EmbedBlock

# Steps of small requests, and as many of large ones, that an instance holds: two are launched, the others bridge what
# the host does between, in a process that tokenises in the same breath (with 3 the GPU of an H200 was idle for 12 % of
# the time, with 50 tokens a row).
_STEPS_AHEAD = 8
# A request of at most this part of a step goes ahead of larger ones.
_SMALL_PART = 4
# A block that so many instances died with is taken for the reason.
_MOST_DEATHS = 2


class EmbeddingFailedError(RuntimeError):
    """A step failed in the engine, or the engine with it; the message says how."""


@dataclass(slots=True, eq=False)
class Instance:
    """One engine that embeds, as the front door sees it.

    Attributes:
        name: for messages.
        send: hands an `EmbedBlock` or `DropBlocks` over; does not wait.
        vital: its end is the server's, so what another one died with goes elsewhere as long as there is another.
        tokens: of the blocks that it holds.
        small_tokens: of those, tokens of small requests.
        answered: blocks that it has answered so far.
        blocks: those that it holds, by number.
    """

    name: str
    send: Callable[[Any], None]
    vital: bool = False
    tokens: int = 0
    small_tokens: int = 0
    answered: int = 0
    blocks: dict[int, _Job] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Job:
    """A block on its way: what to send, where its vectors go, and how many instances died with it."""

    block: EmbedBlock
    done: asyncio.Future[np.ndarray]
    deaths: int = 0


class FrontDoor:
    """Embeds token rows on whatever instances there are.

    Args:
        step_tokens: tokens of a forward step of the instances.
        max_tokens: of one row.
        steps_ahead: steps of small requests, and as many of large ones, that an instance holds.
    """

    def __init__(self, *, step_tokens: int, max_tokens: int, steps_ahead: int = _STEPS_AHEAD) -> None:
        self.step_tokens = step_tokens
        self.max_tokens = max_tokens
        self._steps_ahead = steps_ahead
        self._instances: list[Instance] = []
        self._small: deque[_Job] = deque()
        self._large: deque[_Job] = deque()
        self._numbers = itertools.count()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Those in service."""
        return tuple(self._instances)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is in work."""
        return not self._small and not self._large and not any(i.blocks for i in self._instances)

    def status(self) -> dict[str, Any]:
        """What is in work, for a status page: plain values, a row for each instance in service."""
        return {
            "waiting_blocks": len(self._small) + len(self._large),
            "instances": [
                {"name": i.name, "blocks": len(i.blocks), "tokens": i.tokens, "answered_blocks": i.answered}
                for i in self._instances
            ],
        }

    def add(self, instance: Instance) -> None:
        """Take an instance into service."""
        self._instances.append(instance)
        self._fill()

    def remove(self, instance: Instance) -> None:
        """Take a dead instance out of service; what it had in work goes to the head of the queues.

        A block that several instances died with fails its request instead: it would kill the others too.
        """
        self._instances.remove(instance)
        for job in reversed(instance.blocks.values()):
            if job.done.done():
                continue  # its request was given up
            job.deaths += 1
            if job.deaths >= _MOST_DEATHS:
                msg = f"{job.deaths} instances died one after the other with these rows in work; see the log"
                job.done.set_exception(EmbeddingFailedError(msg))
                continue
            # A new number: what the old instance may still answer is an answer to nothing.
            job.block = replace(job.block, number=next(self._numbers))
            (self._small if job.block.small else self._large).appendleft(job)
        instance.blocks.clear()
        instance.tokens = instance.small_tokens = 0
        self._fill()

    async def embed(self, rows: TokenRows, *, dimensions: int | None = None) -> np.ndarray:
        """One vector per row.

        Args:
            rows: any number; every row has 1 to `max_tokens` tokens.
            dimensions: components to keep (Matryoshka), scaled again; None keeps all.

        Returns:
            float32 `[rows, width]`, in the order of the rows. With no rows `[0, 0]`.

        Raises:
            ValueError: a row is empty or too long; the message names the first such row.
            EmbeddingFailedError: the engine could not do a step, or died of it, and so did another one.
        """
        self._check(rows)
        if not rows.rows:
            return np.empty((0, 0), np.float32)
        small = rows.tokens * _SMALL_PART <= self.step_tokens
        jobs: dict[asyncio.Future[np.ndarray], np.ndarray] = {}
        order = np.argsort(rows.lengths, kind="stable")
        blocks = iter(pack(rows.lengths[order], self.step_tokens))
        out: np.ndarray | None = None
        try:
            while True:
                # Blocks are cut as they can be sent: a huge request does not exist twice.
                for first, last in itertools.islice(blocks, max(0, self._room() - len(jobs))):
                    job = self._job(rows.take(order[first:last]), small, dimensions)
                    jobs[job.done] = order[first:last]
                if not jobs:
                    break
                done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    vectors = future.result()
                    if out is None:
                        out = np.empty((rows.rows, vectors.shape[1]), np.float32)
                    out[jobs.pop(future)] = vectors
        finally:
            self._forget(jobs)
        assert out is not None
        return out

    def answer(self, answer: BlockVectors) -> None:
        """Take an instance's answer in."""
        for instance in self._instances:
            job = instance.blocks.pop(answer.number, None)
            if job is None:
                continue
            self._account(instance, job.block, -1)
            instance.answered += 1
            if not job.done.done():
                if answer.vectors is None:
                    job.done.set_exception(EmbeddingFailedError(answer.error or "no reason given"))
                else:
                    job.done.set_result(answer.vectors)
            break  # else: of a dropped block, or of an instance that was given up
        self._fill()

    def _check(self, rows: TokenRows) -> None:
        wrong = np.flatnonzero((rows.lengths < 1) | (rows.lengths > self.max_tokens))
        if len(wrong):
            row = int(wrong[0])
            msg = f"row {row} has {rows.lengths[row]} tokens; 1 to {self.max_tokens} are wanted"
            raise ValueError(msg)

    def _room(self) -> int:
        """Blocks of one request that may wait or be in work at once."""
        return self._steps_ahead * max(1, len(self._instances)) + 1

    def _job(self, rows: TokenRows, small: bool, dimensions: int | None) -> _Job:
        block = EmbedBlock(next(self._numbers), rows.ids, rows.lengths, small, dimensions)
        job = _Job(block, asyncio.get_running_loop().create_future())
        (self._small if small else self._large).append(job)
        self._fill()
        return job

    def _fill(self) -> None:
        """Hand waiting blocks to the least loaded instances, small ones first."""
        for queue, small in ((self._small, True), (self._large, False)):
            passed = []  # for the same instances, which may be long about what they have
            while queue:
                job = queue.popleft()
                instance = self._instance_for(job, small)
                if instance is None:
                    passed.append(job)
                    if job.deaths:
                        continue
                    break
                instance.blocks[job.block.number] = job
                self._account(instance, job.block, 1)
                instance.send(job.block)
            queue.extendleft(reversed(passed))

    def _instance_for(self, job: _Job, small: bool) -> Instance | None:
        """The least loaded instance that has room for a block of this kind; a block of any size fits where none is.

        What another instance died with waits for room at one that is not vital, if there is any.
        """
        limit = self._steps_ahead * self.step_tokens
        found, allowed = [], self._instances
        if job.deaths:
            allowed = [instance for instance in allowed if not instance.vital] or allowed
        for instance in allowed:
            held = instance.small_tokens if small else instance.tokens - instance.small_tokens
            if not held or held + len(job.block.ids) <= limit:
                found.append(instance)
        # Of equals the first: a health check of an idle server waits for an answer of SGLang's own scheduler.
        return min(found, key=lambda i: i.tokens, default=None)

    @staticmethod
    def _account(instance: Instance, block: EmbedBlock, sign: int) -> None:
        instance.tokens += sign * len(block.ids)
        if block.small:
            instance.small_tokens += sign * len(block.ids)

    def _forget(self, jobs: dict[asyncio.Future[np.ndarray], np.ndarray]) -> None:
        """Drop what is left of a request that was cancelled or failed."""
        if not jobs:
            return
        for future in jobs:
            if not future.cancel() and not future.cancelled():
                future.exception()  # of a second failure of the request; asyncio reports what nobody looked at
        for queue in (self._small, self._large):
            kept = [job for job in queue if job.done not in jobs]
            queue.clear()
            queue.extend(kept)
        for instance in self._instances:
            dropped = [number for number, job in instance.blocks.items() if job.done in jobs]
            if dropped:
                # They stay on the instance's account until it answers: those that it has begun, it finishes.
                instance.send(DropBlocks(dropped))
