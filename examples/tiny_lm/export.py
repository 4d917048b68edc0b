"""Save the trained model in Hugging Face's format, and read its weights back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from model import TinyLlama
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
MIB = 1 << 20


def save(model: TinyLlama, data: Path, out: Path, pad: int, eos: int) -> None:
    """Write config, generation config, bf16 weights and the tokenizer's files."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, str(out / WEIGHTS), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(model.config.to_hf(pad, eos), indent=2) + "\n")
    generation = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": eos, "pad_token_id": pad}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data / name, out / name)


def reload(model: TinyLlama, out: Path) -> None:
    """Replace the model's weights by the saved, rounded ones."""
    state = load_file(str(out / WEIGHTS))
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})


def split(out: Path, mib: int) -> None:
    """Replace the weights file by parts of at most `mib` MiB (join them again with `cat`)."""
    data = (out / WEIGHTS).read_bytes()
    size = mib * MIB
    for number, start in enumerate(range(0, len(data), size)):
        (out / f"{WEIGHTS}.part{number}").write_bytes(data[start : start + size])
    (out / WEIGHTS).unlink()


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write `training.json`."""
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
