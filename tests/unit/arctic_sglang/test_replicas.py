"""Looking after further instances: where they go, and what happens when their processes end."""

import asyncio
import logging

import numpy as np
import pytest
import zmq

from arctic_sglang.embedding import placement, replicas
from arctic_sglang.embedding.front import FrontDoor, Instance
from arctic_sglang.embedding.replicas import Replicas, ReplicaStartError
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.wire import BlockVectors

STEP = 64


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self):
        return self.now


class Process:
    """A worker without a process: it answers with sums, and dies when told."""

    pids = iter(range(100, 10_000))

    def __init__(self):
        self.pid = next(self.pids)
        self.broken = False
        self.is_ready = self.ended = self.killed = self.joined = self.silent = False
        self.error = "no memory"
        self.taken = []
        self.answers = asyncio.Queue()

    def send(self, message):
        assert not self.killed
        self.taken.append(message)
        if not self.silent:
            self.answers.put_nowait(self.answer(message))

    @staticmethod
    def answer(block):
        ends = np.cumsum(block.lengths)
        sums = [[block.ids[end - n : end].sum()] for end, n in zip(ends, block.lengths, strict=True)]
        return BlockVectors(block.number, np.array(sums, np.float32))

    async def receive(self):
        message = await self.answers.get()
        if isinstance(message, Exception):
            raise message
        return message

    def ready(self):
        return self.is_ready

    def alive(self):
        return not self.ended

    def reason(self):
        return self.error

    def kill(self):
        self.killed = self.ended = True

    def join(self):
        self.joined = True


class Stand:
    """A front door, its first instance, and replicas of fake processes."""

    def __init__(self, count=2, **options):
        self.clock = Clock()
        self.front = FrontDoor(step_tokens=STEP, max_tokens=50)
        self.held = []
        self.front.add(Instance("first", self.held.append))
        self.processes = [[] for _ in range(count)]
        self.names = [f"replica {number + 1}" for number in range(count)]
        self.replicas = Replicas(self.front, self.launch, self.names, clock=self.clock, **options)

    def launch(self, number):
        self.processes[number].append(Process())
        return self.processes[number][-1]

    def latest(self, number=0):
        return self.processes[number][-1]

    def make_ready(self):
        for began in self.processes:
            began[-1].is_ready = True

    def serve(self):
        """All replicas started and in service; to be called on a loop."""
        self.replicas.start()
        self.make_ready()
        self.replicas.attach()

    def states(self):
        return [row["state"] for row in self.replicas.status()["replicas"]]

    def pass_seconds(self, seconds):
        self.clock.now += seconds
        self.replicas.tick()

    def answer_first(self):
        while self.held:
            self.front.answer(Process.answer(self.held.pop(0)))


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(replicas, "_LOOK_SECONDS", 0.01)
    return Stand()


def rows_of(count, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 40, count).astype(np.int32)
    return TokenRows(generator.integers(0, 1000, int(lengths.sum())).astype(np.int32), lengths)


def sums(rows):
    return np.array([[sum(row)] for row in rows.to_lists()], np.float32)


@pytest.mark.parametrize(
    ("instances", "gpus", "expected"),
    [
        (1, [0], [(0, 1)]),
        (3, [0], [(0, 3)] * 3),
        (2, [0, 1], [(0, 1), (1, 1)]),
        (2, [4, 5, 6], [(4, 1), (5, 1)]),
        (5, [0, 1], [(0, 3), (1, 2), (0, 3), (1, 2), (0, 3)]),
    ],
)
def test_gpus_are_filled_in_turn(instances, gpus, expected):
    assert [(place.gpu, place.sharing) for place in placement.places(instances, gpus)] == expected


@pytest.mark.parametrize(
    ("visible", "base", "step", "expected"),
    [(8, 0, 1, list(range(8))), (8, 6, 1, [6, 7]), (4, 0, 2, [0, 2]), (0, 0, 1, [0]), (2, 5, 1, [5])],
)
def test_usable_gpus(visible, base, step, expected):
    assert placement.usable_gpus(visible, base, step) == expected


