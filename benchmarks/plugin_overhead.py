"""Claim: an installed but unused plugin costs under 1 % of decode and prefill speed.

Two engines of one model shape stand on one GPU at the same time, one in a process where SGLang loads no
plugin and one where it loads this one; no arctic flag is given. The workloads alternate between them, so
that clocks and temperature hit both alike. Weights are dummies of the real shape, token ids random.

    python benchmarks/plugin_overhead.py            # one GPU of 80 GB or more
    python benchmarks/plugin_overhead.py --small    # a few layers, any machine, to see that it runs
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 128000,
    "eos_token_id": 128001,
}  # fmt: skip
SMALL = {**LLAMA_8B, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1024,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

# name: (requests, tokens in, tokens out, the tokens that are counted)
WORKLOADS = {
    "prefill 16 x 8192": (16, 8192, 1, "in"),
    "decode 1 x 256": (1, 128, 256, "out"),
    "decode 64 x 256": (64, 128, 256, "out"),
}
SMALL_WORKLOADS = {"prefill 4 x 256": (4, 256, 1, "in"), "decode 4 x 16": (4, 16, 16, "out")}


def worker(
    model: str, workloads: dict[str, tuple[int, int, int, str]], engine_options: dict[str, Any]
) -> None:
    """Holds one engine; reads a workload's name a line, answers with its tokens per second."""
    import sglang

    engine = sglang.Engine(model_path=model, load_format="dummy", skip_tokenizer_init=True, **engine_options)
    draw = random.Random(0)
    print(json.dumps({"ready": type(engine.server_args).__name__}), flush=True)
    for line in sys.stdin:
        requests, tokens_in, tokens_out, counted = workloads[line.strip()]
        ids = [[draw.randrange(3, 1000) for _ in range(tokens_in)] for _ in range(requests)]
        engine.flush_cache()
        started = time.perf_counter()
        engine.generate(
            input_ids=ids,
            sampling_params={"temperature": 0, "max_new_tokens": tokens_out, "ignore_eos": True},
        )
        seconds = time.perf_counter() - started
        tokens = requests * (tokens_in if counted == "in" else tokens_out)
        print(json.dumps({"tokens_per_second": tokens / seconds}), flush=True)
    engine.shutdown()


def start(arm: str, folder: str, small: bool) -> subprocess.Popen[str]:
    """Starts a worker, `stock` or `plugin`, and waits until its engine stands."""
    # An empty list of plugins means "all" to SGLang; a name that does not exist means none.
    environment = {**os.environ, "SGLANG_PLUGINS": "none" if arm == "stock" else "arctic"}
    command = [sys.executable, __file__, "--worker", folder, *(["--small"] if small else [])]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    ready = answer(process)["ready"]
    expected = "ServerArgs" if arm == "stock" else "ArcticServerArgs"
    if ready != expected:
        message = f"the {arm} engine has {ready}, not {expected}: is the plugin installed?"
        raise RuntimeError(message)
    return process


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The worker's next line of JSON; whatever else SGLang prints is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    message = f"the worker ended with {process.wait()}"
    raise RuntimeError(message)


def ask(process: subprocess.Popen[str], workload: str) -> float:
    """Runs one workload; tokens per second."""
    assert process.stdin is not None
    process.stdin.write(workload + "\n")
    process.stdin.flush()
    return answer(process)["tokens_per_second"]


def main() -> None:
    """Command line."""
    options = common.parser(__doc__)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--small", action="store_true", help="a toy shape, to see that the script runs")
    options.add_argument("--worker", help="(internal) folder of the model; run one engine")
    args = options.parse_args()
    workloads = SMALL_WORKLOADS if args.small else WORKLOADS
    if args.worker:
        pool = {} if args.small else {"max_total_tokens": 160_000, "mem_fraction_static": 0.45}
        worker(args.worker, workloads, pool)
        return
    with tempfile.TemporaryDirectory() as folder:
        config = SMALL if args.small else LLAMA_8B
        (Path(folder) / "config.json").write_text(json.dumps(config))
        arms = {arm: start(arm, folder, args.small) for arm in ("stock", "plugin")}
        figures: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in arms} for name in workloads}
        for repeat in range(args.repeats + 1):
            for name in workloads:
                order = list(arms) if repeat % 2 else list(arms)[::-1]
                for arm in order:
                    value = ask(arms[arm], name)
                    if repeat > 0:  # the first round warms up
                        figures[name][arm].append(value)
        for process in arms.values():
            process.stdin.close()
            process.wait(60)
    rows = {name: {arm: common.summary(values) for arm, values in by.items()} for name, by in figures.items()}
    ratios = {name: round(row["plugin"]["median"] / row["stock"]["median"], 4) for name, row in rows.items()}
    content = {"shape": "toy" if args.small else "Llama-3.1-8B, bf16, dummy weights", "unit": "tokens/s",
               "plugin_over_stock": ratios, "workloads": rows}  # fmt: skip
    common.write("plugin_overhead", content, args.out, args.commit)


if __name__ == "__main__":
    main()
