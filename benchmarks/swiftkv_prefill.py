"""Claim: SwiftKV against stock SGLang, same GPU, same session: prefill, time to first token, decode, a mix.

Two engines of one model shape, one after the other on the same GPUs: `stock` is the plain model in an
SGLang that loads no plugin, `swiftkv` the same sizes as a SwiftKV model with this plugin. Weights are dummies,
token ids random, the radix cache is off, all else SGLang's defaults, so that each may use the whole GPU.

With `--model` the weights of both are real: `stock` has those of that checkpoint, `swiftkv` those of `--swiftkv-model`,
or else of what `swiftkv.convert` makes of the checkpoint for the time of the run, cut in the middle and untrained: its
speed is that of a trained one, its text is not. Token ids stay random.

    python benchmarks/swiftkv_prefill.py                                      # Llama-3.1-8B, cut 16, one GPU
    python benchmarks/swiftkv_prefill.py --quantization fp8
    python benchmarks/swiftkv_prefill.py --shape llama-3.1-70b --quantization fp8 --tp-size 4
    python benchmarks/swiftkv_prefill.py --model FOLDER                       # a checkpoint
    python benchmarks/swiftkv_prefill.py --shape toy --prefill-requests 4     # any machine, to see that it runs

Workloads: `ttft N` is one prompt of N tokens and one token out. `prefill` is a batch of prompts of 8192, one
token out each. `decode N` is the time per output token of N requests at once: 257 tokens out less 1
token out, over 256, so that prefill is not in it. `mix` is 256 requests of 2000 tokens in and 250 out.

Each workload is run once before it is measured (prefill and mix with fewer requests, decode with fewer tokens),
then repeated: ttft and decode `--repeats` times (5), prefill and mix `--long-repeats` times (3), and the medians
are compared. On one H200 that is 2 to 3 minutes an arm for the 8B shape, its start included.

On a machine without a GPU stock SGLang does not start; there both arms run with the plugin (toy only).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from engine_child import Child, check_plugins, plugins
from shapes import MODELS, add_source, checkpoint, settle_source, swiftkv_folder
from workloads import Workload, choose, workloads

from swiftkv.cost import Shape, prefill_flops, prefill_limit
from swiftkv.errors import SwiftKVError
from swiftkv.layout import Layout

ARMS = ("stock", "swiftkv")


PROMPTS = (128, 256, 512, 2048, 8192)

# What SwiftKV was asked to reach with half of a model's layers below the cut, as ratios over 1.
BARS = {
    "prefill": (1.88, "tokens/s at least 1.88 times stock's"),
    "ttft 8192": (1 / 0.55, "at most 0.55 of stock's time"),
    "mix": (1.48, "stock's time at least 1.48 times this"),
    "decode 1": (1 / 1.01, "at most 1.01 of stock's time per token"),
    "decode 64": (1 / 1.01, "at most 1.01 of stock's time per token"),
    "decode 256": (1 / 1.01, "at most 1.01 of stock's time per token"),
}


def measure(
    child: Child, chosen: dict[str, Workload], repeats: int, long_repeats: int, rows: dict[str, Any]
) -> None:
    """Runs the workloads on one engine; fills `rows` and prints each median as it comes."""
    for name, load in chosen.items():
        load.warm(child)
        times = long_repeats if load.kind in ("prefill", "mix") else repeats
        rows[name] = common.summary([load.figure(child) for _ in range(times)])
        if load.kind == "mix":
            tokens = load.requests * (load.tokens_in + load.tokens_out)
            rows[name]["tokens_per_second"] = round(tokens / rows[name]["median"], 1)
        print(f"  {name}: {rows[name]['median']:,.2f} {load.unit}", flush=True)


def limits(
    shape: Shape, layout: Layout, chosen: dict[str, Workload], stock: dict[str, Any]
) -> dict[str, float]:
    """The ratios that the count of operations allows; nothing is said of what it cannot tell.

    The mix's limit is an estimate: of stock's time the prefill's part, taken at the operations a second that
    stock reached in `prefill`, shrinks as far as it can, and all else stays.
    """
    found = {
        name: prefill_limit(shape, load.tokens_in, layout)
        for name, load in chosen.items()
        if load.kind in ("ttft", "prefill")
    }
    if {"mix", "prefill"} <= chosen.keys() and {"mix", "prefill"} <= stock.keys():
        mix, prefill = chosen["mix"], chosen["prefill"]
        rate = stock["prefill"]["median"] / prefill.tokens_in * prefill_flops(shape, prefill.tokens_in)
        part = mix.requests * prefill_flops(shape, mix.tokens_in) / rate
        whole = stock["mix"]["median"]
        if part < whole:
            found["mix"] = whole / (whole - part * (1 - 1 / prefill_limit(shape, mix.tokens_in, layout)))
    return {name: round(value, 4) for name, value in found.items()}


def compare(
    arms: dict[str, Any], chosen: dict[str, Workload], limit: dict[str, float], bars: bool
) -> dict[str, dict[str, Any]]:
    """For each workload: both medians, the ratio (over 1: SwiftKV is better), its limit and its bar."""
    table = {}
    for name, load in chosen.items():
        medians = {
            arm: arms[arm]["workloads"][name]["median"] for arm in arms if name in arms[arm]["workloads"]
        }
        row: dict[str, Any] = {"unit": load.unit, **medians, "limit": limit.get(name)}
        if len(medians) == len(ARMS):
            row["ratio"] = round(load.faster(medians["swiftkv"], medians["stock"]), 4)
            if bars and name in BARS:
                least, words = BARS[name]
                row["bar"] = {
                    "ratio_at_least": round(least, 4),
                    "stated": words,
                    "met": row["ratio"] >= least,
                }
        table[name] = row
    return table


def show(table: dict[str, dict[str, Any]]) -> str:
    """The comparison as text."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    form = "{:<12}{:>10}{:>12}{:>12}{:>9}{:>9}{:>9}  {}"
    lines = [form.format("workload", "unit", "stock", "swiftkv", "ratio", "limit", "bar", "ok?")]
    for name, row in table.items():
        bar = row.get("bar", {})
        lines.append(
            form.format(
                name, row["unit"], number(row.get("stock"), ",.2f"), number(row.get("swiftkv"), ",.2f"),
                number(row.get("ratio"), ".3f"), number(row["limit"], ".3f"),
                number(bar.get("ratio_at_least"), ".3f"), {True: "yes", False: "NO"}.get(bar.get("met"), ""),
            ).rstrip()
        )  # fmt: skip
    return "\n".join(lines)


