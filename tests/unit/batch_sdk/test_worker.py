"""A worker by itself, without Ray: what it answers when all is well, and when nothing is."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineDiedError, EngineError, OutputError, SourceError
from batch_sdk.executors.worker import HELLO, Answer, Work, Worker, answer_of, as_row
from batch_sdk.job import GenerateJob
from batch_sdk.manifest import Part, package_versions
from batch_sdk.plan import GeneratePlan
from batch_sdk.sources import Source, open_source
from batch_sdk.units import Unit
from tests.unit.batch_sdk.deadly import NeverStarts, RaisesAnything

SOURCE = open_source(
    pa.table({"id": range(20), "text": [None if i == 3 else f"text {i}" for i in range(20)]})
)
UNIT = Unit("part-00001.parquet", 2, 5)


def work(folder: Path, engine: DummyEngine | None = None, **more) -> Work:
    job = GenerateJob(model="m", prompt="say {{ text }}", window_rows=4, batch_rows=2)
    known = {
        "job": job,
        "plan": GeneratePlan,
        "engine": engine or DummyEngine(model="m", task="generate", options={}),
        "versions": package_versions(),
        "folder": folder,
        "error_column": "error",
        "max_restarts": 2,
    }
    return Work(**{**known, **more})


def worker(work: Work, source: Source = SOURCE, place: str = "a") -> Worker:
    return Worker(lambda: pickle.loads(pickle.dumps((work, source))), place)


def ask(worker: Worker, unit: Unit | None = None) -> Answer:
    return answer_of(worker(HELLO if unit is None else as_row(unit)))


def test_a_part_has_its_rows_and_figures_and_is_nobodys_yet(tmp_path):
    made = worker(work(tmp_path))
    hello, first, again = ask(made), ask(made, UNIT), ask(made, UNIT)
    assert (hello.part, hello.file, hello.error) == (None, None, None)
    assert first.part == again.part == Part(UNIT.name, 2, 5, 16, 32, {"null_input": 1})
    assert first.file != again.file
    for answer in (first, again):
        assert answer.file.parent == tmp_path
        table = pq.read_table(answer.file)
        assert table.schema == hello.schema
        assert table.column("id").to_pylist() == [2, 3, 4, 5, 6]


def test_deaths_in_a_place_are_told_once_and_bounded(tmp_path):
    assert ask(worker(work(tmp_path))).restarts == 0
    assert ask(worker(work(tmp_path), place="b")).restarts == 0
    second = worker(work(tmp_path))
    assert (ask(second).restarts, ask(second, UNIT).restarts) == (1, 0)
    assert ask(worker(work(tmp_path))).restarts == 2
    assert str(ask(worker(work(tmp_path))).error).startswith(
        "a worker has died 3 times; wanted 2 times at most"
    )


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (NeverStarts, "no weights in 'm'; wanted a model; look there"),
        (
            RaisesAnything,
            "a worker failed: ValueError: first line; see Ray's logs of its workers for the cause",
        ),
    ],
)
def test_an_engine_that_does_not_start_is_an_answer_in_one_line(tmp_path, engine, says):
    made = worker(work(tmp_path, engine(model="m", task="generate", options={})))
    for unit in (None, UNIT):
        error = ask(made, unit).error
        assert type(error) is EngineError
        assert str(error) == says


def test_an_engine_that_dies_is_started_again_and_then_ends_the_worker(tmp_path):
    poison = DummyEngine(model="m", task="generate", options={"die_on": "text 4"})
    answer = ask(worker(work(tmp_path, poison, max_restarts=4)), UNIT)
    assert answer.part.errors == {"null_input": 1, "engine_died": 1}
    assert answer.restarts > 0
    dead = DummyEngine(model="m", task="generate", options={"die_after_requests": 1})
    made = worker(work(tmp_path / "none", dead, max_restarts=0))
    assert type(ask(made, UNIT).error) is OutputError  # there is no such folder
    made = worker(work(tmp_path, dead, max_restarts=0), place="c")
    for _ in range(2):
        assert type(ask(made, UNIT).error) is EngineDiedError
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("part")]) == 1


def test_other_versions_and_other_inputs_are_refused(tmp_path):
    other = {**package_versions(), "sglang": "0.0.1"}
    error = ask(worker(work(tmp_path, versions=other))).error
    assert str(error).endswith("wanted 0.0.1 as here; install the same on all machines")
    error = ask(worker(work(tmp_path), place="b"), Unit(UNIT.name, 18, 5)).error
    assert type(error) is SourceError
    assert str(error).startswith("the input has 20 rows where a worker reads it; wanted 23 at least")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("part")] == []


def test_a_pickled_source_of_files_is_read_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "year=2024").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "year=2024" / "x.parquet")
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(open_source("."))
    monkeypatch.chdir("/")
    found = pickle.loads(packed)
    assert [batch.to_pydict() for batch in found.batches(["year", "text"], 9)] == [
        {"year": [2024, 2024], "text": ["a", "b"]}
    ]
    assert found.paths == (tmp_path / "year=2024" / "x.parquet",)
