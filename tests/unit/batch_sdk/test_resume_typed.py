"""Jobs with typed responses, chats and other files than Parquet, stopped and gone on with."""

from __future__ import annotations

import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk.errors import EngineError, OutputError

MODULE = "ticket_of_a_test"
SOURCE = """
import pydantic

class Ticket(pydantic.BaseModel):
    title: str
    tags: list[str]
    urgent: bool | None = None
"""
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sort {{ text }}"}]


@pytest.fixture
def ticket(monkeypatch):
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(SOURCE, module.__dict__)
    return module.Ticket


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": i, "text": f"text {i}", "budget": None if i % 3 else 40 + i} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(ticket, **more):
    return {
        "messages": MESSAGES, "model": "m", "engine": "dummy", "response_format": ticket, "max_new_tokens": 64,
        "sampling_columns": {"max_new_tokens": "budget"}, "rows_per_file": 6, "batch_rows": 3,
        "window_rows": 5, "max_restarts": 0, "progress": False, **more,
    }  # fmt: skip


def read(folder):
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def stop(ticket, lines, out, after):
    with pytest.raises(EngineError, match="died after"):
        batch_sdk.generate(lines, output=out, engine_options={"die_after_requests": after}, **job(ticket))


@pytest.mark.parametrize("after", [0, 4, 13, 19])
def test_by_the_manifest_alone(ticket, lines, tmp_path, after):
    whole, out = tmp_path / "whole", tmp_path / "out"
    batch_sdk.generate(lines, output=whole, **job(ticket))
    stop(ticket, lines, out, after)
    summary = batch_sdk.resume(out, engine_options={"die_after_requests": None}, progress=False)
    assert summary.rows == 20
    assert read(out).equals(read(whole))
    assert pa.types.is_struct(read(out).schema.field("response").type)


def test_by_the_same_call(ticket, lines, tmp_path):
    out = tmp_path / "out"
    stop(ticket, lines, out, 7)
    batch_sdk.generate(lines, output=out, resume=True, **job(ticket))
    assert batch_sdk.status(out).state == "complete"
    assert read(out).column("id").to_pylist() == list(range(20))


def test_another_model_class_is_refused(ticket, lines, tmp_path):
    import pydantic

    class Ticket(pydantic.BaseModel):
        title: str

    out = tmp_path / "out"
    stop(ticket, lines, out, 7)
    with pytest.raises(OutputError, match="response_format was"):
        batch_sdk.generate(lines, output=out, resume=True, **job(Ticket))


def test_a_class_that_is_not_there_any_more(ticket, lines, tmp_path, monkeypatch):
    out = tmp_path / "out"
    stop(ticket, lines, out, 7)
    monkeypatch.delitem(sys.modules, MODULE)
    with pytest.raises(OutputError, match=r"pydantic model ticket_of_a_test:Ticket.*resume=True"):
        batch_sdk.resume(out)
