"""Claim: the tiny model gives the same greedy text on a GPU as on the CPU for at least 95 % of 200 prompts.

Runs the same prompts twice in this machine's SGLang: once with its default backend on the GPU in bf16, once
with the GPU hidden. Where the texts differ, it prints the margin that the CPU saw between its token and
the GPU's: a near tie, or a fault.

    python benchmarks/device_parity.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

MODEL = Path(__file__).parents[1] / "examples" / "tiny_lm" / "model"
HELD_OUT = Path(__file__).parents[1] / "examples" / "tiny_lm" / "heldout.jsonl"
SAMPLING = {"temperature": 0, "max_new_tokens": 48}


def worker(prompts_file: str, out: str, options: dict[str, Any]) -> None:
    """Generates for every prompt; writes token ids and, for each token, the two best logprobs."""
    import sglang

    engine = sglang.Engine(model_path=str(MODEL), **options)
    tokenizer = engine.tokenizer_manager.tokenizer
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": code}], tokenize=False, add_generation_prompt=True
        )
        for code in json.loads(Path(prompts_file).read_text())
    ]
    answers = engine.generate(texts, SAMPLING, return_logprob=True, top_logprobs_num=10)
    rows = [
        {
            "text": a["text"],
            "ids": [token for _, token, _ in a["meta_info"]["output_token_logprobs"]],
            "top": [[[p, token] for p, token, _ in top] for top in a["meta_info"]["output_top_logprobs"]],
        }
        for a in answers
    ]
    args = engine.server_args
    about = {"device": args.device, "attention_backend": args.attention_backend, "dtype": args.dtype}
    Path(out).write_text(json.dumps({"about": about, "rows": rows}))
    engine.shutdown()


def first_difference(cpu: dict[str, Any], gpu: dict[str, Any]) -> dict[str, Any]:
    """Where two answers part, and by how much the CPU preferred its own token there (nats)."""
    pairs = zip(cpu["ids"], gpu["ids"], strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(cpu["ids"]), len(gpu["ids"])))
    top = dict((token, p) for p, token in cpu["top"][at]) if at < len(cpu["top"]) else {}
    mine = cpu["ids"][at] if at < len(cpu["ids"]) else None
    other = gpu["ids"][at] if at < len(gpu["ids"]) else None
    margin = top[mine] - top[other] if mine in top and other in top else None
    return {"token": at, "margin_nats": margin, "cpu": cpu["text"], "gpu": gpu["text"]}


def main() -> None:
    """Command line."""
    options = common.parser(__doc__)
    options.add_argument("--prompts", type=int, default=200)
    options.add_argument("--cpu-dtype", default="auto", help="dtype on the CPU; auto: the plugin's float32")
    options.add_argument(
        "--worker", nargs=3, help="(internal) prompts file, output file, JSON of engine options"
    )
    args = options.parse_args()
    if args.worker:
        worker(args.worker[0], args.worker[1], json.loads(args.worker[2]))
        return
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["code"] for line in lines][: args.prompts]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.json"
        file.write_text(json.dumps(prompts))
        for device in ("gpu", "cpu"):
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
            engine = {"dtype": args.cpu_dtype} if device == "cpu" else {}
            out = Path(folder) / f"{device}.json"
            command = [sys.executable, __file__, "--worker", str(file), str(out), json.dumps(engine)]
            subprocess.run(command, check=True, env={**os.environ, **hidden})
            found[device] = json.loads(out.read_text())
    pairs = list(zip(found["cpu"]["rows"], found["gpu"]["rows"], strict=True))
    different = [first_difference(cpu, gpu) for cpu, gpu in pairs if cpu["ids"] != gpu["ids"]]
    content = {
        "model": "examples/tiny_lm/model", "prompts": len(prompts),
        "cpu": found["cpu"]["about"], "gpu": found["gpu"]["about"],
        "equal": len(prompts) - len(different), "equal_share": 1 - len(different) / len(prompts),
        "different": different,
    }  # fmt: skip
    common.write("device_parity", content, args.out, args.commit)


if __name__ == "__main__":
    main()
