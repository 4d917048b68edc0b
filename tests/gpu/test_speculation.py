"""Speculation on a GPU: every attention backend with its CUDA graphs answers as plain decode does."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

from tests.gpu.gpus import RANKS

pytestmark = pytest.mark.gpu

TINY = Path(__file__).parents[2] / "examples" / "tiny_lm"
SUFFIX = {"speculative_algorithm": "SUFFIX"}
HEAD = {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": str(TINY / "speculator")}
BOTH = {**HEAD, "enable_suffix_decoding": True}
STATES = {"enable_return_hidden_states": True}
ENGINES = {
    "plain": {},
    "fa3": {**SUFFIX, "attention_backend": "fa3"},
    "flashinfer": {**SUFFIX, "attention_backend": "flashinfer"},
    "triton": {**SUFFIX, "attention_backend": "triton"},
    "torch_native": {**SUFFIX, "attention_backend": "torch_native"},
    "no_graphs": {**SUFFIX, "disable_cuda_graph": True},
    "few_at_once": {**SUFFIX, "max_running_requests": 2, "cuda_graph_max_bs_decode": 2},
    "lstm": HEAD,
    "hybrid": BOTH,
    "hybrid_states": {**BOTH, **STATES},
    "suffix_states": {**SUFFIX, **STATES},
    "plain_fp8": {"quantization": "fp8"},
    "fp8": {**SUFFIX, "quantization": "fp8"},
}
if RANKS > 1:
    ENGINES |= {
        "hybrid_on_two": {**BOTH, "tp_size": 2},
        "hybrid_shift": {**BOTH, "ulysses_sequence_parallel_size": 2, "enable_shift_parallel": True},
    }
# A port for each engine, below those that the system hands out: of engines that start together two may be given the
# same one else, as SGLang asks for a free port long before it binds it.
FIRST_PORT = 25100
# Of another kernel's rounding: bf16 logits of this model differ by so much between two backends.
LOGPROB = 0.15


@pytest.fixture(scope="module")
def answers(request, tmp_path_factory):
    """The engines that the selected tests are about, side by side on the GPUs, and what each of them said."""
    calls = [item.callspec for item in request.session.items if item.path == request.path]
    wanted = {call.params["name"] for call in calls} | {name for name in ENGINES if "plain" in name}
    folder = tmp_path_factory.mktemp("speculation")
    lines = (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps([json.loads(line)["code"] for line in lines]))
    child = Path(__file__).with_name("speculation_child.py")
    running = {}
    for port, (name, options) in enumerate(ENGINES.items(), FIRST_PORT):
        if name not in wanted:
            continue
        options = {"model_path": str(TINY / "model"), "nccl_port": port, **options}
        log = (folder / f"{name}.log").open("w")
        command = [
            sys.executable,
            str(child),
            json.dumps(options),
            str(prompts),
            str(folder / f"{name}.json"),
        ]
        running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    found = {}
    for name, process in running.items():
        code = process.wait(400)
        tail = (folder / f"{name}.log").read_text(errors="replace")[-3000:]
        found[name] = json.loads((folder / f"{name}.json").read_text()) if code == 0 else tail
    return found


@pytest.mark.parametrize("name", [name for name in ENGINES if "plain" not in name])
def test_the_answers_are_plain_decodes(answers, name):
    found = answers[name]
    assert isinstance(found, dict), found
    wanted = answers["plain_fp8" if "fp8" in name else "plain"]["first"]
    for turn in ("first", "second"):
        same = 0
        for ours, theirs in zip(found[turn], wanted, strict=True):
            same += ours["ids"] == theirs["ids"]
            for a, b, x, y in zip(
                ours["ids"], theirs["ids"], ours["logprobs"], theirs["logprobs"], strict=False
            ):
                # Where two tokens are as likely as each other, rounding decides; the texts part there.
                assert abs(x - y) < LOGPROB
                if a != b:
                    break
        print(name, turn, f"{same} of {len(wanted)} the same")
        assert same >= 0.9 * len(wanted)
    steps = sum(answer["steps"] for answer in found["second"])
    tokens = sum(len(answer["ids"]) - 1 for answer in found["second"])
    print(name, f"{tokens / steps:.2f} tokens a step the second time")
    if name != "lstm":
        assert tokens > 2 * steps
    if name == "few_at_once":  # steps of more tokens than there are requests
        assert tokens > 4 * steps


@pytest.mark.parametrize("name", [name for name in ENGINES if "plain" not in name])
def test_grammars_and_samples(answers, name):
    found = answers[name]
    assert isinstance(found, dict), found
    assert all(re.fullmatch(r"(Return|Set) [a-z ]{3,20}\.", text) for text in found["constrained"])
    assert found["long"] == [300] * 8  # ranks that chose other steps than each other would never say it
    ours, theirs = (
        Counter(tuple(ids) for ids in answers[which]["sampled"])
        for which in (name, "plain_fp8" if "fp8" in name else "plain")
    )
    # Each outcome's share within 4.5 standard errors of its difference.
    n, m = ours.total(), theirs.total()
    for outcome in set(ours) | set(theirs):
        p, q = ours[outcome] / n, theirs[outcome] / m
        mean = (ours[outcome] + theirs[outcome]) / (n + m)
        assert abs(p - q) < 4.5 * (mean * (1 - mean) * (1 / n + 1 / m)) ** 0.5 + 1e-9, (outcome, p, q)


@pytest.mark.parametrize("name", [name for name in ENGINES if "states" in name])
def test_hidden_states(answers, name):
    """Of prompts and of every token, whatever kind of step it came from."""
    found = answers[name]
    assert isinstance(found, dict), found
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32)
    for said in found["states"]:
        with torch.no_grad():
            wanted = model.model(torch.tensor([said["prompt"] + said["ids"]])).last_hidden_state[0]
        first, *rest = said["states"]
        assert len(first) == len(said["prompt"]) - said["cached"]
        assert len(rest) == len(said["ids"]) - 1
        got = torch.tensor([*first, *rest])
        assert torch.nn.functional.cosine_similarity(got, wanted[said["cached"] : -1]).min() > 0.99
    assert found["states"][-1]["steps"] < len(found["states"][-1]["ids"]) - 1


@pytest.mark.parametrize("name", ["fa3", "hybrid"])
def test_graphs_that_are_captured_anew(answers, name):
    """With new weights, here the same ones: answers stay, and drafts are checked."""
    found = answers[name]
    assert isinstance(found, dict), found
    for turn in ("renewed", "renewed again"):
        pairs = zip(found[turn], found["first"], strict=True)
        assert sum(ours["ids"] == theirs["ids"] for ours, theirs in pairs) >= 0.9 * len(found["first"])
    steps = sum(answer["steps"] for answer in found["renewed again"])
    assert sum(len(answer["ids"]) - 1 for answer in found["renewed again"]) > 2 * steps
