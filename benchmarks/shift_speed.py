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

SGLang sizes its KV cache by the memory that is free once the weights are loaded, and takes the memory that went
meanwhile for the weights' size. So processes start at once but build their engines one at a time (`--together`: all at
once, and no word on the weights' memory), and every arm has KV slots for all tokens of the largest workload and no
more: `max_total_tokens` (of `dp`, its Nth part a replica), the same memory in every arm. With `--one-after-another`
each engine is alone and has SGLang's own sizes; ratios are then of times minutes apart. Three arms of the 8B fit beside
each other on GPUs of 140 GB, four do not: name `sp` in a command of its own. Those of the 70B do not fit at all.

Figures are merged into the JSON that is there, so that arms or workloads can be measured one command at a time.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
from engine_child import FIRST_PORT, Child, check_plugins, plugins
from record import Record
from shapes import MODELS, add_source, settle_source
from workloads import Workload, choose, workloads

ARMS = ("tp", "dp", "shift", "sp")
PROMPTS = (128, 512, 2048, 8192)
# Of the memory that is free when an engine starts, 5 % is no room for its KV slots: the slots are bounded by tokens.
MEMORY = {"mem_fraction_static": 0.95}
# Beside others, a GPU may have less free memory than its neighbour, which SGLang otherwise refuses.
BESIDE = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "false"}
SPARE = 1.02  # KV slots over those of the largest workload
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
            arm: round(load.faster(medians["shift"], medians[arm]), 4) for arm in ARMS if arm in medians
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
    form = "{:<12}{:>10}" + "{:>12}" * len(ARMS) + "{:>9}{:>9}  {}"
    lines = [form.format("workload", "unit", *ARMS, "x tp", "x dp", "asked")]
    for name, row in table.items():
        medians, faster, bar = row["medians"], row.get("faster_than", {}), row.get("bar")
        cells = [f"{medians[arm]:,.2f}" if arm in medians else "-" for arm in ARMS]
        cells += [f"{faster[arm]:.3f}" if arm in faster else "-" for arm in ("tp", "dp")]
        asked = f"{'met' if bar['met'] else 'NOT MET'}: {bar['stated']}" if bar else ""
        if bar and "at_most" in bar:
            asked += f" ({bar['ratio']:.3f})"
        lines.append(form.format(name, row["unit"], *cells, asked).rstrip())
    return "\n".join(lines)


def engine_options(arm: str, args: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Keywords of `sglang.Engine` for one arm.

    Args:
        arm: its name.
        args: of the command line.
        tokens: in all KV caches together at once.
    """
    sequence = {"tp_size": args.base_tp, "ulysses_sequence_parallel_size": args.gpus // args.base_tp}
    chosen: dict[str, Any] = {
        "tp": {"tp_size": args.gpus},
        "dp": {"dp_size": args.gpus},
        "shift": {**sequence, "enable_shift_parallel": True, "shift_parallel_threshold": args.threshold},
        "sp": sequence,
    }[arm]
    options = args.source.options | chosen
    if args.quantization:
        options["quantization"] = args.quantization
    on_cpu = common.hardware().startswith("CPU")
    if on_cpu or not args.one_after_another:
        options["max_total_tokens"] = tokens // args.gpus if arm == "dp" else tokens
    if not on_cpu and not args.one_after_another:
        options |= MEMORY
    if not on_cpu and arm != "dp":  # whose replicas find a port each
        options["nccl_port"] = FIRST_PORT + ARMS.index(arm)
    own = args.shift_option if arm in ("shift", "sp") else []
    return options | dict([*args.engine_option, *own])


def start(
    arm: str, args: argparse.Namespace, folder: Path, tokens: int, beside: bool
) -> Child | RuntimeError:
    """An arm's engine, or why there is none.

    Args:
        arm: its name.
        args: of the command line.
        folder: a temporary one; with the config.json, if there is no checkpoint.
        tokens: in all KV caches together at once.
        beside: whether other engines are on the same GPUs.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.name}.{arm}.log"
    turn = folder / "turn" if beside and not args.together else None
    stock = arm in ("tp", "dp")
    child = None
    try:
        child = Child(
            args.source.folder or folder, engine_options(arm, args, tokens), plugins(stock=stock), log, args.limit_s,
            turn=turn, environment=BESIDE if beside else None,
        )  # fmt: skip
        check_plugins(arm, child.about["arguments"], stock=stock)
        slots = child.about["max_total_num_tokens"] * (args.gpus if arm == "dp" else 1)
        if slots < tokens // SPARE:
            message = f"the {arm} engine has {slots} KV slots, and {tokens} are wanted: its figures would be of another"
            raise RuntimeError(message)
    except RuntimeError as error:
        if child is not None:
            child.close()
        return error
    print(f"{arm}: started in {child.about['startup_seconds']:.0f} s", flush=True)
    return child