def test_what_replicas_exclude_is_named():
    assert placement.refusals({"tp_size": 1, "enable_memory_saver": False}) == []
    found = placement.refusals({"tp_size": 2, "enable_memory_saver": True})
    assert [text.split(":")[0] for text in found] == ["--tp-size 2", "--enable-memory-saver"]


def test_the_start_waits_for_all(stand):
    stand.replicas.start()
    polls = []

    def ready_at_last(number):
        polls.append(number)
        return len(polls) > 5

    for number in range(2):
        stand.latest(number).ready = lambda number=number: ready_at_last(number)
    stand.replicas.wait()
    assert len(polls) > 5
    assert set(stand.states()) == {"starting"}, "nothing is in service before the loop runs"
    assert len(stand.front.instances) == 1


def test_one_that_cannot_start_stops_the_start(stand):
    stand.replicas.start()
    stand.latest(0).is_ready = True
    stand.latest(1).ended = True
    with pytest.raises(ReplicaStartError, match="replica 2 did not start: no memory"):
        stand.replicas.wait()
    assert stand.latest(0).killed
    assert stand.latest(0).joined


def test_one_that_cannot_be_launched_ends_those_before(stand):
    launched = []

    def launch(number):
        if number == 1:
            raise OSError("no processes left")
        launched.append(Process())
        return launched[-1]

    group = Replicas(stand.front, launch, ["a", "b"])
    with pytest.raises(OSError, match="no processes left"):
        group.start()
    assert launched[0].killed


def test_all_serve_once_the_loop_runs(stand):
    async def main():
        stand.serve()
        stand.replicas.attach()
        assert stand.replicas.status() == {
            "instances": 3,
            "in_service": 3,
            "restarts": 0,
            "replicas": [
                {"name": name, "state": "serving", "pid": stand.latest(i).pid, "restarts": 0, "tokens": 0}
                for i, name in enumerate(stand.names)
            ],
        }
        rows = rows_of(300)
        task = asyncio.create_task(stand.front.embed(rows))
        while not task.done():
            stand.answer_first()
            await asyncio.sleep(0)
        np.testing.assert_array_equal(await task, sums(rows))
        assert all(stand.latest(i).taken for i in range(2))
        stand.replicas.close()

    asyncio.run(main())


def test_what_a_dead_one_had_goes_to_others_and_it_comes_back(stand):
    async def main():
        stand.serve()
        dying = stand.latest(0)
        dying.silent = True
        rows = rows_of(300)
        task = asyncio.create_task(stand.front.embed(rows))
        while not dying.taken:
            await asyncio.sleep(0)
        dying.ended = True
        stand.replicas.tick()
        assert dying.killed
        assert stand.states() == ["waiting to start again", "serving"]
        while not task.done():
            stand.answer_first()
            await asyncio.sleep(0)
        np.testing.assert_array_equal(await task, sums(rows))
        stand.pass_seconds(0.9)
        assert len(stand.processes[0]) == 1
        stand.pass_seconds(0.2)
        assert stand.states() == ["starting", "serving"]
        assert len(stand.front.instances) == 2, "not in service before it is ready"
        stand.make_ready()
        stand.replicas.tick()
        assert stand.states() == ["serving", "serving"]
        assert stand.replicas.status()["restarts"] == 1
        stand.replicas.close()

    asyncio.run(main())


def test_the_next_start_waits_for_the_last_processs_end(stand):
    async def main():
        stand.serve()
        slow = stand.latest(0)
        slow.broken = True
        slow.kill = lambda: None  # a process in a driver call ends when the call does
        stand.replicas.tick()
        stand.pass_seconds(5)
        assert len(stand.processes[0]) == 1
        slow.ended = True
        stand.pass_seconds(0)
        assert len(stand.processes[0]) == 2
        stand.replicas.close()

    asyncio.run(main())


