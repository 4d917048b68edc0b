"""Batches are written in order in another thread, all of them, and what goes wrong there is not lost."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest

from batch_sdk.behind import behind

BATCHES = [pa.record_batch({"a": [i]}) for i in range(20)]


def write_all(write, batches, failure=None):
    with behind(write) as put:
        for batch in batches:
            put(batch)
        if failure is not None:
            raise failure


def test_all_in_order_in_one_other_thread():
    written, threads = [], set()

    def write(batch):
        threads.add(threading.current_thread())
        written.append(batch)

    write_all(write, BATCHES)
    assert written == BATCHES
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert not threads.pop().is_alive()


def test_two_batches_wait_and_no_more():
    gate, brought = threading.Event(), []

    def bring():
        with behind(lambda batch: gate.wait(10)) as put:
            for batch in BATCHES:
                put(batch)
                brought.append(batch)

    thread = threading.Thread(target=bring)
    thread.start()
    thread.join(0.2)
    assert len(brought) <= 3, "one is being written, two wait"
    gate.set()
    thread.join(10)
    assert len(brought) == len(BATCHES)


@pytest.mark.parametrize("bad", [0, 5, 19])
def test_what_write_raises_ends_the_job_and_nothing_is_written_after_it(bad):
    written = []

    def write(batch):
        if batch is BATCHES[bad]:
            raise OSError("disk full")
        written.append(batch)

    with pytest.raises(OSError, match="disk full"):
        write_all(write, BATCHES)
    assert written == BATCHES[:bad]


def test_what_is_finished_is_written_when_the_job_fails():
    written = []
    with pytest.raises(RuntimeError, match="engine"):
        write_all(written.append, BATCHES[:3], RuntimeError("engine"))
    assert written == BATCHES[:3]
