"""Order, window, memory, and one output row for every input row."""

from __future__ import annotations

import resource
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_sdk
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import SourceError
from batch_sdk.flow import limit, rebatch


def table_of(rows: int) -> pa.Table:
    return pa.table({"id": range(rows), "text": [f"text {i}" for i in range(rows)]})


def expected_texts(rows: int) -> list[str]:
    """The slow twin: one request at a time, no window, no shuffling."""
    engine = DummyEngine(model="m", task="generate", options={})
    one_by_one = [
        batch_sdk.generate(
            table_of(rows).slice(i, 1), prompt="say {{ text }}", model=started(engine), progress=False
        )
        for i in range(rows)
    ]
    return pa.concat_tables(one_by_one).column("response").to_pylist()


def started(engine: DummyEngine) -> DummyEngine:
    engine.start()
    return engine


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("window", "batch"), [(1, 1), (7, 3), (3, 7), (64, 16), (1000, 1000)])
def test_order_is_kept_when_completion_is_shuffled(jobs, window, batch, seed):
    out = jobs.generate(
        table_of(101), options={"shuffle": True, "seed": seed}, window_rows=window, batch_rows=batch
    )
    assert out.column("id").to_pylist() == list(range(101))
    assert out.column("response").to_pylist()[:20] == expected_texts(20)
    assert jobs.engine.peak_rows_in_flight <= window
    assert jobs.engine.peak_span_rows <= window
    assert all(len(chunk) <= batch for chunk in out.column("id").chunks)


def test_the_window_is_filled(jobs):
    jobs.generate(table_of(100), window_rows=10, batch_rows=100)
    assert jobs.engine.peak_rows_in_flight == 10


@pytest.mark.parametrize(("window", "batch", "block"), [(4, 3, 4), (8, 100, 3), (64, 16, 64), (5, 7, 1)])
def test_embed_keeps_order_and_window(jobs, window, batch, block):
    options = {"shuffle": True, "seed": 3, "embedding_size": 4}
    out = jobs.embed(table_of(101), options=options, window_rows=window, batch_rows=batch, block_rows=block)
    assert out.column("id").to_pylist() == list(range(101))
    assert jobs.engine.peak_rows_in_flight <= window
    assert jobs.engine.peak_span_rows <= window
    plain = jobs.embed(table_of(101), options={"embedding_size": 4})
    assert out.column("embedding").to_pylist() == plain.column("embedding").to_pylist()


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 10, 11])
def test_sizes_around_the_batch(jobs, rows):
    out, summary = jobs.generate(table_of(rows), batch_rows=10, window_rows=4, return_summary=True)
    assert out.num_rows == summary.rows == rows
    assert out.schema.names[-5:] == [
        "response",
        "prompt_tokens",
        "completion_tokens",
        "finish_reason",
        "error",
    ]
    assert jobs.embed(table_of(rows), batch_rows=10).num_rows == rows


@pytest.mark.parametrize("rows", [1, 5, 10, 11, 1000])
def test_limit(jobs, rows):
    out, summary = jobs.generate(table_of(30), limit_rows=rows, batch_rows=10, return_summary=True)
    assert out.column("id").to_pylist() == list(range(min(rows, 30)))
    assert summary.rows == min(rows, 30)


def test_limit_reads_no_batch_too_many():
    read = []

    def batches():
        for i in range(10):
            read.append(i)
            yield pa.record_batch({"a": [i, i]})

    assert sum(b.num_rows for b in limit(batches(), 4)) == 4
    assert read == [0, 1]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=12), rows=st.integers(1, 10))
def test_rebatch_keeps_every_row(sizes, rows):
    values = iter(range(sum(sizes)))
    batches = [
        pa.record_batch({"a": pa.array([next(values) for _ in range(size)], pa.int64())}) for size in sizes
    ]
    out = list(rebatch(batches, rows))
    assert [v for b in out for v in b.column(0).to_pylist()] == list(range(sum(sizes)))
    assert all(b.num_rows == rows for b in out[:-1])
    assert all(0 < b.num_rows <= rows for b in out)


def test_a_million_rows_stream_in_bounded_memory(jobs):
    """The table would be 1 GB at once; only a window of it may exist."""
    rows, batch = 1_000_000, 10_000
    body = "x" * 1000
    alive_peak = 0

    def batches():
        nonlocal alive_peak
        for start in range(0, rows, batch):
            alive_peak = max(alive_peak, pa.total_allocated_bytes())
            ids = pa.array(np.arange(start, start + batch))
            text = pc.binary_join_element_wise(ids.cast(pa.string()), body, " ")
            yield pa.record_batch({"id": ids, "text": text})

    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    counted = CountingSource(reader)
    allocated = pa.total_allocated_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    out = jobs.embed(counted, keep=[], options={"embedding_size": 2}, window_rows=4096, batch_rows=1024)
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert out.num_rows == rows
    assert jobs.engine.peak_rows_in_flight <= 4096
    assert alive_peak - allocated < 200 << 20, "input batches pile up"
    assert after - before < 400 << 10, f"peak RSS grew by {(after - before) >> 10} MiB"
    assert seconds < 60


class CountingSource:
    """A bare Arrow C stream, as any other library would hand it over."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader

    def __arrow_c_stream__(self, requested_schema=None):
        return self._reader.__arrow_c_stream__(requested_schema)


def test_a_batch_of_more_than_2_gib_says_what_to_do(jobs, tmp_path):
    chunk = pa.array(["x" * 600_000] * 16)
    table = pa.table(
        {"text": pa.chunked_array([pa.array(["t"] * 4096)]), "long": pa.chunked_array([chunk] * 256)}
    )
    with pytest.raises(SourceError, match=r"4,096 rows .*2 GiB.*offset overflow.*smaller batch_rows"):
        jobs.embed(table, output=lambda batch: None)
    assert jobs.embed(table, output=lambda batch: None, batch_rows=64, limit_rows=256).rows == 256


def test_dictionaries_that_do_not_fit_together_say_so(jobs):
    chunks = [
        pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), [f"{n} {i}" for i in range(100)])
        for n in "ab"
    ]
    table = pa.table({"text": ["x"] * 200, "d": pa.chunked_array(chunks)})
    with pytest.raises(
        SourceError, match=r"200 rows do not go into one batch.* dictionar.*smaller batch_rows"
    ):
        jobs.embed(table, batch_rows=200)
    assert jobs.embed(table, batch_rows=100).num_rows == 200
