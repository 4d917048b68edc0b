"""Speculation changes no answer: greedy texts, sampled distributions, grammars, penalties, logprobs."""

import asyncio
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from speculative.sglang_worker.memory import PAUSE_SECONDS
from tests.engine.servers import running_engine

ROOT = Path(__file__).parents[2]
HEAD = ROOT / "examples" / "tiny_lm" / "speculator"
TINY = str(ROOT / "examples" / "tiny_lm" / "model")
GREEDY = {"temperature": 0, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def index_file(tmp_path_factory):
    """Where the engine `suffix` keeps its index over restarts."""
    return tmp_path_factory.mktemp("index") / "index"


@pytest.fixture(scope="module")
def suffix(index_file):
    """Overlapped, prompts in chunks, prefixes cached, too little memory for all requests at once.

    Drafts go by no clock, so that as many of them are checked on a busy machine.
    """
    options = {
        "chunked_prefill_size": 64,
        "random_seed": 7,
        "max_running_requests": 16,
        "max_total_tokens": 2500,
        "suffix_cache_path": str(index_file),
        "enable_return_hidden_states": True,
    }
    options |= {"speculative_algorithm": "SUFFIX", "constrained_json_disable_any_whitespace": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCTIC_SGLANG_UNTIMED", "1")
        with running_engine(model_path=TINY, **options) as engine:
            yield engine


@pytest.fixture(scope="module")
def hybrid():
    """A draft head and the index, on two ranks, without overlap."""
    options = {"tp_size": 2, "disable_overlap_schedule": True, "max_running_requests": 8, "random_seed": 7}
    options |= {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": str(HEAD)}
    options["enable_return_hidden_states"] = True
    with running_engine(model_path=TINY, enable_suffix_decoding=True, **options) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(tiny_engine, functions):
    """What the model answers without speculation, by prompt: the beginnings of functions, which are soon read."""
    asked = [function[:150] for function in functions[:64]]
    return dict(zip(asked, texts(tiny_engine, asked), strict=True))


def texts(engine, prompts, **sampling):
    answers = engine.generate(prompts, {**GREEDY, **sampling})
    return [answer["text"] for answer in answers]


def accepted(answers):
    return sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers)


def test_greedy_answers_are_the_same(suffix, plain):
    asked = list(plain)
    answers = suffix.generate(asked, GREEDY)
    assert [answer["text"] for answer in answers] == list(plain.values())
    assert accepted(answers) > 50
    again = suffix.generate(asked[:40], GREEDY)  # every answer is known now
    assert [answer["text"] for answer in again] == list(plain.values())[:40]
    steps = sum(answer["meta_info"]["spec_verify_ct"] for answer in again)
    assert sum(answer["meta_info"]["completion_tokens"] for answer in again) > 2 * steps


@pytest.mark.parametrize("name", ["suffix", pytest.param("hybrid", marks=pytest.mark.full)])
def test_hidden_states(request, plain, name):
    """Of the prompt and of every token, of prefills, plain steps and steps that checked drafts."""
    engine, model = (
        request.getfixturevalue(name),
        transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
    )
    prompt, checked = list(plain)[3][:60], 0
    engine.flush_cache()
    for _ in range(3):
        answer = engine.generate(prompt, {**GREEDY, "ignore_eos": True}, return_hidden_states=True)
        checked += accepted([answer])
        ids = engine.tokenizer_manager.tokenizer.encode(prompt)
        with torch.no_grad():
            wanted = model.model(torch.tensor([ids + answer["output_ids"]])).last_hidden_state[0]
        first, *rest = answer["meta_info"]["hidden_states"]
        cached = answer["meta_info"]["cached_tokens"]
        torch.testing.assert_close(torch.tensor(first), wanted[cached : len(ids)], rtol=1e-3, atol=1e-4)
        assert len(rest) == len(answer["output_ids"]) - 1
        torch.testing.assert_close(torch.tensor(rest), wanted[len(ids) : -1], rtol=1e-3, atol=1e-4)
    assert checked


def test_the_index_is_kept_though_requests_ended_with_their_first_token(suffix, index_file, plain):
    """SGLang says nothing of their end: a server's health is asked with such requests."""
    suffix.generate(list(plain)[:8], {**GREEDY, "max_new_tokens": 1})
    time.sleep(PAUSE_SECONDS)
    index_file.unlink(missing_ok=True)
    prompts = list(plain)[8:10]
    assert texts(suffix, prompts) == [plain[prompt] for prompt in prompts]
    until = time.monotonic() + 5
    while not index_file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert index_file.exists()


def test_answers_to_the_end_of_the_context(suffix, tiny_engine, functions):
    """A request near it is given no slots in the row of the next."""
    text = tiny_engine.tokenizer_manager.tokenizer.encode("".join(functions[64:128]))
    asked = [text[:990], text[500:1500], text[40:60]]
    sampling = [{"temperature": 0, "max_new_tokens": 1024 - len(ids), "ignore_eos": True} for ids in asked]
    sampling[2]["max_new_tokens"] = 60
    found, wanted = (
        engine.generate(input_ids=asked, sampling_params=sampling) for engine in (suffix, tiny_engine)
    )
    assert [answer["output_ids"] for answer in found] == [answer["output_ids"] for answer in wanted]
    assert [answer["meta_info"]["completion_tokens"] for answer in found] == [
        32,
        22,
        60,
    ]  # SGLang keeps two back


@pytest.mark.full  # test_combinations has such an engine each time
def test_greedy_answers_of_a_head_and_the_index_on_two_ranks(hybrid, plain):
    asked = list(plain)[:40]
    answers = hybrid.generate(asked, GREEDY)
    assert [answer["text"] for answer in answers] == [plain[prompt] for prompt in asked]
    assert accepted(answers) > 50


@pytest.mark.full  # the two above, of more prompts
@pytest.mark.parametrize(("name", "count"), [("suffix", 200), ("hybrid", 60)])
def test_many_greedy_answers_are_the_same(request, tiny_engine, functions, name, count):
    asked = [function[:150] for function in functions[:count]]
    assert texts(request.getfixturevalue(name), asked) == texts(tiny_engine, asked)


@pytest.mark.full
def test_a_head_drafts_for_text_that_was_never_seen(hybrid, plain):
    prompt = list(plain)[50]
    answer = hybrid.generate(prompt, GREEDY)
    assert answer["text"] == plain[prompt]
    assert answer["meta_info"]["spec_num_correct_drafts"] > 0


def test_aborts_leave_the_others_alone(suffix, plain):
    asked = list(plain)[:24]
    gone = {f"gone-{i}": 0 for i in range(0, len(asked), 3)}

    async def ask(i, prompt):
        if f"gone-{i}" not in gone:
            return (await suffix.async_generate(prompt, GREEDY))["text"]
        long = {**GREEDY, "max_new_tokens": 500, "ignore_eos": True}
        stream = await suffix.async_generate(prompt, long, rid=f"gone-{i}", stream=True)
        async for answer in stream:
            told = gone[f"gone-{i}"] = answer["meta_info"]["completion_tokens"]
            if told >= i:  # some are aborted at once, others between two long steps
                suffix.tokenizer_manager.abort_request(f"gone-{i}")
        return None

    async def ask_all():
        return await asyncio.gather(*itertools.starmap(ask, enumerate(asked)))

    found = suffix.loop.run_until_complete(ask_all())
    kept = [(text, plain[prompt]) for text, prompt in zip(found, asked, strict=True) if text is not None]
    assert len(kept) == 16
    assert all(text == wanted for text, wanted in kept)
    assert all(0 < tokens < 500 for tokens in gone.values())


def test_grammars(suffix, tiny_engine, functions):
    asked = functions[:6]
    pattern = r"(Return|Set|Get) [a-z ]{3,20}\."
    for _ in range(2):  # the second time the index knows the answers
        found = texts(suffix, asked, regex=pattern)
        assert all(re.fullmatch(pattern, text) for text in found)
        assert found == texts(tiny_engine, asked, regex=pattern)


def test_penalties(suffix, tiny_engine, functions):
    # One at a time: with overlap SGLang applies penalties a step late, and which step that is depends on the others.
    for given in ({"repetition_penalty": 1.3}, {"frequency_penalty": 0.7, "presence_penalty": 0.3}):
        for prompt in functions[:4]:
            assert texts(suffix, [prompt], **given) == texts(tiny_engine, [prompt], **given)


def test_stop_strings_and_limits(suffix, tiny_engine, functions):
    asked = functions[:8]
    assert texts(suffix, asked, stop=["a"]) == texts(tiny_engine, asked, stop=["a"])
    for tokens in (1, 2, 3, 5):
        answers = suffix.generate(asked, {**GREEDY, "max_new_tokens": tokens, "ignore_eos": True})
        assert {answer["meta_info"]["completion_tokens"] for answer in answers} == {tokens}


def test_logprobs(suffix, tiny_engine, functions):
    asked = functions[:4]
    wanted = {"return_logprob": True, "top_logprobs_num": 2}
    for _ in range(2):
        pairs = zip(
            suffix.generate(asked, GREEDY, **wanted),
            tiny_engine.generate(asked, GREEDY, **wanted),
            strict=True,
        )
        for ours, theirs in pairs:
            mine, stock = ours["meta_info"], theirs["meta_info"]
            for name in ("output_token_logprobs", "output_top_logprobs"):
                assert len(mine[name]) == len(stock[name])
            for a, b in zip(mine["output_token_logprobs"], stock["output_token_logprobs"], strict=True):
                assert a[1] == b[1]
                assert math.isclose(a[0], b[0], abs_tol=2e-4)
            for a, b in zip(mine["output_top_logprobs"], stock["output_top_logprobs"], strict=True):
                assert [entry[1] for entry in a] == [entry[1] for entry in b]


def exact(prompt, tokens, top):
    """Probability of every continuation of `tokens` tokens under top-k sampling, by the model in transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    found = {(): 1.0}
    with torch.no_grad():
        for _ in range(tokens):
            longer = {}
            for path, chance in found.items():
                logits = model(torch.tensor([[*prompt, *path]])).logits[0, -1]
                best = logits.topk(top)
                for p, token in zip(best.values.softmax(-1).tolist(), best.indices.tolist(), strict=True):
                    longer[*path, token] = chance * p
            found = longer
    return found


@pytest.mark.parametrize("n", [1000, pytest.param(20_000, marks=pytest.mark.full)])
def test_samples_follow_the_models_distribution(suffix, functions, n):
    """Chi-square of samples of three tokens, drafted for by the samples before them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    prompt = tokenizer(functions[3])["input_ids"][:40]
    expected = exact(prompt, 3, 4)
    sampling = {"temperature": 1.0, "top_k": 4, "max_new_tokens": 3, "ignore_eos": True}
    counts, drafted = dict.fromkeys(expected, 0), 0
    for _ in range(n // 1000):
        answers = suffix.generate(input_ids=[prompt] * 1000, sampling_params=sampling)
        drafted += accepted(answers)
        for answer in answers:
            counts[tuple(answer["output_ids"])] += 1  # KeyError: a token outside the four likeliest
    assert drafted > n / 4
    # Rare outcomes are put together, so that every cell expects enough.
    cells = [(counts[path], n * chance) for path, chance in expected.items() if n * chance >= 10]
    rest = n - sum(wanted for _, wanted in cells)
    if rest >= 10:
        cells.append((n - sum(seen for seen, _ in cells), rest))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty: the cube root of chi-square over its freedom is nearly normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    print(json.dumps({"chi_square": statistic, "freedom": freedom, "z": z, "drafted": drafted}))
    assert z < 3.1  # one in a thousand


@pytest.mark.full  # what is joined, and how, is in the unit tests; here SGLang compiles its corpus first
def test_another_drafter_joins():
    """SGLang's n-gram corpus beside the index, through the `Proposer` protocol."""
    command = [sys.executable, str(ROOT / "examples" / "joined_drafts.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    index, corpus, both = (float(figure) for figure in re.findall(r"([\d.]+) tokens a step", done.stdout))
    assert both >= max(index, corpus)


def test_weights_and_cache_can_be_renewed(suffix, plain):
    prompt = next(iter(plain))
    assert suffix.flush_cache().success
    assert suffix.generate(prompt, GREEDY)["text"] == plain[prompt]
