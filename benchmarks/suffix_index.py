"""Suffix decoding's index against ArcticInference's, on the same traces with the same settings.

A server of 32 concurrent requests is played: each step takes in what every running request has just
generated and drafts; the draft's tokens that the trace has, and one more, are generated. A request that ends
makes room for the next, whose prompt takes `ceil(tokens / 8192)` steps of prefill in which nobody else moves.
Reported: accepted draft tokens per step and request; time in the index per generated token (processor time, one
thread), of updates and drafts alone, and of all of it, prompts and ends too; memory per token held; the longest step
while a 32,000-token prompt arrives.

    python benchmarks/suffix_index.py --peer PATH    # a folder with arctic_inference/suffix_decoding in it

The peer is built from the sdist of arctic-inference 0.3.0 (its suffix_decoding folder and the extension that
csrc/suffix_decoding gives with cmake and nanobind 2.9.2); without --peer only ours is measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import common
import numpy as np
import suffix_traces
from suffix_traces import Int32, Request

from speculative.suffix import SuffixProposer, SuffixSettings

CONCURRENT = 32
PREFILL = 8192
DRAFT = 32
LONG = 32_000
REPEATS = 9
PLAYS = 3  # of each trace by each arm, in turn, each in a process of its own
PLAY_SECONDS = (
    2.0  # of processor time at least: a short trace is played again and again, on a new index each time
)


class Ours:
    """`SuffixProposer`, timed."""

    def __init__(self, capacity: int, **changed: Any) -> None:
        self.index = SuffixProposer(SuffixSettings(capacity_tokens=capacity, max_draft=DRAFT, **changed))

    def start(self, prompt: Int32) -> int:
        """A request begins: what it is known by."""
        return self.index.start(prompt, prompt[:0])

    def step(self, ids: list[int], news: list[Int32], contexts: list[Int32]) -> list[Int32]:
        """Takes in what is new, then the drafts, row by row."""
        offsets = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(new) for new in news], out=offsets[1:])
        tokens = np.concatenate(news)
        drafts = self.index.step(np.array(ids, np.int32), tokens, offsets, np.full(len(ids), DRAFT, np.int32))
        return [drafts.tokens[row, : drafts.lengths[row]] for row in range(len(ids))]

    def work(self) -> None:
        """What was put off, once a step."""
        self.index.work()

    def stop(self, slot: int) -> None:
        """The request is over."""
        self.index.stop(slot)


class Peer:
    """ArcticInference's cache as its vLLM integration calls it: request by request."""

    def __init__(self, capacity: int) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self.cache = SuffixDecodingCache(max_tree_depth=64)
        self.started = 0

    def start(self, prompt: Int32) -> int:
        """A request begins: what it is known by."""
        self.started += 1
        self.cache.start_request(self.started, prompt)
        return self.started

    def step(self, ids: list[int], news: list[Int32], contexts: list[Int32]) -> list[Any]:
        """Takes in what is new, then the drafts, row by row."""
        drafts = []
        for request, new, context in zip(ids, news, contexts, strict=True):
            if len(new):
                self.cache.add_active_response(request, new)
            drafts.append(self.cache.speculate(request, context, max_spec_tokens=DRAFT).token_ids)
        return drafts

    def work(self) -> None:
        """Nothing is put off."""

    def stop(self, slot: int) -> None:
        """The request is over."""
        self.cache.stop_request(slot)


class Clock:
    """Processor time spent in the index: on a machine with other work, time on the wall says little."""

    def __init__(self) -> None:
        self.total = self.longest = 0.0

    def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        """Calls, and notes how long it took."""
        begun = time.thread_time()
        result = call(*args)
        took = time.thread_time() - begun
        self.total += took
        self.longest = max(self.longest, took)
        return result


