"""Claim: the exchanges of sequence parallelism by pushes into symmetric memory against NCCL's, in CUDA graphs.

    python benchmarks/shift_exchange.py                    # all GPUs of this machine, Llama-3.1-8B's rows
    python benchmarks/shift_exchange.py --ranks 2 --tokens 512 8192

Each rank is a process. For each number of tokens both make the four exchanges of a step on the same random rows; their
results must be equal, bit for bit. So must those of the projections around attention, up to rounding, with exchanges
after and before the products ("push") and with parts that travel beside them ("overlapped"). Then each is captured 8
times into a CUDA graph, as often as needed with the one that alternates with it, and replayed `--repeats` times; the
median over replays is taken, the slowest rank's.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import numpy as np
import torch
from torch import distributed, multiprocessing

from arctic_sglang.shift import layers, symmetric
from arctic_sglang.shift.exchange import Collectives, Exchange
from arctic_sglang.shift.policy import Policy
from arctic_sglang.shift.push import Vocabulary
from arctic_sglang.shift.symmetric import Symmetric, Widths
from arctic_sglang.shift.topology import Tokens, Topology

CAPTURED = 8
HEADS, KV_HEADS, HEAD_SIZE, HIDDEN = 32, 8, 128, 4096
VOCABULARY = 1000  # of a rank


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Microseconds of a call, in a graph of several; the median of replays on this rank."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        torch.cuda.synchronize()
        distributed.barrier()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(CAPTURED):
                call()
        found = []
        for _ in range(repeats + 3):
            distributed.barrier()
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            found.append(1000 * start.elapsed_time(end) / CAPTURED)
    return statistics.median(found[3:])


def exchanges(exchange: Exchange, tokens: Tokens, given: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The pairs that alternate in a model, so that each may be repeated."""
    return {
        "attention": lambda: (
            exchange.to_heads(given["rows"], tokens), exchange.to_rows(given["heads"], tokens)
        ),
        "experts": lambda: (exchange.scatter(given["scattered"]), exchange.gather(given["hidden"])),
        "ends": lambda: (
            exchange.embed(given["ids"], given["vocabulary"]),
            exchange.gather(given["hidden"], given["last"])[given["last"]],
        ),
    }  # fmt: skip


