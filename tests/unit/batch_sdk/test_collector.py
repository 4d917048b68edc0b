"""The garbage collector is as it was when the last job is over."""

import gc
import threading

import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.collector import seldom
from batch_sdk.errors import EngineError

TABLE = pa.table({"text": ["a", "b"]})


def run(**options):
    batch_sdk.generate(TABLE, prompt="{{ text }}", model="m", engine="dummy", progress=False, **options)


@pytest.fixture
def threshold():
    before = gc.get_threshold()
    gc.set_threshold(123, 4, 5)
    yield (123, 4, 5)
    gc.set_threshold(*before)


def test_a_job_and_one_that_fails(threshold):
    seen = []
    run(output=lambda batch: seen.append(gc.get_threshold()))
    assert seen == [(50_000, 4, 5)]
    assert gc.get_threshold() == threshold
    with pytest.raises(EngineError):
        run(engine_options={"die_after_requests": 1}, max_restarts=0)
    assert gc.get_threshold() == threshold


def test_jobs_at_the_same_time(threshold):
    inside, leave = threading.Event(), threading.Event()

    def long():
        with seldom():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=long)
    other.start()
    assert inside.wait(10)
    with seldom():
        assert gc.get_threshold()[0] == 50_000
    assert gc.get_threshold()[0] == 50_000
    leave.set()
    other.join()
    assert gc.get_threshold() == threshold


@pytest.mark.parametrize("mine", [(0, 4, 5), (90_000, 4, 5)])
def test_who_collects_even_less_is_left_alone(threshold, mine):
    gc.set_threshold(*mine)
    seen = []
    run(output=lambda batch: seen.append(gc.get_threshold()))
    assert seen == [mine]
    assert gc.get_threshold() == mine
