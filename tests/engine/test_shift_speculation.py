"""Speculation with Shift Parallelism against transformers: verify steps in either mode, on ranks of a CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.engine.servers import running_engine
from tests.swiftkv_cases import compare, generate

pytestmark = pytest.mark.full  # test_combinations has some of it each time
ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "examples" / "tiny_lm" / "model")
HEAD = str(ROOT / "examples" / "tiny_lm" / "speculator")
TOLERANCE = 2e-5  # natural log; float32 on both sides
# Head (the index is always there), overlap, ranks of the base tensor parallelism, of a sequence group, threshold.
SERVERS = [
    (True, True, 1, 2, "24"),
    (True, False, 2, 2, "8"),
    (True, True, 1, 2, None),
    (False, True, 1, 2, "24"),
]


@dataclass
class Served:
    engine: Any
    twin: Any
    head: bool
    threshold: str | None

    def steps(self):
        return self.engine.get_server_info()["internal_states"][0]["shift"]["steps"]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda p: f"{p[0]}-{p[1]}-tp{p[2]}-sp{p[3]}-{p[4]}")
def served(request, tmp_path_factory):
    head, overlap, tp, sp, threshold = request.param
    options = {
        "dtype": "float32", "chunked_prefill_size": 64, "max_total_tokens": 4096, "max_running_requests": 16,
        "disable_overlap_schedule": not overlap, "tp_size": tp, "ulysses_sequence_parallel_size": sp,
    }  # fmt: skip
    options |= {"speculative_algorithm": "SUFFIX"}
    if head:
        options |= {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": HEAD}
        options |= {"enable_suffix_decoding": True}
    if threshold is not None:
        options |= {"enable_shift_parallel": True, "shift_parallel_threshold": threshold}
    twin = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCTIC_SGLANG_UNTIMED", "1")  # as many drafts on a busy machine
        log = tmp_path_factory.mktemp("shift") / "engine.log"
        with running_engine(log, model_path=TINY, **options) as engine:
            yield Served(engine, twin, head, threshold)


def test_greedy_answers_and_their_logprobs(served, functions):
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    asked = [tokenizer(function[:150])["input_ids"] for function in functions[:40]]
    before = served.steps()
    # Alone a step of drafts is one of few tokens, in a batch one of many; the second time the index knows the answers.
    for batch in (asked[:1], asked, asked):
        answers = generate(served.engine, batch, new_tokens=16, return_logprob=True)
        found = compare(served.twin, batch, answers)
        print(found)
        assert found.outputs == 16 * len(batch)
        assert found.other_tokens == 0
        assert found.output < TOLERANCE
        drafted = sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers)
        print(drafted, "draft tokens accepted,", served.steps())
        if served.head:
            assert drafted > 0
    assert drafted > 4 * len(asked)
    steps = {mode: count - before[mode] for mode, count in served.steps().items()}
    assert steps["sp"] > 0
    assert (steps["tp"] > 0) == (served.threshold is not None)
