"""The client of the benchmarks over HTTP, against a server that streams as SGLang does."""

import asyncio
import importlib
import json
import time
from pathlib import Path

import pytest
from aiohttp import web

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def load(name):
    return importlib.import_module(name)


class Server:
    """Streams a token every `gap` seconds once `together` were asked for; `say` may replace the messages."""

    def __init__(self, gap=0.0, say=None, together=1):
        self.gap, self.say, self.together = gap, say, together
        self.asked, self.gone, self.all_here = [], 0, asyncio.Event()

    async def generate(self, request):
        if request.headers.get("Content-Type") != "application/json":
            return web.Response(status=415)
        asked = await request.json()
        self.asked.append(asked)
        if len(self.asked) == self.together:
            self.all_here.set()
        await self.all_here.wait()
        count = asked["sampling_params"]["max_new_tokens"]
        messages = self.say or [
            {"meta_info": {"completion_tokens": n + 1, "finish_reason": None}} for n in range(count)
        ]
        reply = web.StreamResponse()
        await reply.prepare(request)
        try:
            for message in messages:
                await asyncio.sleep(self.gap)
                await reply.write(b"data: " + json.dumps(message).encode() + b"\n\n")
            await reply.write(b"data: [DONE]\n\n")
        except ConnectionError:
            self.gone += 1
        return reply

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/generate", self.generate)
        self.runner = web.AppRunner(app, shutdown_timeout=1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error):
        await self.runner.cleanup()


def answer(server, tokens_out=5, stop_after=None):
    stream = load("http_stream")

    async def ask():
        async with server, stream.session(5) as http:
            found = await stream.stream(http, server.url, stream.body([3, 4], tokens_out), stop_after)
            if stop_after is not None:
                await asyncio.sleep(0.3)
            return found

    return asyncio.run(ask())


def test_a_whole_answer_is_timed_from_its_first_token_to_its_last():
    server = Server(gap=0.03)
    found = answer(server)
    assert found.error is None
    assert found.tokens == 5
    assert found.first - found.sent >= 0.03
    assert found.last - found.first > 0.1
    sampling = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    assert server.asked == [{"input_ids": [3, 4], "sampling_params": sampling, "stream": True}]


@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_client_that_hangs_up_is_seen_by_the_server(stop_after):
    server = Server(gap=0.02)
    found = answer(server, tokens_out=500, stop_after=stop_after)
    assert found.error is None
    assert found.tokens == stop_after
    assert server.gone == 1


@pytest.mark.parametrize(
    ("say", "words"),
    [
        ([{"error": {"message": "too long"}}], "too long"),
        (
            [{"meta_info": {"completion_tokens": 2, "finish_reason": {"type": "abort", "message": "gone"}}}],
            "aborted: gone",
        ),
    ],
)
def test_what_the_server_refuses_or_aborts_is_an_error(say, words):
    found = answer(Server(say=say))
    assert words in found.error


def test_no_server_is_an_error_of_that_request():
    stream = load("http_stream")

    async def ask():
        async with stream.session(5) as http:
            return await stream.stream(http, "http://127.0.0.1:9", stream.body([3], 1))

    found = asyncio.run(ask())
    assert "ClientConnectorError" in found.error
    assert found.first is None


def test_requests_are_sent_at_their_times_whatever_became_of_those_before():
    trace, traffic, figures = load("shift_trace"), load("traffic"), load("trace_figures")
    requests = [traffic.Request(at, 2, 4, "quiet", "code") for at in (0.0, 0.1, 0.2, 0.3)]

    async def play(server):
        async with server:
            bodies = [load("http_stream").body([3, 4], r.tokens_out) for r in requests]
            return await trace._send(server.url, requests, bodies, time.monotonic() + 0.1)

    rows = [
        dict(zip(figures.FIELDS, row, strict=True)) for row in asyncio.run(play(Server(gap=0.2, together=4)))
    ]
    assert [row["at"] for row in rows] == [0.0, 0.1, 0.2, 0.3]
    assert [row["error"] for row in rows] == [None] * 4
    # Nobody is answered until all are there, so none has waited for the one before.
    assert all(row["late"] > -0.005 for row in rows)  # a timer may be early by its resolution
    assert all(row["ttft"] > 0.15 and row["tpot"] > 0.15 for row in rows)


def test_a_soak_counts_answers_failures_and_those_it_hung_up_on():
    soak = load("shift_soak")

    async def run(server, steps):
        async with server:
            work = soak.Soak(server.url, 100, 8, 5, seed=0)
            seconds = await work.run(steps)
            return work, seconds

    steps = [
        soak.Step(0.0, 5, 3, None, None, None),
        soak.Step(0.1, 5, 100, 2, None, None),
        soak.Step(0.2, 2, 4, None, None, 3),
    ]
    server = Server(gap=0.01)
    work, seconds = asyncio.run(run(server, steps))
    assert (work.counts, work.failed) == ({"whole": 2, "hung_up": 1, "fixed": 0}, [])
    assert seconds >= 0.2
    assert server.asked[2]["input_ids"] == work.fixed[3][:2]
    short = Server(say=[{"meta_info": {"completion_tokens": 1, "finish_reason": None}}])
    work, _ = asyncio.run(run(short, steps[:1]))
    assert work.failed == ["1 tokens came, and 3 were asked for"]


def test_every_arm_is_a_server_of_the_same_kv_memory():
    trace = load("shift_trace")
    args = trace.parse(["start", "--folder", "x", "--gpus", "4", "--kv-tokens", "8192"])
    found = {arm: trace.arm_options(arm, args) for arm in trace.ARMS}
    assert {arm: options["max_total_tokens"] for arm, options in found.items()} == {
        "tp": 8192, "dp": 2048, "sp": 8192, "shift": 8192, "all": 8192,
    }  # fmt: skip
    flags = load("servers").flags(found["shift"])
    assert flags[flags.index("--shift-parallel-threshold") + 1] == "auto"
    assert "--enable-shift-parallel" in flags
    assert "--quantization" not in flags
