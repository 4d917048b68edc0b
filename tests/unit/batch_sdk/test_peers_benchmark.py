"""The comparison with peers runs: on what is installed, with few rows, and says what is absent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engine.servers import free_port

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer_runs

    return peer_runs


def test_two_peers_answer_every_row_and_an_absent_one_is_named(tmp_path):
    command = [
        sys.executable, str(BENCHMARKS / "batch_peers.py"), "--out", str(tmp_path), "--commit", "none",
        "--parts", "speed", "--peers", "batch_sdk", "asyncio_aiohttp", "daft",
        "--daft-python", str(tmp_path / "no-python"), "--rows", "37", "--file-rows", "10", "--repeats", "1",
        "--port", str(free_port()), "--latency-ms", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert "absent: daft" in done.stderr
    part = json.loads((tmp_path / "batch_peers.json").read_text())["parts"]["speed"]
    assert set(part["setting"]["absent"]) == {"daft"}
    assert set(part["37"]) == {"batch_sdk", "asyncio_aiohttp"}
    for found in part["37"].values():
        assert found["all_rows_right"]
        (run,) = found["runs"]
        assert run["exit_code"] == 0
        assert run["server"]["requests"] == 37
        assert 1 <= run["server"]["peak_in_flight"] <= 64
        assert run["peak_mb"] > 1


def test_an_output_is_judged_by_what_it_holds(runs, tmp_path):
    right = [f"a summary of row {row}" for row in range(3)]
    pq.write_table(pa.table({"id": [0, 1, 2], "response": right}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [2, 4], "response": [None, "other"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"id": [3], "response": ["hidden"]}), tmp_path / "_c.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    seen = runs.look(tmp_path, 6, poison=4)
    assert seen == {
        "rows": 5, "lost": 2, "twice": 1, "right": 3, "unreadable_files": 1, "poison_row": {"response": "other"},
    }  # fmt: skip
    assert runs.look(tmp_path / "none", 6, poison=4)["lost"] == 6


def test_the_table_has_the_poison_where_it_was_asked(runs, tmp_path):
    runs.write_table(tmp_path / "in", 7, 3, {4: None})
    table = pq.read_table(tmp_path / "in")
    assert table["id"].to_pylist() == list(range(7))
    assert [row for row, body in enumerate(table["body"].to_pylist()) if body is None] == [4]
    assert len(list((tmp_path / "in").iterdir())) == 3
