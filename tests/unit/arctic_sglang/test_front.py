"""The front door over instances that a test drives by hand."""

import asyncio
import gc

import numpy as np
import pytest

from arctic_sglang.embedding.front import EmbeddingFailedError, FrontDoor, Instance
from arctic_sglang.embedding.lane import Lane
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.wire import BlockVectors, DropBlocks, EmbedBlock

STEP = 64


class Engine:
    """An instance whose blocks are answered when the test says so."""

    def __init__(self, front, name="engine", *, added=True):
        self.front = front
        self.waiting: list[EmbedBlock] = []
        self.seen: list[EmbedBlock] = []
        self.dropped: list[int] = []
        self.instance = Instance(name, self.take)
        if added:
            front.add(self.instance)

    def take(self, message):
        if isinstance(message, DropBlocks):
            self.dropped += message.numbers
        else:
            self.waiting.append(message)
            self.seen.append(message)

    def answer(self, block=None):
        block = block or self.waiting[0]
        self.waiting.remove(block)
        self.front.answer(BlockVectors(block.number, vectors(block.ids, block.lengths)))

    def fail(self, error="out of memory"):
        self.front.answer(BlockVectors(self.waiting.pop(0).number, None, error))

    @property
    def tokens(self):
        return sum(len(block.ids) for block in self.waiting)


def vectors(ids, lengths):
    """Sum of a row's ids and its length: any mix-up of rows shows."""
    ends = np.cumsum(lengths)
    return np.array([[ids[end - n : end].sum(), n] for end, n in zip(ends, lengths, strict=True)], np.float32)


def make_rows(count, seed=0, low=1, high=40):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(low, high, count).astype(np.int32)
    return TokenRows(generator.integers(0, 1000, int(lengths.sum())).astype(np.int32), lengths)


async def turn(times=4):
    for _ in range(times):
        await asyncio.sleep(0)


async def serve(engines, task):
    """Answer one block of each engine at a time until the task is done."""
    while not task.done():
        for engine in engines:
            if engine.waiting:
                engine.answer()
        await asyncio.sleep(0)
    return await task


def start(work):
    return asyncio.get_running_loop().create_task(work)


@pytest.fixture
def front():
    return FrontDoor(step_tokens=STEP, max_tokens=50, steps_ahead=3)


def test_every_row_in_its_place(front):
    async def main():
        engines = [Engine(front, "a"), Engine(front, "b")]
        rows = make_rows(500)
        found = await serve(engines, start(front.embed(rows)))
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))
        assert found.dtype == np.float32
        assert front.idle
        for engine in engines:
            assert engine.seen
            for block in engine.seen:
                assert len(block.ids) <= STEP
                assert block.lengths.sum() == len(block.ids)
                assert (np.diff(block.lengths) >= 0).all(), "a block's rows are of similar length"
            assert engine.instance.tokens == 0
            assert engine.instance.answered == len(engine.seen)

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_few_rows(front, count):
    async def main():
        rows = make_rows(count, seed=count)
        found = await serve([Engine(front)], start(front.embed(rows)))
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))

    asyncio.run(main())


def test_no_rows_need_no_engine(front):
    found = asyncio.run(front.embed(TokenRows.from_lists([])))
    assert found.shape == (0, 0)
    assert found.dtype == np.float32


@pytest.mark.parametrize("length", [0, 51])
def test_a_row_that_does_not_fit_is_named(front, length):
    rows = TokenRows.from_lists([[1], [2] * length, [3]])
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens; 1 to 50"):
        asyncio.run(front.embed(rows))
    assert front.idle


def test_a_row_longer_than_a_step_goes_alone():
    async def main():
        front = FrontDoor(step_tokens=16, max_tokens=50)
        engine = Engine(front)
        rows = TokenRows.from_lists([[1] * 50, [2] * 3, [3] * 40])
        found = await serve([engine], start(front.embed(rows)))
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))
        assert [len(block.ids) for block in engine.seen] == [3, 40, 50]

    asyncio.run(main())


def test_dimensions_travel(front):
    async def main():
        engine = Engine(front)
        await serve([engine], start(front.embed(make_rows(3), dimensions=1)))
        assert {block.dimensions for block in engine.seen} == {1}

    asyncio.run(main())


