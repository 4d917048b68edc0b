"""The pool of asyncio tasks, and the care for child processes, without any engine."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from batch_sdk.engines import children
from batch_sdk.engines.tasks import TaskPool


class DeadError(Exception):
    pass


async def after(seconds: float, value: int) -> int:
    await asyncio.sleep(seconds)
    return value


@pytest.fixture
def pool():
    loop = asyncio.new_event_loop()
    yield TaskPool(loop)
    children.close_loop(loop)


def test_tasks_come_back_as_they_finish(pool):
    for seconds, value in [(0.05, 1), (0.0, 2), (0.02, 3)]:
        pool.start(after(seconds, value))
    values = []
    while not pool.empty:
        values += [task.result() for task in pool.fetch(lambda: None)]
    assert values == [2, 3, 1]


def test_waiting_ends_when_the_check_says_so(pool):
    def check():
        raise DeadError

    pool.start(after(60, 1))
    with pytest.raises(DeadError):
        pool.fetch(check)
    pool.forget()
    assert pool.empty
    pool.start(after(0, 2))
    assert [task.result() for task in pool.fetch(check)] == [2]


def test_results_of_forgotten_tasks_never_come(pool):
    pool.start(after(0, 1))
    pool.run(asyncio.sleep(0.01))
    assert not pool.empty
    pool.forget()
    assert pool.empty


def test_children_are_found_seen_dead_and_killed():
    multiprocessing.get_context("spawn").Lock()  # starts Python's resource tracker, which is nobody's engine
    before = children.pids()
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    mine = children.since(before)
    assert process.pid in [child.pid for child in mine]
    while len(psutil.Process(process.pid).children()) < 1:
        assert process.poll() is None
    assert children.first_dead(mine) is None
    grandchildren = psutil.Process(process.pid).children()
    process.kill()
    process_seen = psutil.Process(process.pid)
    while children.first_dead([process_seen]) is None:
        pass
    children.kill([process_seen, *grandchildren])
    assert children.since(before) == []
    process.wait()


def test_a_dead_replica_is_no_dead_engine():
    processes = [SimpleNamespace(pid=pid) for pid in (11, 12, 13)]
    closed = []
    manager = SimpleNamespace(arctic_replicas=SimpleNamespace(close=lambda: closed.append(True)))
    engine = SimpleNamespace(get_all_child_pids=lambda: [11, 13], tokenizer_manager=manager)
    assert [process.pid for process in children.vital(engine, processes)] == [11, 13]
    children.end_replicas(engine)
    assert closed == [True]
    children.end_replicas(SimpleNamespace(tokenizer_manager=SimpleNamespace()))
