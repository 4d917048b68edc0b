"""Served SwiftKV models against their twin in transformers, on real SGLang servers on the CPU."""

import itertools

import pytest

from tests.engine.servers import running_server
from tests.swiftkv_cases import compare, flush, generate, make_model, prefill_steps, prompts

TOLERANCE = 2e-5  # natural log; float32 on both sides
CHUNK = 64
SERVERS = [
    *itertools.product(("llama", "qwen2"), (1, 2, 4), (1, 2)),
    ("qwen3", 2, 1),
]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda p: f"{p[0]}-group{p[1]}-tp{p[2]}")
def served(request, tmp_path_factory):
    """A server that cuts every prefill, and the twin."""
    family, group_size, tp_size = request.param
    folder = tmp_path_factory.mktemp("swiftkv")
    twin = make_model(folder, family, group_size=group_size)
    args = [
        "--model-path", str(folder), "--skip-tokenizer-init", "--dtype", "float32",
        "--chunked-prefill-size", str(CHUNK), "--swiftkv-min-tokens", "0", "--tp-size", str(tp_size),
        "--max-total-tokens", "8192", "--enable-mixed-chunk",
    ]  # fmt: skip
    with running_server(args, folder / "server.log") as server:
        yield server, twin


def check(server, twin, asked, **fields):
    answers = generate(server.url, asked, return_logprob=True, **fields)
    found = compare(twin, asked, answers)
    print(found)
    assert found.outputs
    assert found.other_tokens == 0
    assert max(found.output, found.prompt) < TOLERANCE
    return found


def test_ragged_batch(served):
    server, twin = served
    asked = prompts(1, 2, 5, 17, 90, 33, 64, 65, 200)
    check(server, twin, asked, new_tokens=12)
    steps = prefill_steps(server.log.read_text())
    assert max(tokens for _, tokens in steps) <= CHUNK


def test_prompt_logprobs_from_any_start(served):
    server, twin = served
    asked = prompts(1, 7, 30, 64, 100, 150, seed=1)
    found = check(server, twin, asked, logprob_start_len=0)
    assert found.prompts == sum(map(len, asked)) - len(asked)
    for starts in ([0, 3, 29, -1, 99, 70], [-1, 6, 10, 63, -1, 149]):
        flush(server.url)
        check(server, twin, asked, logprob_start_len=starts)


def test_cached_prefix_equals_cold(served):
    server, twin = served
    long = prompts(180, seed=2)[0]
    check(server, twin, [long])
    asked = [long[:n] + prompts(m, seed=n)[0] for n, m in ((1, 4), (40, 1), (64, 30), (100, 90), (179, 1))]
    answers = generate(server.url, asked, return_logprob=True)
    assert sum(a["meta_info"]["cached_tokens"] for a in answers) > 300
    warm = compare(twin, asked, answers)
    assert warm.other_tokens == 0
    assert warm.output < TOLERANCE
    flush(server.url)
    cold = generate(server.url, asked, return_logprob=True)
    assert [a["output_ids"] for a in cold] == [a["output_ids"] for a in answers]


def test_every_cut_of_a_chunk(served):
    """A step holds 64 tokens, so behind a cached prefix of n a longer prompt is cut at n and at n + 64."""
    server, twin = served
    flush(server.url)
    asked = [prompts(cut + CHUNK + 5, seed=100 + cut)[0] for cut in range(1, CHUNK + 1)]
    check(server, twin, [prompt[:cut] for cut, prompt in enumerate(asked, 1)], new_tokens=1)
    before = len(prefill_steps(server.log.read_text()))
    for cut, prompt in enumerate(asked, 1):
        # Prompt logprobs need their rows, so with them SGLang computes a prompt from there on anew.
        check(server, twin, [prompt], new_tokens=1, logprob_start_len=0 if cut == CHUNK else -1)
    steps = [tokens for _, tokens in prefill_steps(server.log.read_text())[before:]]
    assert steps[: 2 * (CHUNK - 1)] == [CHUNK, 5] * (CHUNK - 1)


def test_mixed_steps(served):
    """Decode rows ride in prefill steps; SGLang never mixes where logprobs are asked for."""
    server, twin = served
    flush(server.url)
    asked = prompts(3, 200, 9, 130, 65, 5, seed=5)
    alone = [generate(server.url, [one], new_tokens=16)[0]["output_ids"] for one in asked]
    flush(server.url)
    together = generate(server.url, asked, new_tokens=16)
    assert [a["output_ids"] for a in together] == alone
    scored = compare(twin, asked, generate(server.url, asked, new_tokens=16, return_logprob=True))
    assert scored.other_tokens == 0
    assert "#running-req: 1" in server.log.read_text()
