"""Features together, on real engines of a CPU: greedy answers are those of transformers whatever is on.

`tests/combinations.py` says what is combined.
"""

import asyncio
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import xgrammar

import swiftkv.hf
from tests.combinations import OFTEN, OTHERS, PARALLEL, Combination, made_of
from tests.engine.servers import added_plugin, running_engine
from tests.swiftkv_cases import compare, flush, generate

EXAMPLES = Path(__file__).parents[2] / "examples" / "tiny_lm"
MODELS = {"base": EXAMPLES / "model", "swiftkv": EXAMPLES / "swiftkv"}
HEAD = str(EXAMPLES / "speculator")
TOLERANCE = 2e-5  # natural log; float32 on both sides
PATTERN = r"(Return|Set|Get) [a-z ]{3,20}\."
NEW = 16
COMBINATIONS = [*OFTEN, *(pytest.param(c, marks=pytest.mark.full) for c in OTHERS)]


@dataclass
class Served:
    engine: Any
    twin: Any
    asked: list[list[int]]
    made: Combination


@functools.cache
def twin_of(model: str) -> Any:
    """The model in transformers."""
    kind = swiftkv.hf.MODELS["llama"] if model == "swiftkv" else transformers.AutoModelForCausalLM
    return kind.from_pretrained(MODELS[model], dtype=torch.float32).eval()


@functools.cache
def tokenizer() -> Any:
    """Of both models."""
    return transformers.AutoTokenizer.from_pretrained(MODELS["base"])


@functools.cache
def constrained(model: str, prompt: tuple[int, ...]) -> list[int]:
    """The greedy answer of transformers within `PATTERN`, without the end."""
    twin, tokens, found = twin_of(model), tokenizer(), []
    size = twin.config.vocab_size
    known = xgrammar.TokenizerInfo.from_huggingface(tokens, vocab_size=size)
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(known).compile_regex(PATTERN))
    mask = xgrammar.allocate_token_bitmask(1, size)
    while True:
        with torch.no_grad():
            logits = twin(torch.tensor([[*prompt, *found]])).logits[:, -1]
        matcher.fill_next_token_bitmask(mask)
        xgrammar.apply_token_bitmask_inplace(logits, mask)
        token = logits.argmax().item()
        if token == tokens.eos_token_id:
            return found
        assert matcher.accept_token(token)
        found.append(token)


def options(made: Combination) -> dict[str, Any]:
    """Keywords of the engine."""
    found = {
        "model_path": str(MODELS[made.model]), "dtype": "float32", "max_total_tokens": 4096, "random_seed": 7,
        "max_running_requests": 16, "chunked_prefill_size": 64 if made.chunked else -1,
        "disable_radix_cache": not made.radix, "disable_overlap_schedule": not made.overlap,
        "enable_mixed_chunk": made.mixed, **PARALLEL[made.parallel],
    }  # fmt: skip
    if made.model == "swiftkv":
        found["swiftkv_min_tokens"] = 40
    if made.speculation != "none":
        found["speculative_algorithm"] = "SUFFIX"
    if made.speculation in ("head", "both"):
        found |= {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": HEAD}
    if made.speculation == "both":
        found["enable_suffix_decoding"] = True
    return found


@pytest.fixture(scope="module", params=COMBINATIONS, ids=str)
def served(request, tmp_path_factory, functions):
    asked = [tokenizer()(function[:150])["input_ids"] for function in functions[:16]]
    with (
        pytest.MonkeyPatch.context() as patch,
        added_plugin(Path(__file__).with_name("skew")),
    ):  # ranks whose clocks say other things
        patch.setenv("ARCTIC_SGLANG_UNTIMED", "1")  # as many drafts on a busy machine
        log = tmp_path_factory.mktemp("combined") / "engine.log"
        with running_engine(log, **options(request.param)) as engine:
            assert made_of(engine.server_args, request.param.model) == request.param
            yield Served(engine, twin_of(request.param.model), asked, request.param)


def check(served, asked, **fields):
    answers = generate(served.engine, asked, new_tokens=NEW, return_logprob=True, **fields)
    found = compare(served.twin, asked, answers)
    print(found)
    assert found.outputs == NEW * len(asked)
    assert found.other_tokens == 0
    assert max(found.output, found.prompt) < TOLERANCE
    return answers


def test_answers_alone_together_and_again(served):
    answers = [*check(served, served.asked[:1]), *check(served, served.asked), *check(served, served.asked)]
    cached = sum(answer["meta_info"]["cached_tokens"] for answer in answers)
    assert (cached > 0) == served.made.radix
    if served.made.speculation != "none":
        assert sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers) > 0
    if served.made.parallel in ("ulysses", "shift", "shift on tp"):
        steps = served.engine.get_server_info()["internal_states"][0]["shift"]["steps"]
        assert steps["sp"] > 0
        assert (steps["tp"] > 0) == (served.made.parallel != "ulysses")


def test_logprobs_of_prompts(served):
    check(served, served.asked[4:8], logprob_start_len=0)
    check(served, served.asked[6:9], logprob_start_len=[0, 20, -1])


def test_a_grammar(served):
    sampling = {"temperature": 0, "max_new_tokens": 40, "regex": PATTERN}
    asked = served.asked[:3]
    for answer, prompt in zip(
        served.engine.generate(input_ids=asked, sampling_params=sampling), asked, strict=True
    ):
        wanted = constrained(served.made.model, tuple(prompt))
        assert answer["output_ids"][: len(wanted)] == wanted
        assert answer["output_ids"][len(wanted) :] in ([], [tokenizer().eos_token_id])


def test_streams_of_which_some_are_aborted(served):
    sampling = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
    wanted = served.engine.generate(input_ids=served.asked, sampling_params=sampling)

    async def ask(number, prompt):
        gone, last = number % 3 == 0, None
        asked = sampling | {"max_new_tokens": 400} if gone else sampling
        stream = await served.engine.async_generate(
            input_ids=prompt, sampling_params=asked, rid=f"{served.made}-{number}", stream=True
        )
        async for last in stream:
            if gone and last["meta_info"]["completion_tokens"] >= number:
                served.engine.tokenizer_manager.abort_request(f"{served.made}-{number}")
        return last

    async def ask_all():
        return await asyncio.gather(*(ask(number, prompt) for number, prompt in enumerate(served.asked)))

    for number, last in enumerate(served.engine.loop.run_until_complete(ask_all())):
        if number % 3:
            assert last["text"] == wanted[number]["text"]
        else:
            assert last["meta_info"]["completion_tokens"] < 400
    flush(served.engine)  # nobody holds anything
