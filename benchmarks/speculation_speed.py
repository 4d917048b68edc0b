"""Claim: suffix decoding costs nothing where it finds nothing, and is many times faster where text repeats.

Three engines of one model shape on the same GPU, started together and asked in turn: `none` is stock SGLang without
speculation, `suffix` this plugin with `--speculative-algorithm SUFFIX`, `ngram` stock SGLang with its own NGRAM.
Weights are dummies, token ids random, the radix cache is off, KV caches hold as many tokens as are needed, all else
SGLang's defaults (NGRAM's too, but for as many running requests as the others have).

    python benchmarks/speculation_speed.py                              # Llama-3.1-8B's shape, one GPU
    python benchmarks/speculation_speed.py --model FOLDER               # a checkpoint
    python benchmarks/speculation_speed.py --shape toy --quick          # any machine, to see that it runs

`fresh N`: milliseconds of each output token of N requests at once with temperature 1, whose random text offers
nothing to draft: 257 tokens out less 1 token out, over 256 (NGRAM, which takes up to ten times as long: a quarter).
`repeated N`: the same for a second pass over the same 64 prompts at temperature 0, N at a time, 128 tokens out.

With `--model` the weights are a checkpoint's. Prompts stay random token ids, so its answers say little of what it
writes in use; at temperature 1 they may repeat themselves, and `fresh` is then not free of drafts.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
from engine_child import FIRST_PORT, Batch, Child, plugins
from shapes import add_source, settle_source

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "suffix": {"speculative_algorithm": "SUFFIX"},
    "ngram": {"speculative_algorithm": "NGRAM", "max_running_requests": 256},
}
# KV caches are bounded by tokens: engines that start at the same time cannot go by what memory is free.
MEMORY = {"mem_fraction_static": 0.9, "max_total_tokens": 131072}
PROMPTS = 64
BARS = {"fresh": 1.01, "repeated 1": 1 / 4, "repeated 16": 1 / 1.5}


def per_token(child: Child, batch: Batch) -> tuple[float, float | None]:
    """Milliseconds of each output token, without prefill, and tokens a step."""
    whole = child.run(batch)
    first = child.run(Batch(batch.requests, batch.tokens_in, 1, batch.temperature, batch.seed))
    return 1000 * (whole["seconds"] - first["seconds"]) / (batch.tokens_out - 1), whole["accept_length"]


def fresh(child: Child, requests: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Text that offers nothing to draft."""
    child.run(Batch(requests, 128, 17, 1.0))
    return common.summary([per_token(child, Batch(requests, 128, tokens, 1.0))[0] for _ in range(repeats)])


def repeated(child: Child, requests: int, tokens: int, prompts: int, passes: int) -> dict[str, Any]:
    """The same prompts again and again; the first pass is not counted."""
    found, lengths = [], []
    for turn in range(1 + passes):
        batches = [
            Batch(requests, 128, tokens, 0.0, seed=1000 * requests + i) for i in range(prompts // requests)
        ]
        times = [per_token(child, batch) for batch in batches]
        if turn:
            found.append(sum(time for time, _ in times) / len(times))
            lengths += [length for _, length in times if length]
    summary = common.summary(found)
    summary["accept_length"] = round(sum(lengths) / len(lengths), 3) if lengths else None
    return summary


def start(arm: str, args: argparse.Namespace, folder: Path) -> Child | RuntimeError:
    """An arm's engine, or why there is none."""
    options = ARMS[arm]
    if not common.hardware().startswith("CPU"):
        options = {**MEMORY, "nccl_port": FIRST_PORT + list(ARMS).index(arm), **options}
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.name}.{arm}.log"
    try:
        wanted = plugins(stock=arm != "suffix")
        options = {**args.source.options, **options, **dict(args.engine_option)}
        return Child(args.source.folder or folder, options, wanted, log, args.limit_s)
    except RuntimeError as error:
        return error