def test_what_an_engine_holds_is_bounded(front):
    async def main():
        engines = [Engine(front, "a"), Engine(front, "b")]
        rows = make_rows(2000)
        task = start(front.embed(rows))
        most = 0
        while not task.done():
            await turn()
            most = max(most, *(engine.tokens for engine in engines))
            assert front.status()["waiting_blocks"] <= 7, "a request is cut as it can be sent"
            for engine in engines:
                assert engine.instance.tokens == engine.tokens
                if engine.waiting:
                    engine.answer()
        np.testing.assert_array_equal(await task, vectors(rows.ids, rows.lengths))
        assert 2 * STEP < most <= 3 * STEP

    asyncio.run(main())


def test_the_least_loaded_engine_gets_the_next_block(front):
    async def main():
        slow, fast = Engine(front, "slow"), Engine(front, "fast")
        task = start(front.embed(make_rows(300)))
        while not task.done():
            await turn()
            if fast.waiting:
                fast.answer()
            elif slow.waiting:
                slow.answer()
        assert len(fast.seen) > 5 * len(slow.seen)

    asyncio.run(main())


def test_an_idle_front_door_asks_the_first_instance(front):
    """SGLang's health check goes by the answers of its own scheduler, which is the first."""

    async def main():
        first, second = Engine(front, "first"), Engine(front, "second")
        first.instance.vital = True
        for _ in range(3):
            await serve([first, second], start(front.embed(make_rows(1))))
        assert (len(first.seen), len(second.seen)) == (3, 0)

    asyncio.run(main())


def test_a_small_request_goes_ahead_of_a_large_one(front):
    async def main():
        engine = Engine(front)
        large = start(front.embed(make_rows(1000)))
        await turn()
        held = len(engine.waiting)
        small_rows = TokenRows.from_lists([[7, 8, 9]])
        small = start(front.embed(small_rows))
        await turn()
        assert engine.waiting[-1].small, "it is handed over though the large one fills the window"
        for _ in range(held + 1):
            engine.answer()
        await turn()
        np.testing.assert_array_equal(await small, vectors(small_rows.ids, small_rows.lengths))
        assert not large.done()
        await serve([engine], large)

    asyncio.run(main())


def test_small_requests_wait_ahead_of_large_ones_too(front):
    async def main():
        large = start(front.embed(make_rows(1000)))
        await turn()
        small = start(front.embed(TokenRows.from_lists([[1] * 16])))
        await turn()
        engine = Engine(front)
        assert engine.waiting[0].small
        await serve([engine], asyncio.gather(large, small))

    asyncio.run(main())


def test_two_large_requests_take_turns(front):
    async def main():
        engine = Engine(front)
        requests = [TokenRows.from_lists([[mark] * 32] * 100) for mark in (1, 2)]
        tasks = [start(front.embed(rows)) for rows in requests]
        for _ in range(24):
            await turn()
            engine.answer()
        marks = [int(block.ids[0]) for block in engine.seen]
        assert not any(task.done() for task in tasks)
        assert 8 <= marks.count(1) <= 16, f"neither waits for the other's end: {marks}"
        await serve([engine], asyncio.gather(*tasks))

    asyncio.run(main())


@pytest.mark.parametrize("clients", [8, 64])
def test_a_large_request_goes_on_under_small_ones_without_end(front, clients):
    async def main():
        engine, lane = Engine(front), Lane(STEP)
        front.remove(engine.instance)
        engine.instance.send = lane.add
        front.add(engine.instance)
        ended = False

        async def client():
            while not ended:
                await front.embed(TokenRows.from_lists([[1] * 16]))

        tasks = [start(client()) for _ in range(clients)]
        await turn()
        large = start(front.embed(TokenRows.from_lists([[2] * 32])))
        await turn()
        steps = 0
        while not all(task.done() for task in (large, *tasks)):
            steps += 1
            assert steps < 100
            for block in lane.next_step():
                front.answer(BlockVectors(block.number, vectors(block.ids, block.lengths)))
            await turn()
            if large.done() and not ended:
                assert steps <= 10
                ended = True

    asyncio.run(main())


