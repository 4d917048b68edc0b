"""Served SwiftKV models against their twin in transformers, on real SGLang servers on the CPU."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.combinations import ELSEWHERE, made_of
from tests.engine.servers import running_engine
from tests.swiftkv_cases import compare, flush, generate, make_model, prefill_steps, prompts

TOLERANCE = 2e-5  # natural log; float32 on both sides
CHUNK = 64
# Family, group size, ranks. The first two have each number; `make test-full` has every combination.
OFTEN = [("llama", 4, 2), ("qwen3", 2, 1)]
OTHERS = [s for s in itertools.product(("llama", "qwen2"), (1, 2, 4), (1, 2)) if s not in OFTEN]
SERVERS = [*OFTEN, *(pytest.param(s, marks=pytest.mark.full) for s in OTHERS)]


@dataclass
class Served:
    engine: Any
    twin: Any
    log: Path

    def steps(self):
        return prefill_steps(self.log.read_text())


@pytest.fixture(scope="module", params=SERVERS, ids=lambda p: f"{p[0]}-group{p[1]}-tp{p[2]}")
def served(request, tmp_path_factory):
    """An engine that cuts every prefill, and the twin."""
    family, group_size, tp_size = request.param
    folder = tmp_path_factory.mktemp("swiftkv")
    twin = make_model(folder, family, group_size=group_size)
    log = folder / "engine.log"
    options = {
        "skip_tokenizer_init": True, "dtype": "float32", "chunked_prefill_size": CHUNK, "swiftkv_min_tokens": 0,
        "tp_size": tp_size, "max_total_tokens": 8192, "enable_mixed_chunk": True, "log_level": "info",
    }  # fmt: skip
    with running_engine(log, model_path=str(folder), **options) as engine:
        if request.param in OFTEN:
            assert made_of(engine.server_args, "swiftkv") in ELSEWHERE["test_swiftkv"]
        yield Served(engine, twin, log)


def check(served, asked, **fields):
    answers = generate(served.engine, asked, return_logprob=True, **fields)
    found = compare(served.twin, asked, answers)
    print(found)
    assert found.outputs
    assert found.other_tokens == 0
    assert max(found.output, found.prompt) < TOLERANCE
    return found


def test_ragged_batch(served):
    asked = prompts(1, 2, 5, 17, 90, 33, 64, 65, 200)
    check(served, asked, new_tokens=12)
    steps = served.steps()
    assert max(tokens for _, tokens in steps) <= CHUNK


def test_prompt_logprobs_from_any_start(served):
    asked = prompts(1, 7, 30, 64, 100, 150, seed=1)
    found = check(served, asked, logprob_start_len=0)
    assert found.prompts == sum(map(len, asked)) - len(asked)
    for starts in ([0, 3, 29, -1, 99, 70], [-1, 6, 10, 63, -1, 149]):
        flush(served.engine)
        check(served, asked, logprob_start_len=starts)


def test_cached_prefix_equals_cold(served):
    long = prompts(180, seed=2)[0]
    check(served, [long])
    asked = [long[:n] + prompts(m, seed=n)[0] for n, m in ((1, 4), (40, 1), (64, 30), (100, 90), (179, 1))]
    answers = generate(served.engine, asked, return_logprob=True)
    assert sum(a["meta_info"]["cached_tokens"] for a in answers) > 300
    warm = compare(served.twin, asked, answers)
    assert warm.other_tokens == 0
    assert warm.output < TOLERANCE
    flush(served.engine)
    cold = generate(served.engine, asked, return_logprob=True)
    assert [a["output_ids"] for a in cold] == [a["output_ids"] for a in answers]


def test_every_cut_of_a_chunk(served):
    """A step holds 64 tokens, so behind a cached prefix of n a longer prompt is cut at n and at n + 64."""
    flush(served.engine)
    asked = [prompts(cut + CHUNK + 5, seed=100 + cut)[0] for cut in range(1, CHUNK + 1)]
    check(served, [prompt[:cut] for cut, prompt in enumerate(asked, 1)], new_tokens=1)
    before = len(served.steps())
    for cut, prompt in enumerate(asked, 1):
        # Prompt logprobs need their rows, so with them SGLang computes a prompt from there on anew.
        check(served, [prompt], new_tokens=1, logprob_start_len=0 if cut == CHUNK else -1)
    steps = [tokens for _, tokens in served.steps()[before:]]
    assert steps[: 2 * (CHUNK - 1)] == [CHUNK, 5] * (CHUNK - 1)


def test_mixed_steps(served):
    """Decode rows ride in prefill steps; SGLang never mixes where logprobs are asked for."""
    flush(served.engine)
    asked = prompts(3, 200, 9, 130, 65, 5, seed=5)
    alone = [generate(served.engine, [one], new_tokens=16)[0]["output_ids"] for one in asked]
    flush(served.engine)
    together = generate(served.engine, asked, new_tokens=16)
    assert [a["output_ids"] for a in together] == alone
    scored = compare(served.twin, asked, generate(served.engine, asked, new_tokens=16, return_logprob=True))
    assert scored.other_tokens == 0
    assert "#running-req: 1" in served.log.read_text()