def projections(
    exchange: Exchange, rank: int, topology: Topology, device: torch.device
) -> Callable[..., Any]:
    """Query, key and value, and attention's output, as a model has them, with the exchanges."""
    shift = layers.Shift(topology, rank, Policy(0), exchange)
    draw = torch.Generator(device).manual_seed(0)
    heads = (HEADS // topology.sp + 2 * max(1, KV_HEADS // topology.sp)) * HEAD_SIZE * topology.sp

    def layer(rows: int, columns: int) -> SimpleNamespace:
        weight = torch.randn(rows, columns, device=device, generator=draw).bfloat16() / columns**0.5
        return SimpleNamespace(weight=SimpleNamespace(data=weight), bias=None, forward=None)

    qkv = layers.SwitchedQkv(layer(heads, HIDDEN), shift, np.arange(heads))
    output = layers.SwitchedOutput(layer(HIDDEN, HEADS * HEAD_SIZE), shift)

    def call(tokens: Tokens, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return qkv.sequence_parallel(given["hidden"], tokens), output.sequence_parallel(
            given["heads"], tokens
        )

    return call


def check_projections(calls: dict[str, Callable[..., Any]], tokens: Tokens, given: dict[str, Any]) -> None:
    """Compares them with NCCL's.

    Raises:
        RuntimeError: one of them differs by more than rounding.
    """
    wanted = [part.clone() for part in calls["nccl"](tokens, given)]
    for way in ("push", "overlapped"):
        found = within(way, lambda way=way: [part.clone() for part in calls[way](tokens, given)])
        for which, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            apart, most = (ours - theirs).abs().max().item(), theirs.abs().max().item()
            if not apart <= 2**-6 * most:  # both 0, where a rank has nothing but padding
                message = f"projection {which} of {tokens.count} tokens, {way}, is {apart} apart of {most}"
                raise RuntimeError(message)


def within(way: str, call: Callable[[], Any]) -> Any:
    """Makes steps of all sizes overlap, or none."""
    kept, symmetric.OVERLAPPED = symmetric.OVERLAPPED, 1 if way == "overlapped" else 1 << 60
    try:
        return call()
    finally:
        symmetric.OVERLAPPED = kept


def check(slow: Exchange, fast: Exchange, tokens: Tokens, given: dict[str, Any]) -> None:
    """Compares all four.

    Raises:
        RuntimeError: one of them differs.
    """
    for name in ("attention", "experts", "ends"):
        wanted = exchanges(slow, tokens, given)[name]()
        # In a buffer until the next but one.
        found = [part.clone() for part in exchanges(fast, tokens, given)[name]()]
        for which, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            if not torch.equal(ours, theirs):
                message = f"{name} {which} of {tokens.count} tokens differs by {(ours - theirs).abs().max()}"
                raise RuntimeError(message)


def rank_main(rank: int, args: Any, folder: str) -> None:
    """One rank's life."""
    torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=args.ranks,
        device_id=torch.device("cuda", rank),
    )  # fmt: skip
    topology, sp = Topology(1, args.ranks), args.ranks
    slow = Collectives(topology, rank, distributed.group.WORLD)
    heads = (HEADS // sp + 2 * max(1, KV_HEADS // sp)) * HEAD_SIZE
    widths = Widths(heads, HEADS // sp * HEAD_SIZE, HIDDEN)
    device = torch.device("cuda", rank)
    fast = Symmetric(slow, topology, rank, widths, max(args.tokens), torch.bfloat16, device)
    draw = torch.Generator(device).manual_seed(rank)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, generator=draw).bfloat16()

    calls = {way: projections(slow if way == "nccl" else fast, rank, topology, device)
             for way in ("nccl", "push", "overlapped")}  # fmt: skip
    found = {}
    for count in sorted({1, sp - 1, 2 * sp + 1, *args.tokens}):
        tokens = Tokens(count, sp)
        scattered = random(tokens.padded, HIDDEN)
        scattered[torch.arange(tokens.padded, device=device) % sp != rank] = (
            0  # sums are the same in any order
        )
        given = {
            "ids": torch.arange(tokens.padded, device=device) * 7 % (sp * VOCABULARY),
            "vocabulary": Vocabulary(random(VOCABULARY, HIDDEN), rank * VOCABULARY, sp * VOCABULARY),
            "last": torch.arange(0, count, 1 + count // 5, device=device),
            "rows": random(tokens.share, sp * widths.heads), "heads": random(count, widths.rows),
            "scattered": scattered, "hidden": random(tokens.share, HIDDEN),
        }  # fmt: skip
        check(slow, fast, tokens, given)
        check_projections(calls, tokens, given)
        if count not in args.tokens:
            continue
        found[count] = {}
        for name, exchange in (("nccl", slow), ("push", fast)):
            for pair, call in exchanges(exchange, tokens, given).items():
                micros = torch.tensor(timed(call, args.repeats), device=device)
                distributed.all_reduce(micros, op=distributed.ReduceOp.MAX)
                found[count][f"{pair} {name}"] = round(micros.item(), 1)
        for way, call in calls.items():
            taken = within(way, partial(timed, partial(call, tokens, given), args.repeats))
            micros = torch.tensor(taken, device=device)
            distributed.all_reduce(micros, op=distributed.ReduceOp.MAX)
            found[count][f"projections {way}"] = round(micros.item(), 1)
        if rank == 0:
            print(count, found[count], flush=True)
    if rank == 0:
        print("all exchanges equal NCCL's", flush=True)
        Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


def main() -> None:
    """Runs it."""
    options = common.parser(__doc__)
    options.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    options.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 4096, 8192, 16384, 32768])
    options.add_argument("--repeats", type=int, default=20)
    args = options.parse_args()
    if args.ranks < 2 or torch.cuda.device_count() < args.ranks:
        options.error(
            f"{args.ranks} ranks on {torch.cuda.device_count()} GPUs: at least two of each are needed"
        )
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank_main, (args, folder), args.ranks)
        found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    content = {"ranks": args.ranks, "microseconds": found}
    common.write(f"shift_exchange_{args.ranks}", content, args.out, args.commit)


if __name__ == "__main__":
    main()
