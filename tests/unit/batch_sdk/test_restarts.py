"""An engine that dies is started again, and the row that kills it is the only one without a result."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk.engines.base import EmbedRequest, GenerateRequest
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.engines.restarting import RestartingEngine
from batch_sdk.errors import EngineDiedError, EngineError

POISON = "killer"


class Recorder(DummyEngine):
    """Counts starts and the times each row was asked for."""

    def __init__(self, *, model="m", task, options):
        super().__init__(model=model, task=task, options=options)
        self.starts = 0

    def start(self):
        self.starts += 1
        super().start()


def table_of(rows: int, *poison: int) -> pa.Table:
    return pa.table({"id": range(rows), "text": [POISON if i in poison else f"t{i}" for i in range(rows)]})


def run(task: str, table: pa.Table, *, max_restarts: int = 6, die_on: str | None = POISON, **more):
    options = {"engine": "dummy", "model": "m", "engine_options": {"die_on": die_on, "shuffle": True}}
    options |= {"max_restarts": max_restarts, "return_summary": True, "progress": False, **more}
    if task == "embed":
        return batch_sdk.embed(table, column="text", **options)
    return batch_sdk.generate(table, prompt="say {{ text }}", **options)


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize(
    ("rows", "at"), [(1, 0), (2, 1), (3, 0), (4, 3), (50, 0), (50, 23), (50, 49), (3000, 2500)]
)
def test_one_poison_row_is_one_error_row(task, rows, at):
    table = table_of(rows, at)
    if task == "embed":
        table = table.set_column(
            1, "text", pa.array([None if i == at + 1 else t for i, t in enumerate(table["text"].to_pylist())])
        )
    out, summary = run(task, table)
    plain, _ = run(task, table, die_on=None)
    assert out.num_rows == rows
    kinds = [error and error["kind"] for error in out.column("error").to_pylist()]
    assert kinds.pop(at) == "engine_died"
    assert set(kinds) <= {None, "null_input"}
    assert "alone" in out.column("error")[at].as_py()["message"]
    others = [i for i in range(rows) if i != at]
    others = pa.array(others, pa.int64())
    assert out.take(others).equals(plain.take(others))
    assert 0 < summary.engine_restarts <= 3
    assert "restarts" in str(summary)


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_two_poison_rows_in_one_window_and_apart(task):
    for rows, poison in ((60, (7, 31)), (60, (30, 31)), (5000, (1, 4000))):
        out, summary = run(task, table_of(rows, *poison), window_rows=1024)
        dead = [i for i, error in enumerate(out.column("error").to_pylist()) if error]
        assert dead == list(poison)
        assert summary.errors == {"engine_died": 2}


def test_restarts_are_bound():
    table = table_of(60, 3, 20, 40)
    with pytest.raises(EngineError, match=r"died on 'killer'.*after 4 restarts"):
        run("generate", table, max_restarts=4)
    with pytest.raises(EngineError) as caught:
        run("generate", table, max_restarts=0)
    assert "restarts" not in str(caught.value)


def test_a_broken_engine_is_no_row_of_poison():
    engine = Recorder(task="generate", options={"die_after_requests": 10})
    guarded = RestartingEngine(engine, 100)
    guarded.start()
    guarded.submit([GenerateRequest(i, f"t{i}", {}) for i in range(40)])
    assert len(guarded.wait()) == 10
    with pytest.raises(EngineError, match="died after 10"):
        guarded.wait()
    assert engine.starts < 7


def test_a_crash_that_does_not_come_back_costs_no_row():
    class Once(Recorder):
        def wait(self):
            if self.starts == 1:
                raise EngineDiedError("out of memory")
            return super().wait()

    engine = Once(task="embed", options={})
    guarded = RestartingEngine(engine, 1)
    guarded.start()
    guarded.submit([EmbedRequest(0, ["a", "b", "c"]), EmbedRequest(5, ["d"])])
    first, second = sorted(guarded.wait(), key=lambda result: result.position)
    assert (first.position, second.position) == (0, 5)
    assert first.vectors.shape == (3, 16)
    assert first.errors + second.errors == [None] * 4
    assert engine.starts == 2


def test_an_engine_that_does_not_start_again_ends_the_job():
    class Stuck(Recorder):
        def start(self):
            if self.starts:
                raise EngineError("no memory left to start")
            super().start()

    guarded = RestartingEngine(Stuck(task="generate", options={"die_on": "t1"}), 5)
    guarded.start()
    guarded.submit([GenerateRequest(i, f"t{i}", {}) for i in range(3)])
    with pytest.raises(EngineError, match="no memory left"):
        guarded.wait()


def test_an_engine_of_the_caller_is_not_restarted(jobs):
    with pytest.raises(EngineError, match="died on"):
        jobs.generate(table_of(9, 4), options={"die_on": POISON})
    assert jobs.engine.started


def test_poison_rows_can_be_run_again(tmp_path):
    out = tmp_path / "o"
    summary = run("generate", table_of(30, 11), output=out)
    assert summary.errors == {"engine_died": 1}
    again = batch_sdk.resume(
        out, table_of(30, 11), errors=True, engine_options={"die_on": None}, progress=False
    )
    assert again.errors == {}
    assert pq.read_table(next(out.glob("part-*"))).column("error").null_count == 30