def test_a_cancelled_request_lets_go(front):
    async def main():
        engine = Engine(front)
        task = start(front.embed(make_rows(1000)))
        await turn()
        held = [block.number for block in engine.waiting]
        task.cancel()
        await turn()
        assert task.cancelled()
        assert engine.dropped == held
        assert front.status()["waiting_blocks"] == 0
        assert engine.instance.tokens == engine.tokens, "what it works on still counts"
        while engine.waiting:
            engine.fail("dropped")
        assert front.idle
        assert engine.instance.tokens == 0
        rows = make_rows(20, seed=3)
        found = await serve([engine], start(front.embed(rows)))
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))

    asyncio.run(main())


def test_a_failed_step_fails_its_request_alone(front, caplog):
    async def main():
        engine = Engine(front)
        doomed = start(front.embed(make_rows(200)))
        await turn()
        rows = make_rows(200, seed=1)
        other = start(front.embed(rows))
        await turn()
        engine.fail("CUDA out of memory")
        engine.fail("CUDA out of memory again")  # before the request has seen the first failure
        await turn()
        with pytest.raises(EmbeddingFailedError, match="CUDA out of memory"):
            await doomed
        found = await serve([engine], other)
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))
        while engine.waiting:
            engine.answer()
        assert front.idle

    asyncio.run(main())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_removed_instance_loses_and_doubles_nothing(front):
    async def main():
        dying, living = Engine(front, "dying"), Engine(front, "living")
        rows = make_rows(400)
        task = start(front.embed(rows))
        await turn()
        dying.answer()
        await turn()
        late = list(dying.waiting)
        assert late
        front.remove(dying.instance)
        assert dying.instance.tokens == 0
        assert front.instances == (living.instance,)
        # Its last words: too late, and wrong at that.
        for block in late:
            front.answer(BlockVectors(block.number, np.full((len(block.lengths), 2), -1, np.float32)))
        found = await serve([living], task)
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))
        numbers = [block.number for block in (*dying.seen, *living.seen)]
        assert len(set(numbers)) == len(numbers)
        answered = dying.instance.answered + living.instance.answered
        assert answered == len(numbers) - len(late)
        assert front.idle

    asyncio.run(main())


def test_a_dying_instances_error_is_not_a_requests(front):
    async def main():
        dying, living = Engine(front, "dying"), Engine(front, "living")
        task = start(front.embed(make_rows(100)))
        await turn()
        late = list(dying.waiting)
        front.remove(dying.instance)
        for block in late:
            front.answer(BlockVectors(block.number, None, "I am dying"))
        await serve([living], task)

    asyncio.run(main())


def test_a_block_that_kills_its_instances_ends_its_request_and_not_the_server(front):
    async def main():
        replicas = [Engine(front, f"replica {n}") for n in range(2)]
        server = Engine(front, "server")
        server.instance.vital = True
        replicas.append(Engine(front, "replica 2"))
        poison = start(front.embed(TokenRows.from_lists([[666]])))
        dead = []
        while not poison.done():
            await turn()
            for engine in (server, *replicas):
                if engine.instance in front.instances and engine.waiting:
                    front.remove(engine.instance)
                    dead.append(engine.instance.name)
        assert dead == ["replica 0", "replica 1"]
        with pytest.raises(
            EmbeddingFailedError, match="2 instances died one after the other with these rows"
        ):
            await poison
        rows = make_rows(50)
        found = await serve([server, replicas[2]], start(front.embed(rows)))
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))
        assert front.idle

    asyncio.run(main())


def test_what_another_one_died_with_goes_to_the_server_where_nobody_else_is(front):
    async def main():
        replica, server = Engine(front, "replica"), Engine(front, "server")
        server.instance.vital = True
        task = start(front.embed(TokenRows.from_lists([[1, 2]])))
        await turn()
        front.remove(replica.instance)
        np.testing.assert_array_equal(await serve([server], task), [[3, 2]])

    asyncio.run(main())