def test_starts_are_further_and_further_apart_and_end(stand, caplog):
    async def main():
        stand.serve()
        waits = []
        stand.latest(0).ended = True
        stand.replicas.tick()
        while stand.states()[0] != "given up":
            began = stand.clock.now
            while stand.states()[0] != "starting":
                stand.pass_seconds(0.5)
            waits.append(stand.clock.now - began)
            stand.latest(0).ended = True
            stand.replicas.tick()
        assert waits == [1, 2, 4, 8]
        stand.pass_seconds(1000)
        assert stand.states() == ["given up", "serving"]
        assert stand.replicas.status()["in_service"] == 2
        assert "replica 1 is given up after 5 failures in a row" in caplog.text
        stand.replicas.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


def test_one_that_served_long_begins_anew(stand):
    async def main():
        stand.serve()
        for _ in range(8):
            stand.pass_seconds(61)
            stand.latest(0).ended = True
            stand.replicas.tick()
            stand.pass_seconds(1)
            assert stand.states()[0] == "starting"
            stand.make_ready()
            stand.replicas.tick()
        assert stand.replicas.status()["restarts"] == 8
        stand.replicas.close()

    asyncio.run(main())


@pytest.mark.parametrize("error", [OSError("no memory"), zmq.ZMQError(24)])
def test_a_start_that_the_system_refuses_is_a_failure_like_others(stand, error):
    def refuse(number):
        raise error

    async def main():
        stand.serve()
        stand.latest(0).ended = True
        stand.replicas.tick()
        launch, stand.replicas._launch = stand.replicas._launch, refuse
        stand.clock.now += 1
        stand.latest(1).ended = True
        stand.replicas.tick()
        assert stand.states() == ["waiting to start again"] * 2, "the others are looked at too"
        assert stand.replicas.status()["in_service"] == 1
        stand.replicas._launch = launch
        stand.pass_seconds(2)
        assert stand.states()[0] == "starting"
        stand.replicas.close()

    asyncio.run(main())


def test_a_look_that_fails_does_not_keep_it_from_the_others(stand, caplog):
    async def main():
        stand.serve()
        stand.latest(0).alive = None  # not to be called
        stand.latest(1).ended = True
        stand.replicas.tick()
        assert stand.states() == ["serving", "waiting to start again"]
        assert "looking after replica 1 failed" in caplog.text

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


@pytest.mark.parametrize("ailment", ["stalled", "broken", "unreadable"])
def test_one_that_lives_and_does_not_work_is_killed(monkeypatch, ailment):
    monkeypatch.setattr(replicas, "_LOOK_SECONDS", 0.01)
    stand = Stand(stall_seconds=0.05)

    async def main():
        stand.serve()
        ill = stand.latest(0)
        ill.silent = True
        ill.broken = ailment == "broken"
        if ailment == "unreadable":
            ill.answers.put_nowait(EOFError("not a pickle"))
        rows = rows_of(200)
        task = asyncio.create_task(stand.front.embed(rows))
        while not task.done():
            stand.answer_first()
            await asyncio.sleep(0.001)
        np.testing.assert_array_equal(await task, sums(rows))
        assert ill.killed
        assert not stand.latest(1).killed
        stand.replicas.close()

    asyncio.run(main())


def test_one_with_nothing_to_do_is_not_stalled(stand):
    async def main():
        stand.serve()
        for _ in range(100_000):
            stand.replicas.tick()
        assert stand.states() == ["serving", "serving"]
        stand.replicas.close()

    asyncio.run(main())


def test_close_ends_all_and_begins_no_more(stand):
    async def main():
        stand.serve()
        stand.replicas.close()
        stand.replicas.close()
        for began in stand.processes:
            assert began[0].killed
            assert began[0].joined
        assert stand.replicas.pids() == []
        assert stand.states() == ["ended", "ended"]
        stand.replicas.attach()
        await asyncio.sleep(0.05)
        assert [len(began) for began in stand.processes] == [1, 1]

    asyncio.run(main())


def test_close_after_the_loop(stand):
    async def main():
        stand.serve()

    asyncio.run(main())
    stand.replicas.close()
    assert stand.latest(0).killed
