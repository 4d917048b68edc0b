"""Prometheus' view of a job that runs, and the engine's prefix cache in all figures."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request

import pyarrow as pa
import pytest
from aiohttp import web

import batch_sdk
from batch_sdk import errors
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.engines.openai_api import generated as from_openai
from batch_sdk.engines.sglang_answers import generated as from_sglang
from batch_sdk.report.recorder import Recorder
from tests.engine.servers import free_port
from tests.unit.batch_sdk.stub_server import running_stubs


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


class Scraped(DummyEngine):
    """Is asked for its metrics whenever it is about to answer."""

    port = 0
    seen: list[dict[str, float]]

    def wait(self):
        self.seen.append(scrape(self.port))
        return super().wait()


def start(task: str, port: int, **options) -> Scraped:
    engine = Scraped(model='m "ü"', task=task, options={"shuffle": True, **options})
    engine.port, engine.seen = port, []
    engine.start()
    return engine


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_a_running_job_is_scraped(task, tmp_path):
    port = free_port()
    engine = start(task, port, fail_on="bad")
    rows = 101
    table = pa.table({"text": [None if i == 5 else "bad" if i % 10 == 0 else f"t {i}" for i in range(rows)]})
    options = {"model": engine, "metrics_port": port, "window_rows": 20, "batch_rows": 7, "progress": False}
    options |= {"output": tmp_path / "o.parquet", "limit_rows": 99}
    if task == "embed":
        summary = batch_sdk.embed(table, column="text", block_rows=3, **options)
    else:
        summary = batch_sdk.generate(table, prompt="say {{ text }}", **options)
    first, last = engine.seen[0], engine.seen[-1]
    assert first["arctic_batch_rows_in_flight"] > 10
    assert all(0 < one["arctic_batch_rows_in_flight"] <= 20 for one in engine.seen)
    done = [one["arctic_batch_rows_total"] for one in engine.seen]
    assert done == sorted(done)
    assert done[0] <= 1
    assert last["arctic_batch_rows_total"] + last["arctic_batch_rows_in_flight"] == 99
    assert last["arctic_batch_rows_expected"] == 99
    assert last["arctic_batch_engine_ready"] == 1
    assert last["arctic_batch_engine_restarts_total"] == last["arctic_batch_rows_before"] == 0
    assert last['arctic_batch_error_rows_total{kind="null_input"}'] == 1
    assert 5 <= last['arctic_batch_error_rows_total{kind="rejected"}'] <= summary.errors["rejected"]
    assert 0 < last["arctic_batch_prompt_tokens_total"] <= summary.prompt_tokens
    assert (last["arctic_batch_completion_tokens_total"] > 0) == (task == "generate")
    assert "arctic_batch_cached_prompt_tokens_total" not in last
    (job,) = (name for name in last if name.startswith("arctic_batch_job_info"))
    assert f'command="{task}"' in job
    assert r'model="m \"ü\""' in job
    assert all(re.match(r"arctic_batch_\w+(\{.*\})?$", name) for name in last)
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_counters_are_of_this_run(tmp_path):
    table = pa.table({"text": ["bad" if i == 1 else f"t{i}" for i in range(30)]})
    options = {
        "prompt": "{{ text }}",
        "output": tmp_path / "o",
        "window_rows": 4,
        "batch_rows": 2,
        "progress": False,
    }
    engine = {"engine": "dummy", "engine_options": {"fail_on": "bad", "die_after_requests": 12}}
    with pytest.raises(errors.EngineError):
        batch_sdk.generate(table, model='m "ü"', **engine, **options, max_restarts=0)
    kept = batch_sdk.status(tmp_path / "o")
    assert kept.rows >= 10
    assert kept.errors == {"rejected": 1}
    port = free_port()
    engine = start("generate", port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batch_sdk.api.engine_name", lambda engine: "dummy")
        batch_sdk.generate(table, model=engine, metrics_port=port, resume=True, **options)
    first, last = engine.seen[0], engine.seen[-1]
    assert first["arctic_batch_rows_before"] == kept.rows
    assert first["arctic_batch_rows_total"] == first["arctic_batch_prompt_tokens_total"] == 0
    assert first['arctic_batch_error_rows_total{kind="rejected"}'] == 0
    assert last["arctic_batch_rows_total"] + last["arctic_batch_rows_in_flight"] == 30 - kept.rows


def test_it_is_served_while_the_engine_starts_and_ends_when_that_fails():
    port = free_port()
    seen = []

    class Starting(DummyEngine):
        def start(self):
            seen.append(scrape(port))
            raise errors.EngineError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batch_sdk.engines.dummy.DummyEngine", Starting)
        with pytest.raises(errors.EngineError, match="no memory"):
            batch_sdk.embed(pa.table({"t": ["a"]}), column="t", model="m", engine="dummy", metrics_port=port)
    assert seen[0]["arctic_batch_engine_ready"] == 0
    with pytest.raises(urllib.error.URLError):
        scrape(port)


@pytest.mark.parametrize("port", [0, -1, 65536, "9400", True, 94.0])
def test_no_port(port):
    with pytest.raises(errors.OptionError, match=r"metrics_port=.*1 to 65535"):
        batch_sdk.embed(pa.table({"t": ["a"]}), column="t", model="m", engine="dummy", metrics_port=port)


def test_a_port_in_use_is_said_before_the_engine_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(DummyEngine, "start", lambda self: pytest.fail("the engine was started"))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            errors.OptionError, match=rf"metrics_port={port}: Address already in use.*free"
        ) as caught:
            batch_sdk.embed(
                pa.table({"t": ["a"]}), column="t", model="m", engine="dummy", metrics_port=port,
                output=tmp_path / "out", report=tmp_path / "run",
            )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def cached_words(stub, body, seen):
    """The first request finds nothing, as SGLang then says nothing; all others find two tokens."""
    text = body["prompt"]
    usage = {"prompt_tokens": 4, "completion_tokens": 1}
    if text != "say t t0":
        usage["prompt_tokens_details"] = {"cached_tokens": 2}
    return web.json_response({"choices": [{"text": "x", "finish_reason": "stop"}], "usage": usage})


def test_the_hit_rate_is_in_the_summary_the_bar_the_metrics_and_the_report(tmp_path, capsys, monkeypatch):
    port = free_port()
    seen = []
    real = Recorder.add
    monkeypatch.setattr(
        Recorder, "add", lambda self, *args: (seen.append(scrape(port)), real(self, *args))[1]
    )
    with running_stubs() as stubs:
        summary = batch_sdk.generate(
            pa.table({"text": [f"t{i}" for i in range(10)]}), prompt="say t {{ text }}", chat=False, model="m",
            engine="http", engine_options={"url": stubs.start(trouble=cached_words).url}, progress=True,
            output=tmp_path / "o", report=tmp_path / "run", metrics_port=port,
        )  # fmt: skip
    assert (summary.cached_tokens, summary.cache_hit_rate) == (18, 18 / 40)
    assert "cached    18 of the prompt tokens (45.0%)" in str(summary)
    assert "45% cached" in capsys.readouterr().err
    assert seen[-1]["arctic_batch_cached_prompt_tokens_total"] == 18
    assert "45.0%" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_the_hit_rate_is_of_this_run(tmp_path):
    class Caching(DummyEngine):
        def _generate(self, request):
            return super()._generate(request)._replace(cached_tokens=1)

    table = pa.table({"text": [f"a b c t{i}" for i in range(20)]})
    options = {
        "prompt": "{{ text }}",
        "output": tmp_path / "o",
        "window_rows": 4,
        "batch_rows": 2,
        "progress": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batch_sdk.engines.dummy.DummyEngine", Caching)
        patch.setattr("batch_sdk.api.engine_name", lambda engine: "dummy")
        shared = {"model": "m", "engine": "dummy", "max_restarts": 0, "chat": False, **options}
        with pytest.raises(errors.EngineError):
            batch_sdk.generate(table, engine_options={"die_after_requests": 8}, **shared)
        summary = batch_sdk.generate(table, resume=True, **shared)
    assert 0 < summary.earlier_rows < 20
    assert summary.cached_tokens == 20 - summary.earlier_rows
    assert summary.cache_hit_rate == 0.25
    assert "of the prompt tokens of this run (25.0%)" in str(summary)


def test_an_engine_that_does_not_say(jobs):
    _, summary = jobs.generate(pa.table({"text": ["a"]}), return_summary=True)
    assert (summary.cached_tokens, summary.cache_hit_rate) == (None, None)
    assert "cached" not in str(summary)


def test_what_engines_say():
    meta = {"finish_reason": {"type": "stop"}, "prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 0}
    answer = {"text": "x", "meta_info": meta}
    assert from_sglang(0, answer, False).cached_tokens == 0
    # SGLang runs the prompt before its samples, so that every one of them finds it.
    assert from_sglang(0, [answer, answer], False).cached_tokens is None
    choice = {"text": "x", "finish_reason": "stop"}
    for details, cached in ((None, None), ({}, None), ({"cached_tokens": 0}, 0), ({"cached_tokens": 7}, 7)):
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": details}
        assert from_openai(0, {"choices": [choice], "usage": usage}).cached_tokens == cached
        assert from_openai(0, {"choices": [choice] * 2, "usage": usage}, 2).cached_tokens == cached
