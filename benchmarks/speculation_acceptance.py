"""Claim: on real text a draft head with a suffix index accepts more tokens a step than either, and is no slower.

The tiny model of examples/tiny_lm writes docstrings for functions that neither it nor its draft head was trained on,
at temperature 0. Five engines on the same machine: `none` is stock SGLang without speculation, `ngram` stock SGLang
with its NGRAM, and this plugin's `suffix`, `lstm` (the draft head alone) and `hybrid`. On a GPU all of them are
started first and then asked in turn; on a CPU there is one at a time.

    python benchmarks/speculation_acceptance.py                       # one GPU
    python benchmarks/speculation_acceptance.py --arms none suffix lstm hybrid --functions 40    # a CPU

Each row is `--functions` functions, N at a time (the next one is asked when one is answered; 48 of them with N = 1),
`--repeats` times after one pass that is not counted with other functions; tokens a step and output tokens a second,
prefill included, and how many texts are those of `none`. Responses of a pass are forgotten before the next
(flush_cache), so the index knows only what was said in the same pass.
"""

import argparse
import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import common
from engine_child import FIRST_PORT, Piped, about, own_output

TINY = Path(__file__).parents[1] / "examples" / "tiny_lm"
HEAD = {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": str(TINY / "speculator")}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "ngram": ("none", {"speculative_algorithm": "NGRAM"}),
    "suffix": ("arctic", {"speculative_algorithm": "SUFFIX"}),
    "lstm": ("arctic", HEAD),
    "hybrid": ("arctic", {**HEAD, "enable_suffix_decoding": True}),
}
TOKENS = 64
FUNCTIONS = 48  # asked for each request at once, at most


def functions() -> list[str]:
    """Held-out functions, in the order of the file."""
    lines = (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["code"] for line in lines]


async def generate(engine: Any, prompts: list[str], together: int) -> list[Any]:
    """Answers in the order of the prompts, `together` requests at a time."""
    gate = asyncio.Semaphore(together)
    sampling = {"temperature": 0, "max_new_tokens": TOKENS}  # most docstrings end long before

    async def one(prompt: str) -> Any:
        async with gate:
            return await engine.async_generate(prompt, sampling)

    return await asyncio.gather(*map(one, prompts))


def serve(options: dict[str, Any], channel: TextIO) -> None:
    """The answering side: one engine; a pass a line, until the pipe closes."""
    import sglang

    engine = sglang.Engine(model_path=str(TINY / "model"), random_seed=1, log_level="info", **options)
    print(json.dumps(about(engine), default=str), file=channel, flush=True)
    known = functions()
    for line in sys.stdin:
        first, last, together = json.loads(line)
        engine.flush_cache()
        started = time.perf_counter()
        answers = engine.loop.run_until_complete(generate(engine, known[first:last], together))
        seconds = time.perf_counter() - started
        infos = [answer["meta_info"] for answer in answers]
        steps = sum(info.get("spec_verify_ct", info["completion_tokens"] - 1) for info in infos)
        tokens = sum(info["completion_tokens"] for info in infos)
        # The first token of an answer is the prefill's.
        told = {"tokens_per_second": tokens / seconds, "tokens_per_step": (tokens - len(infos)) / steps}
        texts = [answer["text"] for answer in answers]
        print(json.dumps({"figures": told, "texts": texts}), file=channel, flush=True)
    engine.shutdown()


def start(arm: str, args: argparse.Namespace) -> Piped | RuntimeError:
    """An arm's engine, or why there is none."""
    plugins, options = ARMS[arm]
    if common.hardware().startswith("CPU"):
        plugins = "arctic"
    else:
        # The pool is bounded by its tokens: engines that start at the same time cannot go by what memory is free.
        # Engines that start side by side share the host, and large prefill graphs are most of a start.
        options = {
            "mem_fraction_static": 0.6, "max_total_tokens": 65536, "cuda_graph_max_bs_prefill": 1024,
            "nccl_port": FIRST_PORT + list(ARMS).index(arm), **options,
        }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--serve", json.dumps(options)]
    try:
        return Piped(command, {"SGLANG_PLUGINS": plugins}, args.out / f"{args.name}.{arm}.log", args.limit_s)
    except RuntimeError as error:
        return error


