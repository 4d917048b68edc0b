"""Shift Parallelism on several GPUs: every backend, with its CUDA graphs, against transformers in float32.

Engines run side by side on all GPUs there are, two or four of them; where there is one, its ranks share it. An
engine's log-probabilities may differ from float32 by about as much as those of transformers do in the engine's type, or
those of an engine without these flags.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from tests.gpu.gpus import AT_ONCE, RANKS, SHARED
from tests.shift_cases import make_model
from tests.swiftkv_cases import compare, prompts, rescored

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(RANKS < 2, reason="needs a GPU"),
]
# Flashinfer compiles its kernels first, for minutes: run it by itself a second time.
START_SECONDS = 350 if SHARED else 200
FIRST_PORT = 25100  # of each engine one, below those that the system hands out
LENGTHS = (1, 2, 3, 5, 17, 24, 25, 33, 64, 127, 128, 129, 300, 700)
LENGTHS = LENGTHS + tuple(range(2, 36))  # more requests than a decode step of the threshold has
LARGE = (*(1500,) * 12, 7)  # at once; enough rows for each of four ranks to send them in parts
SHIFT = {"enable_shift_parallel": True, "shift_parallel_threshold": "24"}
HALF = {"attention_backend": "triton", "dtype": "float16"}
BF16 = {"dtype": "bfloat16"}
TINY = Path(__file__).parents[2] / "examples" / "tiny_lm"
AGAIN = {"again": True}  # weights are loaded again
FP8 = {**BF16, "attention_backend": "fa3", "quantization": "fp8"}
# Model (a family, or a folder), base tensor parallelism (None: SGLang's own), options.
ENGINES = {
    "triton": ("llama", 1, {**HALF, **SHIFT, **AGAIN}),
    "triton-ulysses": ("llama", 1, HALF),
    "triton-always-tp": ("llama", 1, {**HALF, **SHIFT, "shift_parallel_threshold": "100000"}),
    "triton-no-graphs": ("llama", 1, {**HALF, **SHIFT, "disable_cuda_graph": True}),
    "triton-few-kv-heads": ("llama+2", 1, {**HALF, **SHIFT}),
    "triton-two-by-two": ("llama", 2, {**HALF, **SHIFT, **AGAIN}),
    "triton-steps-beyond-the-buffers": (
        "llama", 1, {**HALF, **SHIFT, "chunked_prefill_size": -1, "max_prefill_tokens": 128},
    ),
    "triton-large-steps": (
        "llama", 1, {**HALF, **SHIFT, "chunked_prefill_size": 32768, "max_total_tokens": 60_000},
    ),
    "fa3-large-steps": (
        "qwen3", 1,
        {**BF16, **SHIFT, "attention_backend": "fa3", "chunked_prefill_size": 32768, "max_total_tokens": 60_000},
    ),
    "qwen3": ("qwen3", 1, {**HALF, **SHIFT}),
    "qwen3-ulysses": ("qwen3", 1, HALF),
    "torch_native": ("llama", 1, {**HALF, **SHIFT, "attention_backend": "torch_native"}),
    "fa3": ("llama", 1, {**BF16, **SHIFT, "attention_backend": "fa3"}),
    "qwen3-moe": ("qwen3_moe", 1, {**HALF, **SHIFT, **AGAIN}),
    # Its fused all-reduce waits for multicast where that is off.
    "qwen3-moe-stock": ("qwen3_moe", None, {**HALF, "enforce_disable_flashinfer_allreduce_fusion": True}),
    "swiftkv": ("swiftkv-llama", 1, {**BF16, **SHIFT, "attention_backend": "fa3", "swiftkv_min_tokens": 40}),
    "suffix": (
        "llama", 1,
        {**BF16, **SHIFT, "attention_backend": "fa3", "speculative_algorithm": "SUFFIX", "enable_mixed_chunk": False},
    ),
    "swiftkv-suffix-and-head": (
        str(TINY / "swiftkv"), 1,
        {
            **BF16, **SHIFT, "attention_backend": "fa3", "swiftkv_min_tokens": 40, "speculative_algorithm": "ARCTIC",
            "speculative_draft_model_path": str(TINY / "speculator"), "enable_suffix_decoding": True,
            "enable_mixed_chunk": False,
        },
    ),
    "swiftkv-fp8": ("swiftkv-llama", 1, {**FP8, **SHIFT, "swiftkv_min_tokens": 40}),
    "swiftkv-fp8-stock": ("swiftkv-llama", None, {**FP8, "swiftkv_min_tokens": 40}),
    "fp8": ("llama", 1, {**FP8, **SHIFT}),
    "fp8-stock": ("llama", None, FP8),
    "flashinfer": ("llama", 1, {**BF16, **SHIFT, "attention_backend": "flashinfer"}),
}  # fmt: skip
CASES = [name for name, (_, tp, _) in ENGINES.items() if tp is not None and RANKS % (2 * tp) == 0]
# SGLang's scheduler ends where embeddings meet mixed chunks.
EMBEDDING = {"is_embedding": True, "enable_mixed_chunk": False}
VECTORS = {
    "embedding": ("qwen3", 1, {**BF16, **SHIFT, **EMBEDDING, "attention_backend": "fa3"}),
    "embedding-ulysses": ("llama", 1, {**HALF, **EMBEDDING}),
}
ALL = ENGINES | VECTORS


def lengths_of(name: str) -> tuple[int, ...]:
    """The prompts' lengths."""
    return LARGE if "large" in name else LENGTHS


