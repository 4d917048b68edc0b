"""What a draft costs: an LSTM head of the Llama-3.1-8B shape, random weights, 3 tokens, by batch size and way.

For each batch size and each way to draft (see `speculative/speculators/drafter.py`): milliseconds of the CUDA graph
that makes the whole draft, the bytes of weights it reads, and that as a share of the memory's speed, which is measured
by copying. `call_ms` is `Drafter.draft` in the way that is chosen, with its copies into the graph's inputs.
With `--sweep` every tiling of the kernel is timed for the head alone, more of them than `products.TILINGS`.

    python benchmarks/speculator_draft.py                # on a GPU
    python benchmarks/speculator_draft.py --tiny         # small sizes; without a GPU this shows that it runs, no more
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

from speculative.speculators import SpeculatorConfig, build
from speculative.speculators.drafter import Drafter
from speculative.speculators.modules import LstmSpeculator
from speculative.speculators.products import Tiling, Weight, candidates_kernel, quantise, time_tiling

SHAPES = {"llama-3.1-8b": (4096, 4096, 128256), "tiny": (64, 64, 1000)}
SWEEP = [
    Tiling(outputs, width, warps, stages)
    for outputs, width, warps, stages in itertools.product(
        (32, 64, 128), (64, 128, 256), (4, 8), (2, 3, 4, 6, 8)
    )
]


def milliseconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median time of a call."""
    work()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            work()
            times.append((time.perf_counter() - started) * 1e3)
        return statistics.median(times)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    marks[-1].synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(marks))


def memory_speed(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / milliseconds(lambda: target.copy_(source), 20, device) * 1e3


def head(shape: str, device: torch.device) -> LstmSpeculator:
    """Random weights, made on the device."""
    hidden, inner, vocab = SHAPES[shape]
    with torch.device("meta"):
        speculator = build(SpeculatorConfig.lstm(hidden, inner, vocab, scale_input=True))
    speculator = speculator.bfloat16().to_empty(device=device)
    torch.manual_seed(0)
    speculator.reset_parameters()
    return speculator.eval().requires_grad_(False)


def weight_bytes(speculator: LstmSpeculator, steps: int, scale: float) -> int:
    """Of the heads and projections that a draft reads; embeddings are rows."""
    first, later = (layer.weight.numel() for layer in speculator.proj)
    return int(scale * (steps * speculator.head_weight(0).numel() + first + (steps - 1) * later))


def drafts(
    speculator: LstmSpeculator, batches: list[int], steps: int, repeats: int, speed: float
) -> list[dict[str, Any]]:
    """One row for each batch size."""
    device = speculator.head_weight(0).device
    drafter, rows = Drafter(speculator, max_batch=max(batches)), []
    for batch in batches:
        row: dict[str, Any] = {"batch": batch}
        hidden = torch.randn(batch, speculator.config.input_hidden_dim, dtype=torch.bfloat16, device=device)
        tokens = torch.randint(speculator.config.vocab_size, (batch,), device=device)
        if device.type == "cuda":
            drafter.capture([batch], steps)
            for way, ms in drafter.measure(batch, steps, repeats).items():
                read = weight_bytes(speculator, steps, 1 if way == "float8" else 2)
                share = read / ms * 1e3 / speed
                row[way] = {
                    "ms": round(ms, 4),
                    "weight_bytes": read,
                    "share_of_memory_speed": round(share, 3),
                }
        call = milliseconds(lambda h=hidden, t=tokens: drafter.draft(h, t, steps), repeats, device)
        row |= {"chosen": drafter.way(batch, steps), "call_ms": round(call, 4)}
        print(row, flush=True)
        rows.append(row)
    return rows


def sweep(speculator: LstmSpeculator, batches: list[int], repeats: int) -> list[dict[str, Any]]:
    """The head alone, by the kernel: the best tilings of each batch size and type of weights."""
    weight, rows = speculator.head_weight(0), []
    for held in (quantise(weight), Weight(weight)):
        for batch in sorted({max(16, 1 << (batch - 1).bit_length()) for batch in batches}):
            x = torch.randn(batch, weight.shape[1], device=weight.device)
            x = x.half() if held.in_8_bits else x.to(weight.dtype)
            times = {tiling: time_tiling(x, held, tiling, repeats) for tiling in SWEEP}
            best = sorted(times, key=times.__getitem__)[:8]
            rows.append({
                "batch": batch,
                "weights": str(held.values.dtype).removeprefix("torch."),
                "ms": {f"{t.outputs}x{t.width} warps {t.warps} stages {t.stages}": round(times[t], 4) for t in best},
            })  # fmt: skip
            print(rows[-1], flush=True)
            assert candidates_kernel(x, held, 0, best[0]).shape[0] == batch
    return rows


def main() -> None:
    """See above."""
    parser: argparse.ArgumentParser = common.parser(__doc__)
    parser.add_argument("--output", dest="out", type=Path, help="the same as --out")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=3, help="tokens of a draft")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument(
        "--sweep", action="store_true", help="time many tilings too (minutes: each is compiled)"
    )
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = "tiny" if options.tiny or device.type == "cpu" else "llama-3.1-8b"
    speculator = head(shape, device)
    speed = memory_speed(device, 1 << (31 if device.type == "cuda" else 24))
    content: dict[str, Any] = {
        "shape": dict(zip(("hidden", "inner", "vocabulary"), SHAPES[shape], strict=True)),
        "steps": options.steps,
        "repeats": options.repeats,
        "memory_bytes_per_second": round(speed),
        "drafts": drafts(speculator, options.batches, options.steps, options.repeats, speed),
    }
    if options.sweep and device.type == "cuda":
        content["sweep"] = sweep(speculator, options.batches, 10)
    name = "speculator_draft" if shape != "tiny" else "speculator_draft_tiny"
    common.write(name, content, options.out, options.commit)


if __name__ == "__main__":
    main()
