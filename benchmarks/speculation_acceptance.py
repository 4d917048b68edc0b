"""Claim: on real text a draft head with a suffix index accepts more tokens a step than either, and is no slower.

The tiny model of examples/tiny_lm writes docstrings for functions that neither it nor its draft head was trained on,
at temperature 0. Five engines, one after the other on the same machine: `none` is stock SGLang without speculation,
`ngram` stock SGLang with its NGRAM, and this plugin's `suffix`, `lstm` (the draft head alone) and `hybrid`.

    python benchmarks/speculation_acceptance.py                       # one GPU
    python benchmarks/speculation_acceptance.py --arms none suffix lstm hybrid --functions 40    # a CPU

Each row is `--functions` functions, N at a time, `--repeats` times after one pass that is not counted with other
functions; tokens a step and output tokens a second, prefill included. Responses of a pass are forgotten before the
next (flush_cache), so the index knows only what was said in the same pass.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import common
from engine_child import Piped, about, own_output

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


def functions() -> list[str]:
    """Held-out functions, in the order of the file."""
    lines = (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["code"] for line in lines]


def serve(options: dict[str, Any], channel: TextIO) -> None:
    """The answering side: one engine; a pass a line, until the pipe closes."""
    import sglang

    engine = sglang.Engine(model_path=str(TINY / "model"), random_seed=1, **options)
    print(json.dumps(about(engine), default=str), file=channel, flush=True)
    known = functions()
    for line in sys.stdin:
        first, last, together = json.loads(line)
        asked = known[first:last]
        engine.flush_cache()
        sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
        started = time.perf_counter()
        answers = []
        for start in range(0, len(asked), together):
            answers += engine.generate(asked[start : start + together], sampling)
        seconds = time.perf_counter() - started
        infos = [answer["meta_info"] for answer in answers]
        steps = sum(info.get("spec_verify_ct", info["completion_tokens"] - 1) for info in infos)
        tokens = sum(info["completion_tokens"] for info in infos)
        # The first token of an answer is the prefill's.
        told = {"tokens_per_second": tokens / seconds, "tokens_per_step": (tokens - len(infos)) / steps}
        print(json.dumps(told), file=channel, flush=True)
    engine.shutdown()


def run_arm(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """One engine's life."""
    plugins, options = ARMS[arm]
    if common.hardware().startswith("CPU"):
        plugins = "arctic"
    else:
        options = {"mem_fraction_static": 0.2, **options}
    args.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--serve", json.dumps(options)]
    log = args.out / f"speculation_acceptance.{arm}.log"
    child = Piped(command, {"SGLANG_PLUGINS": plugins}, log, args.limit_s)
    found: dict[str, Any] = {**child.about, "options": list(options), "rows": {}}
    try:
        for together in args.together:
            child.ask([len(functions()) - 2 * together, len(functions()), together])
            passes = [child.ask([0, args.functions, together]) for _ in range(args.repeats)]
            found["rows"][str(together)] = row = {
                name: common.summary([turn[name] for turn in passes]) for name in passes[0]
            }
            steps, speed = row["tokens_per_step"]["median"], row["tokens_per_second"]["median"]
            print(f"{arm} {together}: {steps:.3f} tokens a step, {speed:,.0f} tokens/s", flush=True)
    finally:
        child.close()
    return found


def main() -> int:
    """Runs the arms, writes the JSON, prints the table."""
    options = common.parser(__doc__)
    options.add_argument("--serve", help=argparse.SUPPRESS)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--together", nargs="+", type=int, default=[1, 8, 32], help="requests at once")
    options.add_argument("--functions", type=int, default=160)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--limit-s", type=float, default=600)
    options.add_argument("--name", default="speculation_acceptance")
    args = options.parse_args()
    if args.serve is not None:
        serve(json.loads(args.serve), own_output())
        return 0
    arms: dict[str, Any] = {}
    failed = False
    for arm in args.arms:
        try:
            arms[arm] = run_arm(arm, args)
        except RuntimeError as error:
            failed = True
            arms[arm] = {"error": str(error).splitlines()[-1], "rows": {}}
            print(f"{arm} failed: {error}", file=sys.stderr, flush=True)
    content = {"functions": args.functions, "tokens_out": TOKENS, "arms": arms}
    common.write(args.name, content, args.out, args.commit)
    for arm, found in arms.items():
        for together, row in found["rows"].items():
            medians = {name: round(values["median"], 3) for name, values in row.items()}
            print(arm, together, medians)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
