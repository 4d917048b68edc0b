"""The processes, signals and event loop that an in-process engine brings along, and how to be rid of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from batch_sdk.errors import EngineError

_KILL_SECONDS = 30
_CANCEL_SECONDS = 2
# Python's helper for shared memory and semaphores: one a process, shared with everything else that runs in it.
_PYTHONS_OWN = "multiprocessing.resource_tracker"


def pids() -> set[int]:
    """Return the ids of this process's descendants."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def since(before: set[int]) -> list[psutil.Process]:
    """Return the descendants of this process that are not in `before`, Python's own helper left out."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if child.pid not in before and _PYTHONS_OWN not in " ".join(child.cmdline()):
                found.append(child)
    return found


def first_dead(processes: Sequence[psutil.Process]) -> psutil.Process | None:
    """Return one that has ended, or None."""
    for process in processes:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            return process
    return None


def vital(engine: Any, processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return those of a `sglang.Engine`'s processes without which it cannot go on.

    An embedding replica is none of them: the engine goes on without it, and starts it again.
    """
    named = set(engine.get_all_child_pids())
    return [process for process in processes if process.pid in named]


def end_replicas(engine: Any) -> None:
    """End a `sglang.Engine`'s embedding replicas, those too that were started again since its start."""
    replicas = getattr(engine.tokenizer_manager, "arctic_replicas", None)
    if replicas is not None:
        replicas.close()


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill the processes and their descendants, and wait for their end.

    Raises:
        EngineError: one of them is still there half a minute later.
    """
    doomed = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            doomed += process.children(recursive=True)
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(doomed, timeout=_KILL_SECONDS)
    if alive:
        raise EngineError(f"processes {[p.pid for p in alive]} of the engine survived SIGKILL")


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all that still runs on a loop that is not running, and close it."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCEL_SECONDS))
    loop.close()


@contextmanager
def without_log(logger_name: str, text: str) -> Iterator[None]:
    """Drop a logger's messages that contain `text`, for as long as the context lasts."""
    logger = logging.getLogger(logger_name)

    def keep(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
