"""Suffix decoding's index against ArcticInference's, on the same traces with the same settings.

A server of 32 concurrent requests is played: each step takes in what every running request has just
generated and drafts; the draft's tokens that the trace has, and one more, are generated. A request that ends
makes room for the next, whose prompt takes `ceil(tokens / 8192)` steps of prefill in which nobody else moves.
Reported: accepted draft tokens per step and request; time in the index per generated token (all of it:
prompts, updates, drafts, ends); memory per token held; the longest step while a 32,000-token prompt arrives.

    python benchmarks/suffix_index.py --peer PATH    # a folder with arctic_inference/suffix_decoding in it

The peer is built from the sdist of arctic-inference 0.3.0 (its suffix_decoding folder and the extension that
csrc/suffix_decoding gives with cmake and nanobind 2.9.2); without --peer only ours is measured.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.suffix_traces import Int32, Request
from speculative.suffix import SuffixProposer, SuffixSettings

CONCURRENT = 32
PREFILL = 8192
DRAFT = 32


class Ours:
    """`SuffixProposer`, timed."""

    def __init__(self, capacity: int, **changed: Any) -> None:
        self.index = SuffixProposer(SuffixSettings(capacity_tokens=capacity, max_draft=DRAFT, **changed))

    def start(self, prompt: Int32) -> int:
        return self.index.start(prompt, prompt[:0])

    def step(self, ids: list[int], news: list[Int32], contexts: list[Int32]) -> list[Int32]:
        offsets = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(new) for new in news], out=offsets[1:])
        tokens = np.concatenate(news)
        drafts = self.index.step(np.array(ids, np.int32), tokens, offsets, np.full(len(ids), DRAFT, np.int32))
        return [drafts.tokens[row, : drafts.lengths[row]] for row in range(len(ids))]

    def work(self) -> None:
        self.index.work()

    def stop(self, slot: int) -> None:
        self.index.stop(slot)


class Peer:
    """ArcticInference's cache as its vLLM integration calls it: request by request."""

    def __init__(self, capacity: int) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self.cache = SuffixDecodingCache(max_tree_depth=64)
        self.started = 0

    def start(self, prompt: Int32) -> int:
        self.started += 1
        self.cache.start_request(self.started, prompt)
        return self.started

    def step(self, ids: list[int], news: list[Int32], contexts: list[Int32]) -> list[Any]:
        drafts = []
        for request, new, context in zip(ids, news, contexts, strict=True):
            if len(new):
                self.cache.add_active_response(request, new)
            drafts.append(self.cache.speculate(request, context, max_spec_tokens=DRAFT).token_ids)
        return drafts

    def work(self) -> None:
        pass

    def stop(self, slot: int) -> None:
        self.cache.stop_request(slot)


class Clock:
    """Time spent in the index."""

    def __init__(self) -> None:
        self.total = self.longest = 0.0

    def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        begun = time.perf_counter()
        result = call(*args)
        took = time.perf_counter() - begun
        self.total += took
        self.longest = max(self.longest, took)
        return result


def play(arm: Any, requests: Iterable[Request], concurrent: int = CONCURRENT) -> dict[str, Any]:
    """Plays a trace; see the top."""
    clock, waiting = Clock(), iter(requests)
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
        drafts = clock(arm.step, [row[0] for row in running], [row[4] for row in running], contexts)
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
        "microseconds_per_token": round(clock.total / generated * 1e6, 3),
        "microseconds_per_step_and_request": round(clock.total / steps * 1e6, 3),
        "longest_call_ms": round(clock.longest * 1e3, 2),
        "steps": steps,
        "generated": generated,
    }