@contextmanager
def engines(
    names: list[str], args: argparse.Namespace, record: Record, tokens: int
) -> Iterator[dict[str, Child]]:
    """Those of these arms that started; what each says of itself is in the record."""
    beside = len(names) > 1
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        args.source.place(folder)
        with ThreadPoolExecutor(len(names)) as pool:
            found = dict(
                zip(names, pool.map(lambda a: start(a, args, folder, tokens, beside), names), strict=True)
            )
        running = {}
        for arm, child in found.items():
            options = engine_options(arm, args, tokens)
            if isinstance(child, RuntimeError):
                record.arm(arm, {"options": options, "beside": beside})
                record.failed(arm, child)
                continue
            running[arm] = child
            memory = child.about["memory_gib_of_first_rank"] or {}
            weights = None if beside and args.together else memory.get("weight")
            about = {"options": options, "beside": beside, "weights_gib": weights, "about": child.about}
            record.arm(arm, about)
        try:
            yield running
        finally:
            for arm, child in running.items():
                child.close()
                if "error" not in record.content["arms"][arm] and not args.keep_logs:
                    child.log.unlink()


def measure(running: dict[str, Child], chosen: dict[str, Workload], repeats: int, record: Record) -> None:
    """Every workload, repeat by repeat, arm after arm; an arm that fails is left out from then on."""
    for name, load in chosen.items():
        figures: dict[str, list[float]] = {arm: [] for arm in running}
        for turn in range(1 + repeats):
            for arm in list(figures):
                try:
                    if turn:
                        figures[arm].append(load.figure(running[arm]))
                    else:
                        load.warm(running[arm])
                except RuntimeError as error:
                    record.failed(arm, error)
                    del figures[arm], running[arm]
        for arm, values in figures.items():
            record.add(arm, name, {"unit": load.unit, **common.summary(values)})


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    add_source(options)
    options.add_argument("--quantization", help="of all arms: fp8")
    options.add_argument("--gpus", type=int, default=4)
    options.add_argument("--base-tp", type=int, default=1, help="GPUs that share one copy of shift's weights")
    options.add_argument(
        "--threshold", default="auto", help="of shift: tokens up to which a step is tensor parallel"
    )
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:3]))
    options.add_argument("--workloads", nargs="+", metavar="NAME", help='names or kinds: "ttft 8192" decode')
    options.add_argument("--prefill-requests", type=int, default=32, help="prompts of the prefill workload")
    options.add_argument("--repeats", type=int, default=3)
    how = options.add_mutually_exclusive_group()
    how.add_argument("--together", action="store_true", help="build all engines at once")
    how.add_argument(
        "--one-after-another", action="store_true", help="each engine alone, with SGLang's own sizes"
    )
    extra = {"type": common.key_value, "action": "append", "default": [], "metavar": "KEY=VALUE"}
    options.add_argument(
        "--engine-option", **extra, help="another Engine keyword for all arms; again for more"
    )
    options.add_argument("--shift-option", **extra, help="the same for shift and sp alone")
    options.add_argument("--limit-s", type=float, default=600, help="seconds for one answer or start")
    options.add_argument("--keep-logs", action="store_true", help="keep the logs of engines that went well")
    options.add_argument("--fresh", action="store_true", help="do not merge into the JSON that is there")
    options.add_argument("--name", help="of the JSON; default shift_speed_<shape>[_fp8]")
    args = options.parse_args(argv)
    if args.gpus % args.base_tp:
        options.error(f"--base-tp {args.base_tp} does not divide --gpus {args.gpus}")
    settle_source(args)
    args.name = args.name or "_".join(filter(None, ("shift_speed", args.shape, args.quantization)))
    return args


def main() -> int:
    """Runs the arms, writes the JSON after every figure, prints the table; 1 if an arm failed."""
    args = parse()
    toy = args.source is MODELS["toy"]
    asked = not toy and args.model is None and args.gpus == 4
    known = workloads(toy, args.prefill_requests, PROMPTS)
    chosen = choose(args.workloads, known)
    share = int(SPARE * max(load.tokens for load in known.values())) // args.gpus
    tokens = -(-share // 1024) * 1024 * args.gpus
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
    return 1 if any("error" in record.content["arms"][arm] for arm in args.arms) else 0


if __name__ == "__main__":
    sys.exit(main())
