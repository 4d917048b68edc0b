"""Claim: Shift Parallelism answers one request like tensor parallelism and a thousand like data parallelism.

Engines of one model shape stand on the same GPUs at the same time and are asked in turn: `tp` is stock SGLang with
`tp_size` N, `dp` stock SGLang with `dp_size` N, `shift` this plugin with N ranks over one copy of the weights, `sp` the
same without changing its mode (plain Ulysses; only if it is named). Weights are dummies, or with `--model` those of a
checkpoint; token ids are random either way, the radix cache is off, all else SGLang's defaults.

    python benchmarks/shift_speed.py                                                     # Llama-3.1-8B, four GPUs
    python benchmarks/shift_speed.py --shape llama-3.3-70b --quantization fp8 --one-after-another
    python benchmarks/shift_speed.py --model FOLDER --gpus 8                             # a checkpoint
    python benchmarks/shift_speed.py --shape toy --gpus 2 --threshold 24                 # any machine

`ttft N` is one prompt of N tokens and one token out. `prefill` is a batch of prompts of 8192, one token out each.
`decode N` is the time per output token of N requests at once: 257 tokens out less 1 token out, over 256. `mix` is 256
requests of 2000 tokens in and 250 out. Each is run once before it is measured, then `--repeats` times (3), arm after
arm; medians are compared, as how many times as fast shift is.

Engines get their memory as `deployments.py` says. Three arms of the 8B fit beside each other on GPUs of 140 GB, four do
not: name `sp` in a command of its own. Those of the 70B do not fit at all.

Figures are merged into the JSON that is there, so that arms or workloads can be measured one command at a time.
"""

import argparse
import sys
from typing import Any

import common
from deployments import add_options, engines, measure, most_tokens, settle
from record import Record
from shapes import MODELS
from workloads import Workload, choose, workloads

PROMPTS = (128, 512, 2048, 8192)
COMPARED = ("tp", "dp", "shift", "sp")
# How many times as fast as which arm shift was asked to be, and that in words.
BETTER = "the better of tp and dp"
BARS = {
    "ttft 8192": ("tp", 1 / 0.76, "at most 0.76 of tp's time"),
    "prefill": ("dp", 0.96, "at least 0.96 of dp's tokens/s"),
    "decode 1": ("tp", 0.98, "at least 0.98 of tp's speed"),
    "decode 64": (BETTER, 0.98, "at least 0.98 of the better one's speed"),
    "decode 256": (BETTER, 0.98, "at least 0.98 of the better one's speed"),
    "mix": (BETTER, 1.0, "at least the better one's speed"),
}
COPY_BAR = 1.02


def compare(
    arms: dict[str, Any], loads: dict[str, Workload], base_tp: int, bars: bool
) -> dict[str, dict[str, Any]]:
    """For each workload the medians, how many times as fast shift is as each other arm, and what was asked.

    Args:
        arms: as in the JSON.
        loads: all workloads by name.
        base_tp: GPUs that share one copy of shift's weights.
        bars: whether anything was asked of this shape.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, load in loads.items():
        medians = {
            arm: found["cases"][name]["median"] for arm, found in arms.items() if name in found["cases"]
        }
        if not medians:
            continue
        table[name] = row = {"unit": load.unit, "medians": medians}
        if "shift" not in medians:
            continue
        row["faster_than"] = {
            arm: round(load.faster(medians["shift"], medians[arm]), 4) for arm in COMPARED if arm in medians
        }
        del row["faster_than"]["shift"]
        if bars and name in BARS:
            row |= _judged(row["faster_than"], *BARS[name])
    weights = _weights(arms, base_tp, bars)
    return {**table, "weights": weights} if weights else table


def _judged(faster: dict[str, float], against: str, least: float, words: str) -> dict[str, Any]:
    rivals = ("tp", "dp") if against == BETTER else (against,)
    if not faster.keys() >= set(rivals):
        return {}
    ratio = min(faster[arm] for arm in rivals)
    bar = {"against": against, "at_least": round(least, 4), "stated": words}
    return {"bar": {**bar, "ratio": ratio, "met": ratio >= least}}


def _weights(arms: dict[str, Any], base_tp: int, bars: bool) -> dict[str, Any] | None:
    """Memory of the weights of one GPU beside one copy, shared by `base_tp` GPUs, after the stock arms' figures."""
    found = {arm: about["weights_gib"] for arm, about in arms.items() if about.get("weights_gib")}
    full = found.get("dp") or found.get("tp", 0) * arms.get("tp", {}).get("options", {}).get("tp_size", 1)
    row: dict[str, Any] = {"unit": "GiB a GPU", "medians": found}
    if bars and full and "shift" in found:
        ratio = round(found["shift"] / (full / base_tp), 4)
        words = f"at most {COPY_BAR} of one copy shared by {base_tp}"
        bar = {"against": "one copy", "at_most": COPY_BAR, "stated": words}
        row["bar"] = {**bar, "ratio": ratio, "met": ratio <= COPY_BAR}
    return row if found else None


def show(table: dict[str, dict[str, Any]]) -> str:
    """The comparison as text."""
    form = "{:<12}{:>10}" + "{:>12}" * len(COMPARED) + "{:>9}{:>9}  {}"
    lines = [form.format("workload", "unit", *COMPARED, "x tp", "x dp", "asked")]
    for name, row in table.items():
        medians, faster, bar = row["medians"], row.get("faster_than", {}), row.get("bar")
        cells = [f"{medians[arm]:,.2f}" if arm in medians else "-" for arm in COMPARED]
        cells += [f"{faster[arm]:.3f}" if arm in faster else "-" for arm in ("tp", "dp")]
        asked = f"{'met' if bar['met'] else 'NOT MET'}: {bar['stated']}" if bar else ""
        if bar and "at_most" in bar:
            asked += f" ({bar['ratio']:.3f})"
        lines.append(form.format(name, row["unit"], *cells, asked).rstrip())
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    add_options(options, ["tp", "dp", "shift"])
    options.add_argument("--name", help="of the JSON; default shift_speed_<shape>[_fp8]")
    args = options.parse_args(argv)
    settle(options, args)
    args.name = args.name or "_".join(filter(None, ("shift_speed", args.shape, args.quantization)))
    return args


def main() -> int:
    """Runs the arms, writes the JSON after every figure, prints the table; 1 if an arm failed."""
    args = parse()
    toy = args.source is MODELS["toy"]
    asked = not toy and args.model is None and args.gpus == 4
    known = workloads(toy, args.prefill_requests, PROMPTS)
    chosen = choose(args.workloads, known)
    tokens = most_tokens(known, args.gpus)
    about = {
        "shape": args.shape, "quantization": args.quantization, "gpus": args.gpus, "base_tp": args.base_tp,
        "weights": args.source.weights,
        "sizes": {name: [w.requests, w.tokens_in, w.tokens_out] for name, w in known.items()},
    }  # fmt: skip
    record = Record(args, about, lambda arms: compare(arms, known, args.base_tp, bars=asked))
    for names in [[arm] for arm in args.arms] if args.one_after_another else [args.arms]:
        with engines(names, args, record, tokens) as running:
            measure(running, chosen, args.repeats, record)
    print(show(record.content["table"]))
    print(f"written to {args.out / args.name}.json")
    return 1 if record.ended else 0


if __name__ == "__main__":
    sys.exit(main())
