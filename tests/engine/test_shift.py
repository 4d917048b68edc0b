"""Shift Parallelism against transformers: every mode, on ranks of a CPU, prefixes cached in one and read in another."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests import shift_cases
from tests.combinations import ELSEWHERE, made_of
from tests.engine.servers import added_plugin, running_engine
from tests.swiftkv_cases import compare, flush, generate, prompts

TOLERANCE = 2e-5  # natural log; float32 on both sides
CHUNK = 64
MIN_TOKENS = 40
FLIP = "flip"
# Family, ranks of the base tensor parallelism, of a sequence group, threshold (None: plain Ulysses; FLIP: every step
# has another mode than the one before). The first two have both modes, both groups of ranks, layers that sum for
# themselves and such where SGLang does it between them; SwiftKV models and a dense one in both modes by their size are
# in test_combinations each time. Steps of a SwiftKV model may have both modes below the cut, and those that go up whole
# both modes too.
OFTEN = [("qwen3_moe", 2, 2, "24"), ("llama", 1, 2, FLIP)]
OTHERS = [
    ("llama", 1, 2, "24"), ("llama", 1, 2, None), ("qwen3", 2, 2, None), ("qwen3_moe", 1, 2, "24"),
    ("qwen3_moe", 1, 2, None), ("qwen3_moe", 1, 2, "100000"), ("llama", 2, 2, "8"), ("qwen2", 1, 2, "24"),
    ("qwen2", 1, 2, None), ("mistral", 1, 2, "24"), ("qwen3", 1, 2, "24"), ("qwen3", 1, 2, "100000"),
    ("swiftkv-llama", 1, 2, "24"), ("swiftkv-qwen3", 1, 2, "50"), ("swiftkv-qwen2", 2, 2, None),
    ("swiftkv-llama", 2, 2, "24"),
]  # fmt: skip
SERVERS = [*OFTEN, *(pytest.param(s, marks=pytest.mark.full) for s in OTHERS)]


@dataclass
class Served:
    engine: Any
    twin: Any
    folder: str
    threshold: str

    def told(self):
        return self.engine.get_server_info()["internal_states"][0]["shift"]


def make_model(folder, family, heads):
    """Saves a random model of a small shape."""
    shape = {
        "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": heads,
        "head_dim": 32,
    }  # fmt: skip
    if family == "qwen3_moe":
        shape["moe_intermediate_size"] = 128
    return shift_cases.make_model(folder, family, **shape)


@pytest.fixture(scope="module", params=SERVERS, ids=lambda p: f"{p[0]}-tp{p[1]}-sp{p[2]}-{p[3]}")
def served(request, tmp_path_factory):
    family, tp, sp, threshold = request.param
    folder = tmp_path_factory.mktemp("shift")
    twin = make_model(folder, family, heads=max(2, tp * sp))
    options = {
        "skip_tokenizer_init": True, "dtype": "float32", "chunked_prefill_size": CHUNK, "max_total_tokens": 8192,
        "enable_mixed_chunk": True, "tp_size": tp, "ulysses_sequence_parallel_size": sp, "log_level": "info",
    }  # fmt: skip
    if family.startswith(shift_cases.SWIFTKV):  # smaller steps go through all layers whole
        options["swiftkv_min_tokens"] = MIN_TOKENS
    if threshold is not None:
        options |= {"enable_shift_parallel": True, "shift_parallel_threshold": threshold.replace(FLIP, "24")}
    log = folder / "engine.log"
    plugin = added_plugin(Path(__file__).with_name(FLIP)) if threshold == FLIP else nullcontext()
    with plugin, running_engine(log, model_path=str(folder), **options) as engine:
        if request.param in OFTEN:
            assert made_of(engine.server_args, "base") in ELSEWHERE["test_shift"]
        yield Served(engine, twin, str(folder), threshold or "0")


def check(served, asked, **fields):
    answers = generate(served.engine, asked, return_logprob=True, **fields)
    found = compare(served.twin, asked, answers)
    print(found)
    assert found.outputs
    assert found.other_tokens == 0
    assert max(found.output, found.prompt) < TOLERANCE
    return answers


def test_lengths_that_do_not_divide_and_fewer_tokens_than_ranks(served):
    before = served.told()
    for length in (1, 20, 33, 45, 60):
        check(served, prompts(length, seed=length), new_tokens=5)
    check(served, prompts(1, 2, 3, 5, 17, 90, 33, 64, 65, 200), new_tokens=12, logprob_start_len=0)
    steps = {mode: n - before["steps"][mode] for mode, n in served.told()["steps"].items()}
    if served.threshold == "0":
        assert steps["sp"] > 0 == steps["tp"]
    elif served.threshold == "100000":
        assert steps["tp"] > 0 == steps["sp"]
    else:
        assert min(steps.values()) > 0
        switches = served.told()["switches"] - before["switches"]
        assert switches > 0
        if served.threshold == FLIP:  # and the first one follows those before
            assert sum(steps.values()) - 1 <= switches <= sum(steps.values())


def test_prefixes_cached_in_one_mode_are_read_in_the_other(served):
    """Prompts in steps of 64 tokens and fewer, the latter in another mode, then their beginnings with other ends."""
    flush(served.engine)
    long, short = prompts(180, 9, seed=2)
    check(served, [long, short])
    asked = [long[:n] + prompts(m, seed=n)[0] for n, m in ((40, 1), (64, 30), (100, 90), (179, 1))]
    asked += [short + prompts(m, seed=m)[0] for m in (1, 70)]
    answers = check(served, asked)
    assert sum(answer["meta_info"]["cached_tokens"] for answer in answers) >= 300


def test_new_weights_come_as_the_first_ones_did(served):
    asked = prompts(3, 80, seed=4)
    with torch.no_grad():
        for parameter in served.twin.parameters():
            parameter.mul_(1.1)
    served.twin.save_pretrained(served.folder)
    loaded = served.engine.update_weights_from_disk(served.folder)
    assert loaded[0], loaded
    check(served, asked, new_tokens=6)
    # A checkpoint's names: transformers keeps experts in one tensor.
    saved = safetensors.torch.load_file(f"{served.folder}/model.safetensors")
    named = [(name, value * 0.9) for name, value in saved.items()]
    loaded = served.engine.update_weights_from_tensor(named)
    assert loaded[0], loaded
    with torch.no_grad():
        for parameter in served.twin.parameters():
            parameter.mul_(0.9)
    refused = served.engine.update_weights_from_tensor(named[:1], load_format="direct")
    assert not refused[0]
    assert "'direct' does not go with --ulysses-sequence-parallel-size" in refused[1]
    check(served, asked, new_tokens=6)


@pytest.mark.full
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3"])
def test_a_threshold_is_measured_where_none_is_given(family, tmp_path, monkeypatch):
    """Also of models whose layers ask for the cache while they are timed, when there is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    twin = make_model(tmp_path / "model", family, heads=2)
    with running_engine(
        tmp_path / "engine.log", model_path=str(tmp_path / "model"), skip_tokenizer_init=True, dtype="float32",
        chunked_prefill_size=CHUNK, max_total_tokens=8192, ulysses_sequence_parallel_size=2,
        enable_shift_parallel=True,
    ) as engine:  # fmt: skip
        served = Served(engine, twin, str(tmp_path), "auto")
        assert all(min(timing["tensor"], timing["sequence"]) > 0 for timing in served.told()["timings"])
        assert served.told()["timings"]
        check(served, prompts(1, 2, 33, 64, 200))