def measure(arm: str, child: Child, workload: str, requests: int, args: argparse.Namespace) -> dict[str, Any]:
    """One figure of an arm."""
    if workload == "fresh":
        tokens = args.tokens // 4 + 1 if arm == "ngram" else args.tokens
        return fresh(child, requests, tokens, args.repeats)
    prompts = max(requests, args.prompts if arm != "none" else args.prompts // 4)
    return repeated(child, requests, args.tokens // 2, prompts, args.passes)


def run(engines: dict[str, Any], arms: dict[str, Any], args: argparse.Namespace) -> None:
    """Every workload, the arms in turn; an arm that fails has an "error" and is left out from then on."""
    workloads = [("fresh", n) for n in args.fresh] + [("repeated", n) for n in args.repeated]
    for workload, requests in workloads:
        for arm, child in engines.items():
            if "error" in arms[arm]:
                continue
            try:
                row = measure(arm, child, workload, requests, args)
            except RuntimeError as error:
                arms[arm]["error"] = str(error)
                continue
            arms[arm]["workloads"][f"{workload} {requests}"] = row
            more = f", {row['accept_length']} a step" if workload == "repeated" else ""
            print(f"{workload} {requests}, {arm}: {row['median']:.3f} ms/token{more}", flush=True)


def compare(arms: dict[str, Any]) -> dict[str, Any]:
    """Each arm's time over that of no speculation, and what was asked."""
    table: dict[str, Any] = {}
    for name, row in arms.get("none", {"workloads": {}})["workloads"].items():
        found = {
            arm: arms[arm]["workloads"][name]["median"] for arm in arms if name in arms[arm]["workloads"]
        }
        ratios = {arm: round(time / row["median"], 4) for arm, time in found.items() if arm != "none"}
        bar = BARS.get(name, BARS.get(name.split()[0]))
        table[name] = {"ms_per_token": found, "over_none": ratios, "bar": bar and round(bar, 4)}
    return table


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    add_source(options)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--fresh", nargs="*", type=int, default=[1, 16, 64, 256], help="requests at once")
    options.add_argument("--repeated", nargs="*", type=int, default=[1, 16], help="requests at once")
    options.add_argument(
        "--tokens", type=int, default=257, help="tokens out of fresh; half of it of repeated"
    )
    options.add_argument(
        "--prompts", type=int, default=PROMPTS, help="of repeated; a quarter of it for `none`"
    )
    options.add_argument("--passes", type=int, default=1, help="counted passes over repeated prompts")
    options.add_argument("--repeats", type=int, default=5, help="of fresh")
    options.add_argument("--quick", action="store_true", help="few requests and tokens")
    options.add_argument("--limit-s", type=float, default=600)
    options.add_argument("--layers", type=int, help="of the shape, to debug")
    options.add_argument("--name", help="of the JSON; default speculation_speed[_<folder of --model>]")
    options.add_argument(
        "--engine-option", type=lambda t: (t.split("=")[0], json.loads(t.split("=", 1)[1])), action="append",
        default=[], metavar="KEY=JSON", help="another Engine keyword for all arms",
    )  # fmt: skip
    args = options.parse_args(argv)
    settle_source(args)
    if args.model and args.layers:
        options.error("--layers is of a shape with dummy weights: not with --model")
    args.name = args.name or "_".join(filter(None, ("speculation_speed", args.model and args.shape)))
    if args.quick:
        args.fresh, args.repeated, args.tokens, args.prompts, args.repeats = [1, 4], [1, 2], 33, 4, 2
    return args


def main() -> int:
    """Runs the arms, writes the JSON, prints the table."""
    args = parse()
    config = dict(args.source.config)
    if args.layers:
        config["num_hidden_layers"] = args.layers
    content: dict[str, Any] = {"shape": args.shape, "layers": config["num_hidden_layers"]}
    content["weights"] = args.source.weights
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        with ThreadPoolExecutor(len(args.arms)) as pool:
            started = pool.map(lambda arm: start(arm, args, Path(folder)), args.arms)
            engines = dict(zip(args.arms, started, strict=True))
        for arm, child in engines.items():
            failed = isinstance(child, RuntimeError)
            arms[arm] = {"error": str(child)} if failed else dict(child.about)
            arms[arm] |= {"options": ARMS[arm] | dict(args.engine_option), "workloads": {}}
        run(engines, arms, args)
        for child in engines.values():
            if isinstance(child, Child):
                child.close()
    content |= {"table": compare(arms), "arms": arms}
    common.write(args.name, content, args.out, args.commit)
    for name, row in content["table"].items():
        print(name, row)
    errors = {arm: found["error"] for arm, found in arms.items() if "error" in found}
    for arm, error in errors.items():
        print(f"{arm} failed: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