def run_arm(arm: str, args: argparse.Namespace, chosen: dict[str, Workload], folder: Path) -> dict[str, Any]:
    """One engine's life; if it fails, what was measured until then and the message are kept."""
    options = engine_options(args, arm)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.name}.{arm}.log"
    print(f"{arm}: starting, {log}", flush=True)
    child = None
    found: dict[str, Any] = {"options": options, "workloads": {}}
    try:
        model = place(args, arm, folder / arm)
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        found = {"architecture": config["architectures"][0], **found}
        child = Child(model, options, plugins(stock=arm == "stock"), log, args.limit_s)
        found.update(child.about)
        print(f"  started in {found['startup_seconds']:.0f} s", flush=True)
        check_plugins(arm, found["arguments"], stock=arm == "stock")
        if child.fell_back():
            message = f"SGLang has no implementation of {found['architecture']}"
            raise RuntimeError(message)
        measure(child, chosen, args.repeats, args.long_repeats, found["workloads"])
    except (RuntimeError, SwiftKVError) as error:
        found["error"] = str(error).splitlines()[-1]
        print(f"{arm} failed: {error}", file=sys.stderr)
    finally:
        if child is not None:
            child.close()
    if "error" not in found and not args.keep_logs:
        log.unlink()
    return found


def layout(args: argparse.Namespace) -> Layout:
    """The layers of the SwiftKV model."""
    made = args.swiftkv_model
    return Layout.of(made.config) if made else args.source.layout(args.cut, args.group_size)


def place(args: argparse.Namespace, arm: str, folder: Path) -> Path:
    """The folder with an arm's model; `folder` does not exist, and has what has to be written.

    Raises:
        SwiftKVError: a SwiftKV model cannot be made of the checkpoint.
    """
    if arm == "stock":
        return args.source.place(folder)
    return swiftkv_folder(args.source, layout(args), folder, args.swiftkv_model)