def play(arm: Any, requests: Iterable[Request], concurrent: int = CONCURRENT) -> dict[str, Any]:
    """Plays a trace; see the top."""
    clock, steps_clock, waiting = Clock(), Clock(), iter(requests)
    running: list[list[Any]] = []  # slot, request, its text, tokens generated, tokens not taken in yet
    steps = drafted = accepted = generated = 0
    while True:
        while len(running) < concurrent and (request := next(waiting, None)) is not None:
            text = np.concatenate([request.prompt, request.response])
            running.append(
                [clock(arm.start, request.prompt), request, text, 1, text[len(request.prompt) :][:1]]
            )
            for _ in range(-(-len(request.prompt) // PREFILL)):
                clock(arm.work)
        if not running:
            break
        contexts = [text[: len(r.prompt) + done][-64:] for _, r, text, done, _ in running]
        drafts = steps_clock(arm.step, [row[0] for row in running], [row[4] for row in running], contexts)
        clock(arm.work)
        for row, draft in zip(running, drafts, strict=True):
            _, request, text, done, _ = row
            rest = text[len(request.prompt) + done :]
            if len(rest) == 0:
                row[3] = -1
                continue
            same = np.asarray(draft[: len(rest)], np.int32) == rest[: len(draft)]
            right = int(np.argmin(np.append(same, False)))
            steps += 1
            drafted += len(draft)
            accepted += right
            row[4] = rest[: right + 1]
            row[3] += len(row[4])
            generated += len(row[4])
        for row in [row for row in running if row[3] < 0]:
            clock(arm.stop, row[0])
            running.remove(row)
    return {
        "accepted_per_step": round(accepted / steps, 4),
        "drafted_per_step": round(drafted / steps, 3),
        "update_and_speculate_us_per_token": round(steps_clock.total / generated * 1e6, 3),
        "all_us_per_token": round((steps_clock.total + clock.total) / generated * 1e6, 3),
        "longest_call_ms": round(max(steps_clock.longest, clock.longest) * 1e3, 2),
        "steps": steps,
        "generated": generated,
    }


def median_play(arm: Callable[[], Any], requests: list[Request]) -> dict[str, Any]:
    """The play of median speed among as many as `PLAY_SECONDS` hold."""
    begun, plays = time.thread_time(), []
    while not plays or time.thread_time() - begun < PLAY_SECONDS:
        plays.append(play(arm(), requests))
    return sorted(plays, key=lambda told: told["all_us_per_token"])[len(plays) // 2]


def memory(arm: str, requests: list[Request]) -> dict[str, Any]:
    """Growth of the process's resident memory over a trace whose responses all stay, per token they have.

    One request at a time, so that what running requests hold is small beside it.
    """
    tokens = sum(len(request.response) for request in requests)
    SuffixProposer().warm()
    before = _resident()
    index = Peer(0) if arm == "peer" else Ours(tokens + 8 * len(requests), active_tokens=1 << 16)
    for request in requests:
        slot = index.start(request.prompt[:0])
        for begin in range(0, len(request.response), 8):
            new = request.response[begin : begin + 8]
            index.step([slot], [new], [new])
        index.stop(slot)
    grown = _resident() - before
    return {"tokens": tokens, "resident_bytes_per_token": round(grown / tokens, 1)}


def delay(arm: str, requests: list[Request], length: int = LONG) -> dict[str, Any]:
    """The longest call into the index, in ms, while a prompt of `length` tokens arrives among running requests."""
    prompt = np.concatenate([r.prompt for r in requests])[:length]
    assert len(prompt) == length
    SuffixProposer().warm()
    index = Peer(0) if arm == "peer" else Ours(1 << 20)
    slots = [index.start(request.prompt[:2000]) for request in requests[:CONCURRENT]]
    for _ in range(20):
        index.work()
    times = []
    for at in range(REPEATS):
        news = [request.response[at : at + 1] for request in requests[:CONCURRENT]]
        clock = Clock()
        long = clock(index.start, prompt)
        alone = clock.longest
        for _ in range(8):
            clock(index.step, slots, news, news)
            clock(index.work)
        index.stop(long)
        times.append((clock.longest, alone))
    return {
        "longest_call_ms": common.summary([one[0] * 1e3 for one in times]),
        "start_ms": common.summary([one[1] * 1e3 for one in times]),
    }


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status; run this on Linux")


def _child(job: str, arm: str, traces: Path, peer: Path | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", job, arm, str(traces)]
    command += ["--peer", str(peer)] if peer else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _run_child(job: str, arm: str, path: Path) -> None:
    with np.load(path) as file:
        count = len(file.files) // 2
        requests = [Request(file[f"prompt{i}"], file[f"response{i}"]) for i in range(count)]
    if job == "play":
        SuffixProposer().warm()
        result = median_play(lambda: Peer(0) if arm == "peer" else Ours(1 << 21), requests)
    else:
        result = {"memory": memory, "delay": delay}[job](arm, requests)
    print(json.dumps(result))


def _arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--peer", type=Path, help="folder that holds arctic_inference")
    parser.add_argument(
        "--packages", type=Path, default=Path("build/suffix_traces"), help="where pip puts wheels"
    )
    parser.add_argument("--trajectories", type=Path, help="folder with *.traj.json for the trace `agent`")
    parser.add_argument("--limit", type=int, default=400, help="requests of a trace at most")
    parser.add_argument(
        "--skip-docs", action="store_true", help="leave out the tiny model's answers (slow to make)"
    )
    parser.add_argument("--child", nargs=3, metavar=("JOB", "ARM", "TRACE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Derives the traces, runs each arm in a process of its own, writes the result."""
    arguments = _arguments()
    if arguments.peer:
        sys.path.insert(0, str(arguments.peer))
    if arguments.child:
        job, arm, path = arguments.child
        return _run_child(job, arm, Path(path))
    arguments.packages.mkdir(parents=True, exist_ok=True)
    traces = {"edits": suffix_traces.edits(arguments.packages, arguments.limit)}
    if not arguments.skip_docs:
        traces["docs"] = suffix_traces.docs(arguments.limit)
    if arguments.trajectories:
        traces["agent"] = suffix_traces.agent(arguments.trajectories, arguments.limit)
    arms = ["ours", "peer"] if arguments.peer else ["ours"]
    result: dict[str, Any] = {
        "settings": {"max_draft": DRAFT, "max_depth": 64, "concurrent": CONCURRENT},
        "traces": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, requests in traces.items():
            path = Path(folder) / f"{name}.npz"
            np.savez(path, **_arrays(requests))
            told = {
                "requests": len(requests),
                "prompt_tokens": sum(len(r.prompt) for r in requests),
                "response_tokens": sum(len(r.response) for r in requests),
            }
            jobs = ("play", "memory", "delay") if name == "edits" else ("play",)
            runs: dict[str, Any] = {
                job: {arm: _child(job, arm, path, arguments.peer) for arm in arms} for job in jobs
            }
            again = [
                {arm: _child("play", arm, path, arguments.peer) for arm in arms} for _ in range(PLAYS - 1)
            ]
            for arm in arms:
                plays = [runs["play"][arm], *(play[arm] for play in again)]
                for figure in ("update_and_speculate_us_per_token", "all_us_per_token"):
                    runs["play"][arm][figure] = common.summary([play[figure] for play in plays])
            result["traces"][name] = told | runs
    common.write("suffix_index", result, arguments.out, arguments.commit)


def _arrays(requests: list[Request]) -> dict[str, Int32]:
    prompts = {f"prompt{i}": r.prompt for i, r in enumerate(requests)}
    return prompts | {f"response{i}": r.response for i, r in enumerate(requests)}


if __name__ == "__main__":
    main()
