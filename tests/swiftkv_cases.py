"""SwiftKV models of small random shapes, and a served model beside its twin in transformers.

Shared by the tests on the CPU (`tests/engine/test_swiftkv.py`) and on a GPU (`tests/gpu/test_swiftkv.py`).
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import swiftkv.hf
from swiftkv.config import CONFIGS
from swiftkv.layout import ARCHITECTURES

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "examples" / "tiny_lm" / "swiftkv")
VOCABULARY = 512


def make_model(
    folder: Path, family: str, *, group_size: int = 1, dtype: torch.dtype = torch.float32, **shape
) -> torch.nn.Module:
    """Saves a random SwiftKV model in a folder and returns its twin."""
    torch.manual_seed(0)
    config = CONFIGS[family](
        **{
            "num_hidden_layers": 8,
            "num_key_value_layers": 4,
            "key_value_group_size": group_size,
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 1024,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "architectures": [ARCHITECTURES[family]],
            **shape,
        }
    )
    model = swiftkv.hf.MODELS[family](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 1.2 / config.hidden_size**0.5)
    model.to(dtype).save_pretrained(folder)
    return model


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; never the last, which SGLang reports as 0 in prompt logprobs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY - 1, (n,), generator=generator).tolist() for n in lengths]


@dataclass
class Difference:
    """The largest differences of log-probabilities between served and twin."""

    output: float = 0.0
    prompt: float = 0.0
    total: float = 0.0  # sum over all of them
    outputs: int = 0
    prompts: int = 0
    other_tokens: int = 0  # served tokens that the twin would not have chosen

    @property
    def mean(self) -> float:
        """The mean difference."""
        return self.total / max(1, self.outputs + self.prompts)

    def __str__(self) -> str:
        return (
            f"{self.outputs} output logprobs differ by up to {self.output:.2e}, {self.prompts} prompt logprobs "
            f"by up to {self.prompt:.2e}, {self.mean:.2e} on average; {self.other_tokens} tokens are not the twin's"
        )


@torch.no_grad()
def compare(twin: torch.nn.Module, asked: list[list[int]], answers: list[dict]) -> Difference:
    """Served answers, with logprobs, against the twin on the whole sequences."""
    found = Difference()
    for prompt, answer in zip(asked, answers, strict=True):
        new = answer["output_ids"]
        device = next(twin.parameters()).device
        logits = twin(torch.tensor([prompt + new], device=device)).logits[0].float()
        logprobs = torch.log_softmax(logits, -1).cpu()
        meta = answer["meta_info"]
        for index, (value, token, *_) in enumerate(meta.get("output_token_logprobs") or ()):
            row = logprobs[len(prompt) - 1 + index]
            difference = abs(value - row[token].item())
            found.output = max(found.output, difference)
            found.total += difference
            found.other_tokens += int(row.argmax().item() != token)
            found.outputs += 1
        known = [entry for entry in meta.get("input_token_logprobs") or () if entry[0] is not None]
        first = len(prompt) - len(known)
        for index, (value, token, *_) in enumerate(known, first):
            assert token == prompt[index]
            difference = abs(value - logprobs[index - 1, token].item())
            found.prompt = max(found.prompt, difference)
            found.total += difference
            found.prompts += 1
    return found


@torch.no_grad()
def rescored(model: torch.nn.Module, asked: list[list[int]], answers: list[dict]) -> list[dict]:
    """The same answers with the log-probabilities that another model gives them."""
    found = []
    for prompt, answer in zip(asked, answers, strict=True):
        ids = prompt + answer["output_ids"]
        logits = model(torch.tensor([ids], device=next(model.parameters()).device)).logits[0].float()
        own = [None, *torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]].tolist()]
        known = len(answer["meta_info"].get("input_token_logprobs") or ())
        at = range(len(prompt) - known, len(prompt))
        scored = {
            "output_token_logprobs": [(own[i], ids[i]) for i in range(len(prompt), len(ids))],
            "input_token_logprobs": [(own[i], ids[i]) for i in at],
        }
        found.append({**answer, "meta_info": scored})
    return found


def tiny_prompts(count: int) -> list[list[int]]:
    """Held-out functions in the tiny model's chat template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    lines = (ROOT / "examples" / "tiny_lm" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    chats = [[{"role": "user", "content": json.loads(line)["code"]}] for line in lines]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in chats]


def generate(engine, asked: list[list[int]], new_tokens: int = 8, **fields) -> list[dict]:
    """Greedy answers of an engine."""
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return engine.generate(input_ids=asked, sampling_params=sampling, **fields)


def flush(engine) -> None:
    """Empties the radix cache; SGLang refuses while it still puts a finished request away."""
    for _ in range(200):
        if engine.flush_cache().success:
            return
        time.sleep(0.02)
    raise TimeoutError("the radix cache could not be emptied")


def prefill_steps(log: str) -> list[tuple[int, int]]:
    """(requests begun, new tokens) of every prefill step that a server's log tells of."""
    return [
        (int(a), int(b)) for a, b in re.findall(r"Prefill batch.*?#new-seq: (\d+), #new-token: (\d+)", log)
    ]