def engine_options(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Keywords of `sglang.Engine` for one arm, those that were asked for."""
    named = {
        "quantization": args.quantization, "attention_backend": args.attention_backend,
        "kv_cache_dtype": args.kv_cache_dtype, "tp_size": args.tp_size if args.tp_size > 1 else None,
    }  # fmt: skip
    given = dict([*args.engine_option, *(args.swiftkv_option if arm == "swiftkv" else [])])
    chosen = {name: value for name, value in named.items() if value is not None}
    return {**args.source.options, **chosen, **given}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line, with the defaults that depend on other options filled in."""
    options = common.parser(__doc__)
    add_source(options)
    options.add_argument(
        "--swiftkv-model", type=checkpoint, metavar="FOLDER", help="the SwiftKV model made of --model"
    )
    options.add_argument("--cut", type=int, help="first upper layer (the shape's own)")
    options.add_argument("--group-size", type=int, default=1, help="upper layers that share keys and values")
    options.add_argument("--quantization", help="of both arms: fp8")
    options.add_argument("--tp-size", type=int, default=1)
    options.add_argument("--attention-backend")
    options.add_argument("--kv-cache-dtype")
    extra = {"type": common.key_value, "action": "append", "default": [], "metavar": "KEY=VALUE"}
    options.add_argument(
        "--engine-option", **extra, help="another Engine keyword for both arms; again for more"
    )
    options.add_argument("--swiftkv-option", **extra, help="the same for the swiftkv arm alone")
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--workloads", nargs="+", metavar="NAME", help='names or kinds: "ttft 8192" decode')
    options.add_argument("--prefill-requests", type=int, default=32, help="prompts of the prefill workload")
    options.add_argument("--repeats", type=int, default=5, help="of ttft and decode")
    options.add_argument("--long-repeats", type=int, default=3, help="of prefill and mix")
    options.add_argument("--limit-s", type=float, default=600, help="seconds for one answer or start")
    options.add_argument("--keep-logs", action="store_true", help="keep the logs of engines that went well")
    options.add_argument("--name", help="of the JSON; default swiftkv_<shape>[_fp8][_tp4]")
    args = options.parse_args(argv)
    settle_source(args)
    if args.swiftkv_model and not args.model:
        options.error("--swiftkv-model is compared with the checkpoint it was made of: give --model too")
    if args.swiftkv_model and "num_key_value_layers" not in args.swiftkv_model.config:
        options.error(
            f"--swiftkv-model {args.swiftkv_model.folder} is no SwiftKV model: make one by swiftkv.convert"
        )
    if args.name is None:
        parts = [
            f"swiftkv_{args.shape}",
            args.quantization,
            f"tp{args.tp_size}" if args.tp_size > 1 else None,
        ]
        args.name = "_".join(part for part in parts if part)
    return args


def main() -> int:
    """Runs the arms, writes the JSON, prints the table; 1 if an arm failed."""
    args = parse()
    toy, cut = args.source is MODELS["toy"], layout(args)
    chosen = choose(args.workloads, workloads(toy, args.prefill_requests, PROMPTS))
    content: dict[str, Any] = {
        "shape": args.shape, "layers": cut.layers, "cut": cut.cut, "group_size": cut.group_size,
        "weights": args.source.weights, "ratio": "over 1: SwiftKV is better; limit: by the count of operations",
        "sizes": {name: [load.requests, load.tokens_in, load.tokens_out] for name, load in chosen.items()},
        "table": {}, "arms": {},
    }  # fmt: skip
    arms = content["arms"]
    half = not toy and 2 * cut.cut == cut.layers
    with tempfile.TemporaryDirectory() as folder:
        for arm in args.arms:
            arms[arm] = run_arm(arm, args, chosen, Path(folder))
            stock = arms["stock"]["workloads"] if "stock" in arms else {}
            limit = limits(args.source.shape, cut, chosen, stock)
            content["table"] = compare(arms, chosen, limit, bars=half)
            # written after every arm, so that an end from outside leaves what was measured
            partial = {**common.header(args.commit), **content}
            (args.out / f"{args.name}.json").write_text(json.dumps(partial, indent=2) + "\n")
    common.write(args.name, content, args.out, args.commit)
    print(show(content["table"]))
    return 1 if any("error" in found for found in arms.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
