"""Claim: suffix decoding costs nothing where it finds nothing, and is many times faster where text repeats.

Three engines of one model shape, one after the other on the same GPU: `none` is stock SGLang without speculation,
`suffix` this plugin with `--speculative-algorithm SUFFIX`, `ngram` stock SGLang with its own NGRAM. Weights are
dummies, token ids random, the radix cache is off, all else SGLang's defaults (NGRAM's too, but for as many running
requests as the others have).

    python benchmarks/speculation_speed.py                              # Llama-3.1-8B's shape, one GPU
    python benchmarks/speculation_speed.py --shape toy --quick          # any machine, to see that it runs

`fresh N`: milliseconds of each output token of N requests at once with temperature 1, whose random text offers
nothing to draft: 257 tokens out less 1 token out, over 256.
`repeated N`: the same for a second pass over the same 64 prompts at temperature 0, N at a time, 128 tokens out.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from engine_child import Batch, Child
from shapes import MODELS

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "suffix": ("arctic", {"speculative_algorithm": "SUFFIX"}),
    "ngram": ("none", {"speculative_algorithm": "NGRAM", "max_running_requests": 256}),
}
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


def run_arm(arm: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One engine's life."""
    plugins, options = ARMS[arm]
    if common.hardware().startswith("CPU"):
        plugins = "arctic"
    options = {**options, **dict(args.engine_option)}
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.name}.{arm}.log"
    print(f"{arm}: starting", flush=True)
    child = Child(folder, options, plugins, log, args.limit_s)
    found: dict[str, Any] = {**child.about, "options": options, "workloads": {}}
    rows = found["workloads"]
    print(f"  started in {found['startup_seconds']:.0f} s", flush=True)
    try:
        for requests in args.fresh:
            rows[f"fresh {requests}"] = fresh(child, requests, args.tokens, args.repeats)
            print(f"  fresh {requests}: {rows[f'fresh {requests}']['median']:.3f} ms/token", flush=True)
        for requests in args.repeated:
            prompts = max(requests, args.prompts if arm != "none" else args.prompts // 4)
            row = repeated(child, requests, args.tokens // 2, prompts, args.passes)
            rows[f"repeated {requests}"] = row
            print(
                f"  repeated {requests}: {row['median']:.3f} ms/token, {row['accept_length']} a step",
                flush=True,
            )
    finally:
        child.close()
    return found


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


def parse() -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    options.add_argument("--shape", choices=MODELS, default="llama-3.1-8b")
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
    options.add_argument("--name", default="speculation_speed")
    options.add_argument(
        "--engine-option", type=lambda t: (t.split("=")[0], json.loads(t.split("=", 1)[1])), action="append",
        default=[], metavar="KEY=JSON", help="another Engine keyword for all arms",
    )  # fmt: skip
    args = options.parse_args()
    if args.quick:
        args.fresh, args.repeated, args.tokens, args.prompts, args.repeats = [1, 4], [1, 2], 33, 4, 2
    return args


def main() -> int:
    """Runs the arms, writes the JSON after each, prints the table."""
    args = parse()
    config = dict(MODELS[args.shape].config)
    if args.layers:
        config["num_hidden_layers"] = args.layers
    content: dict[str, Any] = {"shape": args.shape, "layers": config["num_hidden_layers"], "weights": "dummy"}
    content |= {"table": {}, "arms": {}}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        for arm in args.arms:
            try:
                content["arms"][arm] = run_arm(arm, args, Path(folder))
            except RuntimeError as error:
                failed = True
                content["arms"][arm] = {"error": str(error).splitlines()[-1], "workloads": {}}
                print(f"{arm} failed: {error}", file=sys.stderr, flush=True)
            content["table"] = compare(content["arms"])
            whole = {**common.header(args.commit), **content}
            (args.out / f"{args.name}.json").write_text(json.dumps(whole, indent=2) + "\n")
    common.write(args.name, content, args.out, args.commit)
    for name, row in content["table"].items():
        print(name, row)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
