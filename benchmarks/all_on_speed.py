"""Claim: one deployment with everything on is first, or within 3 % of the first, in latency and in throughput at once.

Engines on the same GPUs, asked in turn. Of stock SGLang: `tp` and `dp` take all GPUs for tensor or data parallelism,
`tp-ngram` and `dp-ngram` do that with SGLang's own drafts. Of this plugin: `swiftkv` is Shift Parallelism with the
SwiftKV model of the same sizes, `all` that with a draft head and suffix decoding too. On one GPU they are without Shift
Parallelism, and `dp` is `tp`.

    python benchmarks/all_on_speed.py                                  # Llama-3.1-8B's shape, four GPUs
    python benchmarks/all_on_speed.py --shape llama-3.3-70b --quantization fp8 --one-after-another
    python benchmarks/all_on_speed.py --model FOLDER --swiftkv-model FOLDER --draft-head FOLDER --gpus 8
    python benchmarks/all_on_speed.py --gpus 1 --mix-requests 64 --prefill-requests 16       # one GPU
    python benchmarks/all_on_speed.py --shape toy --gpus 2 --arms swiftkv all --threshold 24      # any machine

Workloads are those of `shift_speed.py`. What drafts are worth depends on the text, so there are two kinds, with a JSON
each. `fresh` samples at temperature 1, and dummy weights then offer nothing to draft: what speculation costs.
`repeats` is greedy, and answers of dummy weights soon repeat themselves: the most that it brings. Text of real models
is between the two; with `--model` both are what its weights say to random prompts. Without `--draft-head` the head is
random too.

`deployments.py` says how engines share GPUs. KV caches hold the largest workload: `--prefill-requests` and
`--mix-requests` make it smaller, so that more arms fit beside each other.
"""

import argparse
import sys
from typing import Any

import common
from deployments import ARMS, add_options, engines, measure, most_tokens, settle
from record import Record, Records
from shapes import MODELS
from workloads import Workload, choose, workloads

PROMPTS = (2048, 8192)
TEXTS = {"fresh": 1.0, "repeats": 0.0}  # and their temperature
OWN = ("swiftkv", "all")
NEAR, AHEAD = 0.97, 1.5
# What four GPUs were asked to reach with the 8B in bf16 by Shift Parallelism and SwiftKV, in each workload's unit.
REACHED = {"ttft 8192": 38.0, "prefill": 225_000.0, "mix": 256 * 2250 / 135_000}


def compare(
    arms: dict[str, Any], loads: dict[str, Workload], bars: bool, reached: bool
) -> dict[str, dict[str, Any]]:
    """For each workload the medians, how many times as fast our arms are as each other one, and what was asked.

    Args:
        arms: as in the JSON.
        loads: all workloads by name.
        bars: whether anything was asked of this number of GPUs.
        reached: whether that goes for `REACHED` too.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, load in loads.items():
        medians = {
            arm: found["cases"][name]["median"] for arm, found in arms.items() if name in found["cases"]
        }
        if not medians:
            continue
        stock = {arm: median for arm, median in medians.items() if ARMS[arm].stock}
        faster = {
            own: {arm: round(load.faster(medians[own], median), 4) for arm, median in stock.items()}
            for own in OWN
            if own in medians
        }
        table[name] = {"unit": load.unit, "medians": medians, "faster": faster}
        if bars:
            table[name]["bars"] = _judged(load, medians, faster, REACHED.get(name) if reached else None)
    return table


def _judged(
    load: Workload, medians: dict[str, float], faster: dict[str, dict[str, float]], reach: float | None
) -> list[dict[str, Any]]:
    """What was asked of a workload: of whom, in words, the figure and whether it is met."""
    found = []

    def add(arm: str, stated: str, value: float, least: float) -> None:
        found.append({"arm": arm, "stated": stated, "value": round(value, 4), "met": value >= least})

    if rivals := faster.get("all"):
        add("all", f"at least {NEAR} of the first one's speed", min(rivals.values()), NEAR)
        if "tp" in rivals and (load.kind == "mix" or (load.kind == "ttft" and load.tokens_in >= 8192)):
            add("all", f"at least {AHEAD} times tp's speed", rivals["tp"], AHEAD)
    if reach is not None and "swiftkv" in medians:
        word = "at least" if load.kind == "prefill" else "at most"
        stated = f"{word} {reach:,.2f} {load.unit}: times as fast as that"
        add("swiftkv", stated, load.faster(medians["swiftkv"], reach), 1.0)
    elif reach is None and load.kind == "decode" and "tp" in faster.get("swiftkv", {}):
        add("swiftkv", "tp's speed: at least 0.98 of it", faster["swiftkv"]["tp"], 0.98)
    return found


def show(table: dict[str, dict[str, Any]]) -> str:
    """The comparison as text."""
    form = "{:<12}{:>10}" + "{:>11}" * len(ARMS)
    lines = [form.format("workload", "unit", *ARMS)]
    for name, row in table.items():
        cells = [f"{row['medians'][arm]:,.2f}" if arm in row["medians"] else "-" for arm in ARMS]
        lines.append(form.format(name, row["unit"], *cells))
        lines += [
            f"    {'met' if bar['met'] else 'NOT MET'}: {bar['arm']}, {bar['stated']}: {bar['value']:.3f}"
            for bar in row.get("bars", ())
        ]
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    add_options(options, ["tp", "dp", "tp-ngram", "dp-ngram", *OWN])
    options.add_argument(
        "--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="what answers are like"
    )
    options.add_argument("--mix-requests", type=int, default=256, help="of the mix")
    options.add_argument("--name", help="of the JSON; default all_on_<shape>[_fp8]; _<text> follows")
    args = options.parse_args(argv)
    settle(options, args)
    args.name = args.name or "_".join(filter(None, ("all_on", args.shape, args.quantization)))
    return args


def main() -> int:
    """Runs the arms, writes the JSON after every figure, prints the table; 1 if an arm failed."""
    args = parse()
    toy = args.source is MODELS["toy"]
    loads = {
        text: workloads(toy, args.prefill_requests, PROMPTS, args.mix_requests, TEXTS[text])
        for text in args.texts
    }
    records = {text: _record(args, text, known) for text, known in loads.items()}
    tokens = most_tokens(loads[args.texts[0]], args.gpus)
    for names in [[arm] for arm in args.arms] if args.one_after_another else [args.arms]:
        with engines(names, args, Records(records), tokens) as running:
            for text, known in loads.items():
                measure(running, choose(args.workloads, known), args.repeats, records[text])
    for text, record in records.items():
        print(f"{text}:\n{show(record.content['table'])}")
    print(f"written to {args.out / args.name}_*.json")
    return 1 if any(record.ended for record in records.values()) else 0


def _record(args: argparse.Namespace, text: str, known: dict[str, Workload]) -> Record:
    about = {
        "shape": args.shape, "quantization": args.quantization, "gpus": args.gpus, "base_tp": args.base_tp,
        "weights": args.source.weights, "text": text,
        "sizes": {name: [w.requests, w.tokens_in, w.tokens_out] for name, w in known.items()},
    }  # fmt: skip
    asked = args.source is not MODELS["toy"] and args.model is None and args.gpus == 4
    reached = asked and args.shape == "llama-3.1-8b" and args.quantization is None
    named = argparse.Namespace(**{**vars(args), "name": f"{args.name}_{text}"})
    return Record(named, about, lambda arms: compare(arms, known, asked, reached))


if __name__ == "__main__":
    sys.exit(main())
