"""Claim: over traffic with quiet and burst phases Shift Parallelism is first, or near it, in latency and throughput.

Real servers of one model shape on the same GPUs, dummy weights, random prompts, radix cache off: `tp` and `dp` are
stock SGLang with `tp_size` or `dp_size` N, `sp` this plugin with plain Ulysses, `shift` with both modes, `all` with
everything, if a SwiftKV model and a draft head are given. The trace of `traffic.py` is played against one after the
other, over HTTP, open loop: a request is sent at its time whatever came of those before it. Each step is a command of
its own; between them the servers run on.

    python benchmarks/shift_trace.py start --folder OUT --arms tp dp sp shift       # until all are healthy
    python benchmarks/shift_trace.py play --folder OUT --arm shift                  # OUT/shift.json, every request
    python benchmarks/shift_trace.py stop --folder OUT
    python benchmarks/shift_trace.py report --folder OUT                            # benchmarks/results/
    python benchmarks/shift_trace.py start --folder OUT --shape toy --gpus 2 --threshold 24    # any machine, then
    python benchmarks/shift_trace.py play --folder OUT --arm tp --toy

TTFT is from the planned time of a request to its first token, so that a client that is late does not flatter a server;
TPOT the time from the first token to the last over the tokens after the first (answers of one token have none);
completion from the planned time to the last token; throughput all tokens in and out over the time to the last answer.
"""

import argparse
import asyncio
import dataclasses
import json
import multiprocessing
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import traffic
from deployments import ARMS as DEPLOYMENTS
from deployments import BESIDE, MEMORY, chosen_options
from engine_child import FIRST_PORT, plugins
from http_stream import body, session, stream
from servers import ask, end, flags, launch, wait_healthy
from shapes import MODELS
from trace_figures import ARMS, FIELDS, rank, row, series, show, summary

NCCL_PORTS = FIRST_PORT + 50  # beside those of shift_speed.py
STATE = "servers.json"
SILENT_SECONDS = 240  # without a byte after which a request has failed
WARM_LONGEST, WARM_REPEATS = 8192, 4
PREPARE_SECONDS = 120  # at most, for the client's processes
LEAD_SECONDS = 0.5  # from when all are ready to the trace's beginning
TOY = traffic.Shape(
    seconds=20, period=10, burst=3, quiet_rate=1, burst_rate=4, longest_in=300, longest_out=24
)


def arm_options(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `sglang.Engine` for one arm's server."""
    options = chosen_options(arm, args, args.draft_head)
    options |= {
        "load_format": "auto" if args.model else "dummy", "skip_tokenizer_init": True,
        "disable_radix_cache": not args.radix_cache,
        "incremental_streaming_output": True, "quantization": args.quantization,
        "max_total_tokens": args.kv_tokens // args.gpus if arm == "dp" else args.kv_tokens,
    }  # fmt: skip
    if not common.hardware().startswith("CPU"):
        options |= MEMORY
    if arm != "dp":  # whose replicas find a port each
        options["nccl_port"] = NCCL_PORTS + ARMS.index(arm)
    return options | dict(args.engine_option)


def start(args: argparse.Namespace) -> int:
    """Starts the servers at once and waits for them; those that fail are ended and named."""
    if "all" in args.arms and not (args.model and args.draft_head):
        raise SystemExit(
            "the arm `all` wants --model, a SwiftKV model, and --draft-head: shift_soak.py makes both"
        )
    args.folder.mkdir(parents=True, exist_ok=True)
    known = read_state(args.folder)
    model = args.model or args.folder / "model"
    if args.model is None:
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps(MODELS[args.shape].config))
    begun: dict[str, tuple[subprocess.Popen, str, Path]] = {}
    for arm in args.arms:
        if arm in known:
            message = f"{arm} is running already, after {args.folder / STATE}; stop it first"
            raise SystemExit(message)
        options, port = arm_options(arm, args), args.port + 10 * ARMS.index(arm)
        log = args.folder / f"{arm}.log"
        process = launch(model, port, flags(options), plugins(stock=DEPLOYMENTS[arm].stock), log, BESIDE)
        begun[arm] = process, f"http://127.0.0.1:{port}", log
        known[arm] = {"pid": process.pid, "url": begun[arm][1], "options": options, "model": str(model)}
        known[arm]["shape"] = model.name if args.model else args.shape
        write_state(args.folder, known)
    failed = 0
    with ThreadPoolExecutor(len(begun)) as pool:
        waits = {arm: pool.submit(_ready, *found, known[arm]["options"]) for arm, found in begun.items()}
    for arm, wait in waits.items():
        try:
            known[arm]["about"] = wait.result()
            print(f"{arm}: {known[arm]['url']} is healthy", flush=True)
        except RuntimeError as error:
            print(f"{arm} failed: {error}", file=sys.stderr, flush=True)
            end(known.pop(arm)["pid"])
            failed = 1
        write_state(args.folder, known)
    return failed