def test_what_another_one_died_with_waits_for_a_replica_with_room(front):
    """The server's own instance goes on with other blocks meanwhile."""

    async def main():
        server, first, second = (Engine(front, name) for name in ("server", "first", "second"))
        server.instance.vital = True
        requests = [make_rows(400, seed=seed) for seed in range(3)]
        tasks = [start(front.embed(rows)) for rows in requests]
        await turn()
        doomed = [block.ids for block in first.waiting]
        front.remove(first.instance)
        seen = len(server.seen)
        for _ in range(4):
            server.answer()
            await turn()
        assert len(server.seen) > seen
        for task in tasks:
            await serve([second, server], task)
        for ids in doomed:
            assert not any(np.array_equal(ids, block.ids) for block in server.seen)
            assert any(np.array_equal(ids, block.ids) for block in second.seen)

    asyncio.run(main())


def test_what_a_removed_instance_had_goes_first(front):
    async def main():
        engine = Engine(front, "a")
        task = start(front.embed(make_rows(400)))
        await turn()
        held = [block.ids for block in engine.waiting]
        front.remove(engine.instance)
        other = Engine(front, "b")
        for mine, theirs in zip(held, other.waiting, strict=False):
            np.testing.assert_array_equal(mine, theirs.ids)
        await serve([other], task)

    asyncio.run(main())


def test_a_removed_instance_takes_cancelled_work_with_it(front):
    async def main():
        engine = Engine(front, "a")
        task = start(front.embed(make_rows(400)))
        await turn()
        task.cancel()
        await turn()
        front.remove(engine.instance)
        assert front.idle

    asyncio.run(main())


def test_requests_wait_for_an_instance(front):
    async def main():
        rows = make_rows(100)
        task = start(front.embed(rows))
        await turn(20)
        assert not task.done()
        assert front.status() == {"waiting_blocks": 4, "instances": []}
        found = await serve([Engine(front)], task)
        np.testing.assert_array_equal(found, vectors(rows.ids, rows.lengths))

    asyncio.run(main())


def test_an_added_instance_takes_part(front):
    async def main():
        first = Engine(front, "a")
        task = start(front.embed(make_rows(1000)))
        await turn()
        first.answer()
        await turn()
        second = Engine(front, "b")
        await serve([first, second], task)
        assert len(second.seen) > 10

    asyncio.run(main())


def test_status_tells_what_is_in_work(front):
    async def main():
        engine = Engine(front, "a")
        task = start(front.embed(TokenRows.from_lists([[1, 2, 3]])))
        await turn()
        held = {"name": "a", "blocks": 1, "tokens": 3, "answered_blocks": 0}
        assert front.status() == {"waiting_blocks": 0, "instances": [held]}
        await serve([engine], task)
        done = {"name": "a", "blocks": 0, "tokens": 0, "answered_blocks": 1}
        assert front.status() == {"waiting_blocks": 0, "instances": [done]}

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_answers_deaths_and_arrivals(seed):
    async def main():
        generator = np.random.default_rng(seed)
        front = FrontDoor(step_tokens=int(generator.integers(20, 200)), max_tokens=50)
        engines = [Engine(front, "first")]
        requests = [make_rows(int(generator.integers(1, 300)), seed=seed * 10 + i) for i in range(6)]
        tasks = [start(front.embed(rows)) for rows in requests]
        deaths = 0
        while not all(task.done() for task in tasks):
            chance = generator.random()
            if chance < 0.03:
                engines.append(Engine(front, "more"))
            elif chance < 0.06 and len(engines) > 1:
                deaths += 1
                front.remove(engines.pop(int(generator.integers(len(engines)))).instance)
            else:
                engine = engines[int(generator.integers(len(engines)))]
                if engine.waiting:
                    engine.answer(engine.waiting[int(generator.integers(len(engine.waiting)))])
            await asyncio.sleep(0)
        for rows, task in zip(requests, tasks, strict=True):
            if task.exception() is not None:
                assert deaths >= 2
                assert "instances died" in str(task.exception())
            else:
                np.testing.assert_array_equal(await task, vectors(rows.ids, rows.lengths))
        assert any(task.exception() is None for task in tasks)
        while engines_left := [engine for engine in engines if engine.waiting]:
            engines_left[0].answer()
        assert front.idle

    asyncio.run(main())