def save_model(folder: Path, name: str) -> None:
    """Saves a random model of a small shape; `name` is a family, and what its key/value heads are if not four."""
    family, _, heads = name.partition("+")
    shape = {
        "hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 8, "head_dim": 64,
        "num_key_value_heads": int(heads or 4),
    }  # fmt: skip
    if family == "qwen3_moe":
        shape["moe_intermediate_size"] = 256
    model = make_model(folder, family, **shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    model.save_pretrained(f"{folder}-again")


@pytest.fixture(scope="module")
def engines(request, tmp_path_factory):
    """The engines that the selected tests are about, and what each of them said, or how its log ends."""
    wanted = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    wanted |= {f"{name}-stock" for name in wanted if f"{name}-stock" in ENGINES}
    folder = tmp_path_factory.mktemp("shift")
    for model in {ALL[name][0] for name in wanted}:
        if not (folder / model).exists():
            save_model(folder / model, model)
    found, names = {}, [name for name in ALL if name in wanted]
    for first in range(0, len(names), AT_ONCE):
        found |= answers_of(names[first : first + AT_ONCE], folder)
    return folder, found


def answers_of(names: list[str], folder: Path) -> dict[str, dict | str]:
    """What engines that start together said, or how the log of one ends that did not."""
    child, running, found = Path(__file__).with_name("shift_child.py"), {}, {}
    for port, name in enumerate(names, FIRST_PORT):
        model, tp, options = ALL[name]
        ranks = (
            {"tp_size": RANKS}
            if tp is None
            else {"tp_size": tp, "ulysses_sequence_parallel_size": RANKS // tp}
        )
        options = {"model_path": str(folder / model), "nccl_port": port, **ranks, **options}
        if options.pop("again", False):
            options["again"] = str(folder / f"{model}-again")
        log = (folder / f"{name}.log").open("w")
        asked = json.dumps(prompts(*lengths_of(name)))
        command = [sys.executable, str(child), json.dumps(options), asked, str(folder / f"{name}.json")]
        running[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    for name, process in running.items():
        try:
            code = process.wait(max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        tail = (folder / f"{name}.log").read_text(errors="replace")[-4000:]
        found[name] = json.loads((folder / f"{name}.json").read_text()) if code == 0 else tail
    return found


def twin_of(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A folder's model in transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).cuda()


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_transformers(engines, name):
    folder, found = engines
    assert isinstance(found[name], dict), found[name]
    model, _, options = ENGINES[name]
    twin, rough = twin_of(folder / model), twin_of(folder / model, getattr(torch, options["dtype"]))
    steps = found[name]["told"]["steps"]
    print(f"{name}: {found[name]['told']}")
    threshold = int(options.get("shift_parallel_threshold", 0))
    assert (steps["tp"] > 0) == (threshold > 0)
    assert (steps["sp"] > 0) == (threshold < 1000)
    said, stock = found[name]["said"], found.get(f"{name}-stock", {}).get("said")
    # Of all turns: the second is a single prompt.
    noises = [
        compare(twin, *stock[turn]) if stock else compare(twin, sent, rescored(rough, sent, answers))
        for turn, (sent, answers) in enumerate(said)
    ]
    mean = sum(noise.total for noise in noises) / sum(noise.outputs + noise.prompts for noise in noises)
    most = max(max(noise.output, noise.prompt) for noise in noises)
    for (sent, answers), noise in zip(said, noises, strict=True):
        difference = compare(twin, sent, answers)
        print(f"{name}: {difference}\n    without it: {noise}")
        assert difference.mean <= 1.5 * mean
        assert max(difference.output, difference.prompt) <= 2 * most
    cached = sum(answer["meta_info"]["cached_tokens"] for answer in said[2][1])
    assert cached > sum(lengths_of(name)) / 2


@pytest.mark.parametrize("name", [name for name in CASES if ENGINES[name][2].get("again")])
def test_new_weights_come_as_the_first_ones_did(engines, name):
    """Layers switch their mode over parts of what was loaded first: not further from float32 than before."""
    folder, found = engines
    assert isinstance(found[name], dict), found[name]
    model = ENGINES[name][0]
    before = compare(twin_of(folder / model), *found[name]["said"][0])
    after = compare(twin_of(folder / f"{model}-again"), *found[name]["again"])
    print(f"{name}: {after}\n    before: {before}")
    assert after.mean <= 2 * before.mean
    old = compare(twin_of(folder / model), *found[name]["again"])
    assert old.mean > 4 * before.mean, "the weights are not told apart"


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_those_of_transformers(engines, name):
    """The last token's, of length 1; no further from float32 than twice what transformers is in the engine's type."""
    folder, found = engines
    assert isinstance(found[name], dict), found[name]
    model, _, options = VECTORS[name]
    asked, vectors = found[name]["vectors"]

    def expected(dtype: torch.dtype) -> torch.Tensor:
        twin = twin_of(folder / model, dtype).model
        with torch.no_grad():
            last = [twin(torch.tensor([ids]).cuda()).last_hidden_state[0, -1].float() for ids in asked]
        return torch.nn.functional.normalize(torch.stack(last), dim=-1)

    exact = expected(torch.float32)
    rough = (expected(getattr(torch, options["dtype"])) - exact).norm(dim=-1)
    off = (torch.tensor(vectors).cuda() - exact).norm(dim=-1)
    print(
        f"{name}: off by {off.mean():.2e}, at most {off.max():.2e}; transformers {rough.mean():.2e}, {rough.max():.2e}"
    )
    assert off.mean() <= 1.5 * rough.mean()
    assert off.max() <= 2 * rough.max()
