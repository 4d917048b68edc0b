"""Random models of small shapes for Shift Parallelism, on a CPU (`tests/engine`) and on GPUs (`tests/gpu`)."""

from pathlib import Path

import torch
import transformers

from tests import swiftkv_cases

SWIFTKV = "swiftkv-"  # before a family: its SwiftKV model


def make_model(folder: Path, family: str, **shape) -> torch.nn.Module:
    """Saves a random model in float32 and returns it.

    Args:
        folder: where to.
        family: what config.json calls it, or `SWIFTKV` and that.
        shape: fields of config.json; layers, if they are not told, are three, of a SwiftKV model eight.
    """
    if family.startswith(SWIFTKV):
        return swiftkv_cases.make_model(folder, family.removeprefix(SWIFTKV), group_size=2, **shape)
    torch.manual_seed(0)
    shape = {
        "num_hidden_layers": 3, "vocab_size": swiftkv_cases.VOCABULARY, "max_position_embeddings": 2048,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": family == "qwen2", **shape,
    }  # fmt: skip
    if family == "llama":
        shape["attention_bias"] = True
    if family == "qwen3_moe":
        shape |= {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}
    if family == "mistral":
        shape["sliding_window"] = None
    config = transformers.AutoConfig.for_model(family, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 1.2 / config.hidden_size**0.5)
    model.to(torch.float32).save_pretrained(folder)
    return model