def measure(arms: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """The rows of engines that are started together; an arm whose engine fails has an "error"."""
    with ThreadPoolExecutor(len(arms)) as pool:
        engines = dict(zip(arms, pool.map(start, arms, [args] * len(arms)), strict=True))
    found: dict[str, Any] = {}
    for arm, engine in engines.items():
        found[arm] = {"rows": {}, "texts": {}, "options": list(ARMS[arm][1])}
        found[arm] |= {"error": str(engine)} if isinstance(engine, RuntimeError) else engine.about
    for together in args.together:
        with ThreadPoolExecutor(len(arms)) as pool:  # the first requests compile kernels
            list(
                pool.map(
                    lambda arm, level=together: _ask(arm, engines[arm], found[arm], level, 0, args), arms
                )
            )
        for turn in range(1, 1 + args.repeats):
            for arm, engine in engines.items():
                _ask(arm, engine, found[arm], together, turn, args)
    for arm, engine in engines.items():
        if isinstance(engine, Piped):
            engine.close()
        for together, row in found[arm]["rows"].items():
            found[arm]["rows"][together] = {name: common.summary(values) for name, values in row.items()}
    return found


def _ask(
    arm: str, engine: Any, found: dict[str, Any], together: int, turn: int, args: argparse.Namespace
) -> None:
    if "error" in found:
        return
    try:
        if turn == 0:
            engine.ask([len(functions()) - 2 * together, len(functions()), together])
            return
        answer = engine.ask([0, min(args.functions, FUNCTIONS * together), together])
    except RuntimeError as error:
        found["error"] = str(error)
        return
    found["texts"][str(together)] = answer["texts"]
    row = found["rows"].setdefault(str(together), {name: [] for name in answer["figures"]})
    for name, value in answer["figures"].items():
        row[name].append(value)
    told = ", ".join(f"{value:.3f} {name}" for name, value in answer["figures"].items())
    print(f"{together} at once, pass {turn}: {arm}: {told}", file=sys.stderr, flush=True)


def same(arms: dict[str, Any]) -> None:
    """Replaces the texts of each arm by the share of them that no speculation says too; rounding may part a few."""
    said = {arm: found.pop("texts") for arm, found in arms.items()}
    plain = said.get("none", {})
    for arm, found in arms.items():
        found["same_as_none"] = {
            at: round(sum(a == b for a, b in zip(texts, plain[at], strict=True)) / len(texts), 4)
            for at, texts in said[arm].items()
            if at in plain
        }


def main() -> int:
    """Runs the arms, writes the JSON, prints the table."""
    options = common.parser(__doc__)
    options.add_argument("--serve", help=argparse.SUPPRESS)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--together", nargs="+", type=int, default=[1, 8, 32], help="requests at once")
    options.add_argument("--functions", type=int, default=200, help="of a pass; with one request at once 48")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--limit-s", type=float, default=600)
    options.add_argument("--name", default="speculation_acceptance")
    args = options.parse_args()
    if args.serve is not None:
        serve(json.loads(args.serve), own_output())
        return 0
    groups = [args.arms] if not common.hardware().startswith("CPU") else [[arm] for arm in args.arms]
    arms: dict[str, Any] = {}
    for group in groups:
        arms |= measure(group, args)
    same(arms)
    content = {"functions": args.functions, "tokens_out": TOKENS, "arms": arms}
    common.write(args.name, content, args.out, args.commit)
    for arm, found in arms.items():
        for together, row in found["rows"].items():
            medians = {name: round(values["median"], 3) for name, values in row.items()}
            print(arm, together, medians)
        print(arm, "says the same as none:", found["same_as_none"])
        if "error" in found:
            print(f"{arm} failed: {found['error']}", file=sys.stderr)
    return 1 if any("error" in found for found in arms.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
