"""The tiny model's SwiftKV version, trained and kept in the repository: what users do with it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tests.engine.servers import running_engine
from tests.swiftkv_cases import TINY, compare, flush, tiny_prompts

ROOT_OF_TINY = Path(TINY)
GREEDY = {"temperature": 0, "max_new_tokens": 32}


@pytest.fixture(scope="module")
def twin():
    import swiftkv.hf  # noqa: F401  makes the model known

    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def engine():
    """A pool too small for all requests at once, the overlapped scheduler, and every prefill cut."""
    options = {
        "chunked_prefill_size": 64, "swiftkv_min_tokens": 0, "max_total_tokens": 1500,
        "disable_overlap_schedule": False, "enable_return_hidden_states": True,
    }  # fmt: skip
    with running_engine(model_path=TINY, **options) as engine:
        yield engine


def test_the_answers_are_the_twins_under_memory_pressure(engine, twin):
    asked = tiny_prompts(24)
    assert sum(map(len, asked)) > 1500  # so requests wait for each other's memory
    answers = engine.generate(input_ids=asked, sampling_params=GREEDY, return_logprob=True)
    found = compare(twin, asked, answers)
    print(found)
    assert found.other_tokens == 0
    assert found.output < 5e-5


def test_constrained_output(engine):
    asked = tiny_prompts(4)
    answers = engine.generate(
        input_ids=asked, sampling_params={**GREEDY, "regex": r"(Return|Set) [a-z ]{3,9}\."}
    )
    assert all(re.fullmatch(r"(Return|Set) [a-z ]{3,9}\.", answer["text"]) for answer in answers)


def test_streaming_and_many_samples(engine):
    prompt = tiny_prompts(1)[0]
    whole = engine.generate(input_ids=prompt, sampling_params=GREEDY)["text"]
    pieces = list(engine.generate(input_ids=prompt, sampling_params=GREEDY, stream=True))
    assert len(pieces) > 1
    assert pieces[-1]["text"] == whole
    several = engine.generate(input_ids=prompt, sampling_params={**GREEDY, "temperature": 1, "n": 4})
    assert len(several) == 4


def test_weights_can_be_loaded_again(engine):
    asked = tiny_prompts(3)
    before = engine.generate(input_ids=asked, sampling_params=GREEDY)
    # SGLang empties its cache with the weights, and ends itself if a request is still being put away.
    flush(engine)
    done, message = engine.update_weights_from_disk(TINY)[:2]
    assert done, message
    after = engine.generate(input_ids=asked, sampling_params=GREEDY)
    assert [a["text"] for a in after] == [a["text"] for a in before]


def test_hidden_states_of_every_row(engine, twin):
    for prompt in tiny_prompts(3):
        # In one chunk, and nothing cached: of several chunks SGLang returns the last one's, whatever the model.
        prompt = prompt[:60]
        flush(engine)
        answer = engine.generate(
            input_ids=prompt, sampling_params={**GREEDY, "max_new_tokens": 3}, return_hidden_states=True
        )
        states = answer["meta_info"]["hidden_states"]
        found = torch.tensor(states[0])
        with torch.no_grad():
            wanted = twin.model(torch.tensor([prompt + answer["output_ids"]])).last_hidden_state[0]
        assert len(found) == len(prompt)
        torch.testing.assert_close(found, wanted[: len(prompt)], rtol=1e-3, atol=1e-4)


def test_hidden_states_of_some_requests_of_a_step(engine, twin):
    """Of all rows, of none and of the last, beside each other; and then of nobody, which sends last rows up alone."""
    asked = [prompt[:20] for prompt in tiny_prompts(3)]
    one = {**GREEDY, "max_new_tokens": 1}
    flush(engine)
    answers = engine.generate(
        input_ids=asked, sampling_params=one, return_hidden_states=[True, False, "last"], return_logprob=True
    )
    for prompt, answer, first in zip(asked, answers, (0, None, -1), strict=True):
        assert ("hidden_states" in answer["meta_info"]) == (first is not None)
        if first is not None:
            found = torch.tensor(answer["meta_info"]["hidden_states"]).view(-1, twin.config.hidden_size)
            with torch.no_grad():
                wanted = twin.model(torch.tensor([prompt])).last_hidden_state[0]
            torch.testing.assert_close(found, wanted[first:], rtol=1e-3, atol=1e-4)
    flush(engine)
    again = engine.generate(input_ids=asked, sampling_params=one, return_logprob=True)
    for found in (compare(twin, asked, answers), compare(twin, asked, again)):
        assert found.other_tokens == 0
        assert found.output < 5e-5


def test_refused_settings_stop_the_start():
    import sglang

    with pytest.raises(ValueError, match=r"this SwiftKV model is not served with") as refused:
        sglang.Engine(model_path=TINY, enable_lora=True, lora_paths=["a=b"], kv_cache_dtype="fp4_e2m1")
    assert "--enable-lora True: adapters name projections" in str(refused.value)


def test_a_checkpoint_that_lacks_tensors_stops_the_start(tmp_path):
    source = transformers.AutoConfig.from_pretrained(TINY)
    source.num_key_value_layers = 3  # layer 3 has no SwiftKV tensors in this checkpoint
    source.save_pretrained(tmp_path)
    for name in ("model-swiftkv.safetensors", "model-base.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).symlink_to(f"{TINY}/{name}")
    done = launch(["--model-path", str(tmp_path), "--skip-tokenizer-init"])
    assert "lacks 3 of the" in done
    assert "model.layers.3.self_attn.q_proj_swiftkv.weight" in done


@pytest.mark.full  # the unit tests have the message, and that a server stops at one is above
def test_a_cut_that_does_not_fit_stops_the_start(tmp_path):
    source = transformers.AutoConfig.from_pretrained(TINY)
    source.num_key_value_layers = 8
    source.save_pretrained(tmp_path)
    done = launch(["--model-path", str(tmp_path), "--skip-tokenizer-init"])
    assert "num_key_value_layers is 8 in a model of 8 layers; it must be between 1 and 7" in done


@pytest.mark.full  # the same
def test_a_swiftkv_flag_with_a_plain_model_stops_the_start(tiny_model_dir):
    done = launch(["--model-path", tiny_model_dir, "--swiftkv-min-tokens", "8"])
    assert "--swiftkv-min-tokens was given, and the model (LlamaForCausalLM) is no SwiftKV model" in done


def test_the_card_says_what_the_files_say():
    recorded = json.loads((ROOT_OF_TINY / "evaluation.json").read_text(encoding="utf-8"))
    assert recorded["distilled"]["ratio"] < 1.03
    card = (ROOT_OF_TINY / "README.md").read_text(encoding="utf-8")
    for which in ("converted", "distilled"):
        assert f"{100 * (recorded[which]['ratio'] - 1):.2f} %" in card


def launch(args):
    command = [sys.executable, "-m", "sglang.launch_server", *args, "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr
