"""sglang.Engine on a machine without a GPU: nothing named but the model."""

import asyncio
import json

import pytest
import torch

from tests.combinations import ELSEWHERE, made_of
from tests.engine.servers import running_engine

GREEDY = {"temperature": 0, "max_new_tokens": 32}


@pytest.fixture(scope="module")
def reference(tiny_model_dir):
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(tiny_model_dir), model.eval()


@pytest.fixture(scope="module")
def prompts(reference, functions):
    tokenizer = reference[0]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": code}], tokenize=False, add_generation_prompt=True
        )
        for code in functions[:8]
    ]


def transformers_greedy(reference, prompt):
    tokenizer, model = reference
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=GREEDY["max_new_tokens"], do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True)


def test_greedy_text_equals_transformers(tiny_engine, reference, prompts):
    results = tiny_engine.generate(prompts, GREEDY)
    expected = [transformers_greedy(reference, prompt) for prompt in prompts]
    assert [r["text"] for r in results] == expected
    assert len(set(expected)) > 4, "the model answers each function alike, so this test proves little"


def test_runs_on_the_cpu_with_our_defaults(tiny_engine):
    args = tiny_engine.server_args
    assert (args.device, args.attention_backend, args.dtype) == ("cpu", "torch_native", "float32")
    assert [made_of(args, "base")] == ELSEWHERE["test_cpu_engine"]


def test_temperature_is_honoured(tiny_engine, prompts):
    hot = [tiny_engine.generate(prompts[0], {**GREEDY, "temperature": 1.5})["text"] for _ in range(4)]
    cold = [tiny_engine.generate(prompts[0], GREEDY)["text"] for _ in range(2)]
    assert len(set(hot)) > 1
    assert len(set(cold)) == 1


def test_logprobs_equal_transformers(tiny_engine, reference, prompts):
    tokenizer, model = reference
    result = tiny_engine.generate(prompts[1], GREEDY, return_logprob=True, logprob_start_len=0)
    prompt_ids = tokenizer(prompts[1], add_special_tokens=False).input_ids
    answered = result["meta_info"]["output_token_logprobs"]
    ids = prompt_ids + [token for _, token, _ in answered]
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    expected = [table[i, token].item() for i, token in enumerate(ids[1:])]
    got = [value for value, _, _ in result["meta_info"]["input_token_logprobs"][1:]]
    got += [value for value, _, _ in answered]
    worst = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    assert worst < 1e-3, f"largest difference {worst}"


def test_chunked_prefill_and_radix_cache_change_nothing(tiny_engine, reference, functions):
    tokenizer = reference[0]
    ids = tokenizer("\n\n".join(functions[:3])).input_ids[:300]  # chunks of 64
    tiny_engine.flush_cache()
    cold = tiny_engine.generate(input_ids=ids, sampling_params=GREEDY)
    warm = tiny_engine.generate(input_ids=ids, sampling_params=GREEDY)
    assert cold["meta_info"]["cached_tokens"] == 0
    assert warm["meta_info"]["cached_tokens"] >= len(ids) - 64
    assert warm["text"] == cold["text"]


def test_streaming_gives_the_same_text(tiny_engine, prompts):
    pieces = list(tiny_engine.generate(prompts[2], GREEDY, stream=True))
    assert len(pieces) > 2
    assert pieces[-1]["text"] == tiny_engine.generate(prompts[2], GREEDY)["text"]


def test_json_schema(tiny_engine, prompts):
    schema = {
        "type": "object",
        "properties": {
            "summary": {"type": "string", "maxLength": 20},
            "lines": {"type": "integer", "maximum": 99},
        },
        "required": ["summary", "lines"],
        "additionalProperties": False,
    }
    sampling = {"temperature": 0.8, "max_new_tokens": 120, "json_schema": json.dumps(schema)}
    answer = json.loads(tiny_engine.generate(prompts[0], sampling)["text"])
    assert set(answer) == {"summary", "lines"}
    assert isinstance(answer["lines"], int)


def test_many_at_once_equal_one_by_one(tiny_engine, prompts):
    one_by_one = [tiny_engine.generate(p, GREEDY)["text"] for p in prompts]

    async def at_once():
        return await asyncio.gather(*[tiny_engine.async_generate(p, GREEDY) for p in prompts])

    assert [r["text"] for r in tiny_engine.loop.run_until_complete(at_once())] == one_by_one


@pytest.mark.full  # two ranks of SwiftKV, of Shift Parallelism and with a draft head run each time
def test_two_ranks_equal_one(tiny_engine, tiny_model_dir, prompts):
    expected = [r["text"] for r in tiny_engine.generate(prompts, GREEDY)]
    with running_engine(model_path=tiny_model_dir, tp_size=2) as engine:
        assert [r["text"] for r in engine.generate(prompts, GREEDY)] == expected