def _ready(process: subprocess.Popen, url: str, log: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a server says of itself once it answers.

    Raises:
        RuntimeError: it does not start, or has fewer KV slots than it was told to have.
    """
    wait_healthy(process, url, log, 540)
    about = told(url)
    slots, wanted = about["max_total_num_tokens"], options["max_total_tokens"]
    if slots < wanted:
        message = (
            f"{url} has {slots} KV slots, and {wanted} were asked for: give fewer --kv-tokens or fewer --arms"
        )
        raise RuntimeError(message)
    return about


def told(url: str) -> dict[str, Any]:
    """The part of `/server_info` that a result keeps."""
    info = ask(f"{url}/server_info")
    states = info["internal_states"]
    return {
        "max_total_num_tokens": info["max_total_num_tokens"],
        "memory_gib": [state.get("memory_usage") for state in states],
        "shift": states[0].get("shift"),
    }


def read_state(folder: Path) -> dict[str, Any]:
    """The servers that were started and not stopped."""
    path = folder / STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Remembers them."""
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def stop(args: argparse.Namespace) -> int:
    """Ends the servers that `start` started, all or those of `--arms`."""
    known = read_state(args.folder)
    for arm in [arm for arm in known if arm in args.arms]:
        pid = known.pop(arm)["pid"]
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"launch_server" in command.read_bytes():
            end(pid)
        write_state(args.folder, known)
        print(f"{arm}: stopped")
    return 0


def play(args: argparse.Namespace) -> int:
    """Plays the trace against one server and writes every request's figures; 1 if one failed."""
    server = read_state(args.folder).get(args.arm)
    if server is None:
        message = f"{args.folder / STATE} knows no server {args.arm!r}; start it"
        raise SystemExit(message)
    shape = TOY if args.toy else traffic.Shape()
    if args.seconds is not None:
        shape = dataclasses.replace(shape, seconds=args.seconds)
    requests = traffic.trace(shape, args.seed, args.scale)
    vocab = json.loads((Path(server["model"]) / "config.json").read_text())["vocab_size"]
    asyncio.run(_warm(server["url"], min(WARM_LONGEST, shape.longest_in), vocab))
    before = told(server["url"])["shift"]
    rows = _play(server["url"], requests, vocab, args)
    content = {
        **common.header(args.commit), "arm": args.arm, "shape": server["shape"], "seed": args.seed,
        "scale": args.scale, "trace": dataclasses.asdict(shape), "server": server,
        "shift_before": before, "shift_after": told(server["url"])["shift"], "fields": FIELDS, "requests": rows,
    }  # fmt: skip
    (args.folder / f"{args.arm}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    named = [dict(zip(FIELDS, row, strict=True)) for row in rows]
    print(json.dumps(summary(named), indent=2))
    return 1 if any(row["error"] for row in named) else 0


def _play(url: str, requests: list[traffic.Request], vocab: int, args: argparse.Namespace) -> list[list[Any]]:
    """Shares the trace out over client processes; rows of `FIELDS`, sorted by time."""
    context = multiprocessing.get_context("spawn")
    shared = context.Barrier(args.clients, timeout=PREPARE_SECONDS), context.Value("d", 0.0)
    with ProcessPoolExecutor(args.clients, context, _share, shared) as pool:
        parts = [
            pool.submit(_client, url, requests[i :: args.clients], vocab, args.seed + i)
            for i in range(args.clients)
        ]
        return sorted(row for part in parts for row in part.result())


def _share(barrier: Any, began: Any) -> None:
    """In each client process: where all meet, and the beginning that they agree on."""
    _client.met = barrier, began


def _client(url: str, requests: list[traffic.Request], vocab: int, seed: int) -> list[list[Any]]:
    """One client process: prepares its bodies, agrees with the others on a beginning, sends."""
    draw, tokens = random.Random(seed), range(3, vocab)
    bodies = [body(draw.choices(tokens, k=r.tokens_in), r.tokens_out) for r in requests]
    barrier, began = _client.met
    if barrier.wait() == 0:
        began.value = time.monotonic() + LEAD_SECONDS
    barrier.wait()
    return asyncio.run(_send(url, requests, bodies, began.value))


async def _warm(url: str, longest: int, vocab: int) -> None:
    """Prompts of every size, each often enough for every replica, then many at once; not measured."""
    draw, tokens = random.Random(-1), range(3, vocab)
    sizes = [2**power for power in range(longest.bit_length())]
    async with session(SILENT_SECONDS) as http:
        for size in [size for size in sizes for _ in range(WARM_REPEATS)]:
            await stream(http, url, body(draw.choices(tokens, k=size), 8))
        bodies = [body(draw.choices(tokens, k=min(512, longest)), 16) for _ in range(64)]
        await asyncio.gather(*(stream(http, url, data) for data in bodies))


async def _send(
    url: str, requests: list[traffic.Request], bodies: list[bytes], began: float
) -> list[list[Any]]:
    async with session(SILENT_SECONDS) as http:

        async def one(request: traffic.Request, data: bytes) -> list[Any]:
            await asyncio.sleep(began + request.at - time.monotonic())
            return row(request, await stream(http, url, data), began)

        return await asyncio.gather(*map(one, requests, bodies))


def report(args: argparse.Namespace) -> int:
    """Makes the JSON of what was played; 1 if a request failed or an arm played another trace."""
    played = {
        arm: json.loads(path.read_text(encoding="utf-8"))
        for arm in ARMS
        if (path := args.folder / f"{arm}.json").exists()
    }
    if not played:
        message = f"{args.folder} has no trace that was played"
        raise SystemExit(message)
    keys = ("shape", "trace", "seed", "scale", "hardware")
    first = next(iter(played.values()))
    other = [arm for arm, content in played.items() if any(content[key] != first[key] for key in keys)]
    if other:
        message = (
            f"{', '.join(other)} played another trace than {first['arm']}, or elsewhere: play them again"
        )
        raise SystemExit(message)
    content: dict[str, Any] = {
        **{key: first[key] for key in keys},
        "weights": "checkpoint" if first["server"]["options"]["load_format"] == "auto" else "dummy",
        "arms": {},
        "tables": {},
    }
    for arm, found in played.items():
        rows = [dict(zip(FIELDS, row, strict=True)) for row in found["requests"]]
        phases = {"all": rows} | {p: [r for r in rows if r["phase"] == p] for p in ("quiet", "burst")}
        content["arms"][arm] = {
            "run": {key: found[key] for key in ("commit", "command", "date", "versions", "python")},
            "options": found["server"]["options"],
            "phases": {name: summary(some) for name, some in phases.items()},
            "series": series(rows, first["trace"]["seconds"]),
            "shift": {"before": found["shift_before"], "after": found["shift_after"]},
        }
    for phase in ("all", "quiet", "burst"):
        table = rank({arm: about["phases"][phase] for arm, about in content["arms"].items()})
        if phase != "all":
            table.pop("tokens_per_second", None)  # of an open loop it is what was offered, and phases overlap
        content["tables"][phase] = table
    common.write(args.name or f"shift_trace_{first['shape']}", content, args.out, args.commit)
    print(show(content["tables"]))
    return 1 if any(about["phases"]["all"]["failed"] for about in content["arms"].values()) else 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    made = options.add_subparsers(required=True, dest="step")
    steps = {
        step.__name__: made.add_parser(step.__name__, help=step.__doc__)
        for step in (start, play, stop, report)
    }
    for name, step in steps.items():
        step.add_argument(
            "--folder", type=Path, required=True, help="of logs, the servers' state and what was played"
        )
        step.set_defaults(run=globals()[name])
    for name in ("start", "stop"):
        steps[name].add_argument(
            "--arms", nargs="+", choices=ARMS, default=[arm for arm in ARMS if arm != "all"]
        )
    begin = steps["start"]
    begin.add_argument("--shape", choices=MODELS, default="llama-3.1-8b", help="of dummy weights")
    begin.add_argument("--model", type=Path, help="a folder with weights instead")
    begin.add_argument("--draft-head", type=Path, help="of the arm `all`, whose --model is a SwiftKV model")
    begin.add_argument("--quantization", help="of all arms: fp8")
    begin.add_argument("--gpus", type=int, default=4)
    begin.add_argument("--base-tp", type=int, default=1, help="GPUs that share one copy of shift's weights")
    begin.add_argument("--threshold", default="auto", help="of shift")
    begin.add_argument(
        "--kv-tokens", type=int, default=393_216, help="KV slots of each arm; dp's replicas share them"
    )
    begin.add_argument("--radix-cache", action="store_true", help="keep it; random prompts do not need it")
    begin.add_argument("--port", type=int, default=FIRST_PORT + 200, help="of the first server; +10 each")
    begin.add_argument(
        "--engine-option", type=common.key_value, action="append", default=[], metavar="KEY=VALUE"
    )
    one = steps["play"]
    one.add_argument("--arm", choices=ARMS, required=True)
    one.add_argument("--seconds", type=float, help="of the trace (300)")
    one.add_argument("--scale", type=float, default=1.0, help="factor of the rates")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--clients", type=int, default=4, help="client processes")
    one.add_argument("--toy", action="store_true", help="a short trace of short requests")
    steps["report"].add_argument("--name", help="of the JSON; default shift_trace_<shape>")
    return options.parse_args(argv)


def main() -> int:
    """Runs one step."""
    args = parse()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
