"""Requests enter an engine tokenised, in order, and no more of them than tokens leave room."""

import asyncio
import random
import threading

import pytest

from batch_sdk.engines.base import EmbedRequest, GenerateRequest
from batch_sdk.engines.intake import Intake
from batch_sdk.engines.tasks import TaskPool
from batch_sdk.errors import EngineError


class Engine:
    """Tokens are characters; a row takes as many turns of the loop as its number says."""

    def __init__(self, window, turns=lambda request: 1, slow=None):
        self.loop = asyncio.new_event_loop()
        self.pool = TaskPool(self.loop)
        self.turns, self.slow = turns, slow
        self.begun, self.slices, self.threads = [], [], set()
        self.held = self.most = 0
        self.intake = Intake(
            self.loop, self.pool, window_tokens=window, tokenize=self.tokenize, tokens=len, work=self.work
        )

    def tokenize(self, requests):
        if self.slow is not None:
            self.slow.wait(10)
        self.threads.add(threading.current_thread())
        self.slices.append(len(requests))
        return [list(request.prompt) for request in requests]

    async def work(self, request, ids):
        assert ids == list(request.prompt)
        self.begun.append(request.position)
        self.held += len(ids)
        self.most = max(self.most, self.held)
        for _ in range(self.turns(request)):
            await asyncio.sleep(0)
        self.held -= len(ids)
        return request.position

    def all(self):
        found = []
        while not (self.intake.empty and self.pool.empty):
            found += [task.result() for task in self.pool.fetch(self.intake.check)]
        return found


@pytest.fixture
def engine():
    made = []

    def make(*args, **kwargs):
        made.append(Engine(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.intake.close()
        one.pool.forget()
        one.loop.run_until_complete(one.loop.shutdown_default_executor())
        one.loop.close()


def requests(lengths, start=0):
    return [GenerateRequest(start + i, "x" * n, {}) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("window", [1, 7, 100, 10**9])
def test_all_in_order_and_within_the_window(engine, window):
    draw = random.Random(window)
    lengths = [draw.randrange(40) for _ in range(1001)]
    one = engine(window, turns=lambda request: request.position % 5)
    for start in range(0, 1001, 77):
        one.intake.add(requests(lengths[start : start + 77], start))
    found = one.all()
    assert sorted(found) == list(range(1001))
    assert one.begun == list(range(1001))
    # Larger than the window, a row is alone; rows without a token take no room.
    assert one.most <= max(window, *lengths)
    assert one.held == 0
    assert all(thread is not threading.main_thread() for thread in one.threads)


def test_rows_added_while_others_run(engine):
    one = engine(50)
    one.intake.add(requests([10] * 300))
    found, added = [], 300
    while not (one.intake.empty and one.pool.empty):
        done = [task.result() for task in one.pool.fetch(one.intake.check)]
        found += done
        if added < 1000:
            one.intake.add(requests([10] * len(done), added))
            added += len(done)
    assert sorted(found) == list(range(added))


def test_no_more_than_two_slices_are_tokenised_ahead(engine):
    never = asyncio.Event()
    one = engine(100)

    async def stuck(request, ids):
        await never.wait()

    one.intake._work = stuck
    one.intake.add(requests([100] * 5000))
    for _ in range(50):
        one.pool.run(asyncio.sleep(0.001))
    assert one.slices == [256, 256]


def test_a_slice_is_of_rows_whatever_a_request_holds(engine):
    one = engine(10)
    one.intake._tokenize = lambda blocks: one.slices.append(len(blocks)) or [[] for _ in blocks]
    one.intake._work = lambda request, ids: asyncio.sleep(0)
    one.intake.add([EmbedRequest(64 * i, ["a"] * 64) for i in range(10)])
    one.all()
    assert one.slices == [4, 4, 2]


def test_tokenising_goes_on_while_nobody_waits(engine):
    gate = threading.Event()
    one = engine(100, slow=gate)
    one.intake.add(requests([1] * 10))
    one.pool.run(asyncio.sleep(0))
    assert not one.intake.empty
    gate.set()
    one.intake._thread.submit(lambda: None).result(10)  # behind the slice, in its thread
    assert one.slices == [10]
    assert one.all() == list(range(10))


def test_a_tokenizer_that_fails_is_one_clear_error(engine):
    one = engine(100)

    def broken(requests):
        raise KeyError("bos")

    one.intake._tokenize = broken
    one.intake.add(requests([1, 2, 3]))
    with pytest.raises(EngineError, match="the tokenizer failed: KeyError: 'bos'"):
        one.all()
    with pytest.raises(EngineError, match="the tokenizer failed"):
        one.intake.add(requests([1]))


def test_forget_drops_what_waits_and_leaves_room(engine):
    one = engine(5)
    one.intake.add(requests([3] * 600))
    one.pool.run(asyncio.sleep(0.05))
    one.intake.forget()
    one.pool.forget()
    assert one.intake.empty
    assert one.pool.empty
    one.begun.clear()
    one.held = 0
    one.intake.add(requests([5, 5], 1000))
    assert one.all() == [1000, 1001]
    assert one.intake._room._used == 0


def test_a_row_cancelled_before_it_begins_gives_its_room_back(engine):
    one = engine(5)
    one.intake.add(requests([5]))
    while one.pool.empty:
        one.pool.run(asyncio.sleep(0))
    one.intake.forget()
    one.pool.forget()
    assert one.intake._room._used == 0


def test_nothing_to_add(engine):
    one = engine(5)
    one.intake.add([])
    assert one.intake.empty
