"""Reading ahead in a thread."""

import threading
import time

import pyarrow as pa
import pytest

from batch_sdk.ahead import ahead

BATCHES = [pa.record_batch({"x": [i]}) for i in range(20)]


class Reader:
    """A generator that notes how far it was read, where, and whether it was closed."""

    def __init__(self, fail_at=None):
        self.read, self.closed, self.threads, self.fail_at = 0, False, set(), fail_at

    def batches(self):
        try:
            for batch in BATCHES:
                if self.read == self.fail_at:
                    raise OSError("the disk is gone")
                self.threads.add(threading.current_thread())
                self.read += 1
                yield batch
        finally:
            self.closed = True
            self.threads.add(threading.current_thread())


def alive():
    return [t for t in threading.enumerate() if t.name == "batch-sdk-reader"]


def test_all_of_them_in_order():
    reader = Reader()
    assert list(ahead(reader.batches())) == BATCHES
    assert reader.closed
    assert threading.current_thread() not in reader.threads
    assert len(reader.threads) == 1
    assert alive() == []


def test_nothing():
    assert list(ahead(batch for batch in ())) == []


def test_no_further_than_two_ahead():
    reader = Reader()
    stream = ahead(reader.batches())
    next(stream)
    time.sleep(0.3)
    assert reader.read == 4  # one is out, two are ready, one waits for room
    stream.close()
    assert reader.closed
    assert alive() == []


@pytest.mark.parametrize("at", [0, 1, 19])
def test_an_error_comes_in_its_place(at):
    reader = Reader(fail_at=at)
    stream = ahead(reader.batches())
    found = [next(stream) for _ in range(at)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert found == BATCHES[:at]
    assert reader.closed
    assert alive() == []
