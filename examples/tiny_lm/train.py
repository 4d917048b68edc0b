"""Train the model on one GPU within a time budget: `python train.py --data DIR --out DIR --minutes 7`.

DIR is what `tokenizer.py` wrote.  The schedule follows the clock, not a step count: a short warm-up, a plateau, and
a linear fall to zero that ends when the budget does, so any budget ends in a finished model.  SIGTERM ends training
early and still saves.
"""

from __future__ import annotations

import argparse
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import batches
import export
import numpy as np
import torch
from model import Config, TinyLlama, weighted_loss
from optim import Optimiser
from tokenizer import ASSISTANT, END, PAD, encode_rows, read_rows
from tokenizers import Tokenizer
from torch import Tensor

RESERVE_SECONDS = 20.0
WARM_UP_STEPS = 100
PLATEAU = 0.3
PLAIN_UNTIL = 0.5
REPORT_EVERY = 100
EVALUATE_EVERY = 0.1
ANSWER_LIMIT = 48
SYNC_EVERY = 10
Batch = dict[str, Tensor]


class Clock:
    """How much of the budget is spent, from the start of the process on; SIGTERM spends it all."""

    def __init__(self, minutes: float) -> None:
        """Start the clock and listen for SIGTERM."""
        self.start = time.monotonic()
        self.first_step = self.start
        budget = 60.0 * minutes
        self.deadline = self.start + budget - min(RESERVE_SECONDS, 0.3 * budget)
        self.stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        """Note that training must end."""
        self.stopped = True

    def progress(self) -> float:
        """Return the part of the training time that is over, 1.0 at the end."""
        if self.stopped:
            return 1.0
        span = max(1e-6, self.deadline - self.first_step)
        return min(1.0, (time.monotonic() - self.first_step) / span)

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.start


def rate(progress: float, step: int) -> float:
    """Return the learning rate's factor: warm-up, plateau, linear fall to zero."""
    fall = 1.0 if progress < PLATEAU else max(0.0, (1.0 - progress) / (1.0 - PLATEAU))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def endless(data: Path, args: argparse.Namespace, clock: Clock) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end; undocumented functions take part in the first half only."""
    documented = batches.read(data / "train.bin.xz")
    plain = batches.read(data / "plain.bin.xz")
    examples = batches.join(documented, plain)
    count, total = len(documented.starts), len(examples.starts)
    rng = np.random.default_rng(args.seed)
    while True:
        use = np.arange(total if clock.progress() < PLAIN_UNTIL else count)
        yield from batches.epoch(examples, use, args.rows, args.length, rng)


def heldout_batches(data: Path, tokenizer: Tokenizer, length: int, device: torch.device) -> list[Batch]:
    """Return the held-out examples as packed batches."""
    encoded = list(encode_rows(tokenizer, read_rows(data / "heldout.jsonl"), cut=False))
    examples = batches.from_lists(encoded)
    packed = batches.pack(np.arange(len(encoded)), examples.lengths, length)
    return [
        batches.to_device(batches.batch_arrays(examples, packed[i : i + 16], length), device)
        for i in range(0, len(packed), 16)
    ]


@torch.no_grad()
def heldout_loss(model: TinyLlama, held: list[Batch]) -> float:
    """Return the mean loss per answer token, the end token included, in float32."""
    model.eval()
    zero = torch.zeros((), device=held[0]["tokens"].device)
    sums = [weighted_loss(model, batch, zero)[1:] for batch in held]
    model.train()
    return sum(float(loss) for loss, _ in sums) / sum(float(count) for _, count in sums)


@torch.no_grad()
def greedy(model: TinyLlama, tokenizer: Tokenizer, codes: list[str], device: torch.device) -> list[str]:
    """Return the greedy answer to each function, all at once and without a cache."""
    model.eval()
    encoded = encode_rows(tokenizer, iter([{"code": code, "doc": ""} for code in codes]))
    prompts = [prompt for prompt, _ in encoded]
    width = max(len(p) for p in prompts) + ANSWER_LIMIT
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    for line, prompt in enumerate(prompts):
        tokens[line, : len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    at = torch.tensor([len(p) for p in prompts], device=device)
    lines = torch.arange(len(prompts), device=device)
    positions = torch.arange(width, device=device).expand(len(prompts), -1)
    # Right padding comes after the token that is read, so the causal mask alone keeps it out.
    one = torch.zeros_like(tokens)
    for _ in range(ANSWER_LIMIT):
        tokens[lines, at] = model(tokens, positions, one)[lines, at - 1].argmax(-1)
        at = at + 1
    end = tokenizer.token_to_id(END)
    answers = []
    for line, prompt in enumerate(prompts):
        answer = tokens[line, len(prompt) : len(prompt) + ANSWER_LIMIT].tolist()
        answers.append(tokenizer.decode(answer[: answer.index(end)] if end in answer else answer))
    model.train()
    return answers


def flex_works(device: torch.device) -> bool:
    """Tell whether compiled flex attention runs here, forward and backward."""
    if device.type != "cuda":
        return False
    config = Config(layers=1, vocab_size=64)
    model = TinyLlama(config).to(device)
    tokens = torch.zeros(2, 256, dtype=torch.long, device=device)
    try:
        with torch.autocast("cuda", torch.bfloat16):
            torch.compile(model, dynamic=False)(tokens, tokens, tokens, True).float().sum().backward()
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(
            f"flex attention is unusable here, falling back to a dense mask: {str(error)[:300]}", flush=True
        )
        return False
    return True


def step_function(
    model: TinyLlama, device: torch.device, attention: str
) -> Callable[[Batch, Tensor], Tensor]:
    """Return the compiled loss on a GPU (with flex attention where it works), the plain one on a CPU."""
    flex = flex_works(device) if attention == "auto" else attention == "flex"
    print(f"attention: {'flex' if flex else 'dense mask'}", flush=True)
    torch._dynamo.reset()

    def loss(batch: Batch, code_weight: Tensor) -> Tensor:
        return weighted_loss(model, batch, code_weight, flex)[0]

    if device.type != "cuda":
        return loss
    compiled = torch.compile(loss, dynamic=False)

    def run(batch: Batch, code_weight: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return compiled(batch, code_weight)

    return run


def train(
    model: TinyLlama,
    source: Iterator[dict[str, np.ndarray]],
    held: list[Batch],
    args: argparse.Namespace,
    clock: Clock,
) -> dict[str, Any]:
    """Train until the clock runs out; return the history."""
    device = held[0]["tokens"].device
    loss_of = step_function(model, device, args.attention)
    optimiser = Optimiser(model, args.muon_lr, args.adam_lr, args.decay)
    history: list[dict[str, float]] = []
    step, progress, next_evaluation, since = 0, 0.0, EVALUATE_EVERY, time.monotonic()
    while progress < 1.0 and (args.steps is None or step < args.steps):
        batch = batches.to_device(next(source), device)
        weight = args.code_weight * (1 - progress) + args.last_code_weight * progress
        loss = loss_of(batch, torch.tensor(weight, device=device))
        loss.backward()
        optimiser.step(rate(progress, step))
        if step == 0 or (step + 1) % SYNC_EVERY == 0:
            value = float(loss.detach())  # waits for the GPU, so that the clock sees real time
            if step == 0:
                clock.first_step = since = time.monotonic()
                print(f"first step after {clock.seconds():.1f} s", flush=True)
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}")
        step += 1
        progress = clock.progress()
        if step % REPORT_EVERY == 0:
            speed = REPORT_EVERY * args.rows * args.length / (time.monotonic() - since)
            since = time.monotonic()
            print(f"step {step} {progress:.1%} loss {value:.4f} {speed / 1e6:.3f} M tokens/s", flush=True)
        if progress >= next_evaluation:
            history.append(
                {"step": step, "seconds": round(clock.seconds(), 1), "loss": heldout_loss(model, held)}
            )
            print(f"held-out loss {history[-1]['loss']:.4f} at {progress:.1%}", flush=True)
            next_evaluation += EVALUATE_EVERY
    return {
        "steps": step,
        "tokens": step * args.rows * args.length,
        "history": history,
        "last_train_loss": value,
    }


def write_samples(
    model: TinyLlama, tokenizer: Tokenizer, args: argparse.Namespace, device: torch.device
) -> None:
    """Write greedy answers beside the true ones for some held-out functions, and for `strangers.jsonl` if given."""
    data, out, most = args.data, args.out, args.samples
    parts: list[str] = []
    for name in ("heldout.jsonl", "strangers.jsonl"):
        if not (data / name).exists():
            continue
        rows = list(read_rows(data / name))[:most]
        for row, answer in zip(
            rows, greedy(model, tokenizer, [r["code"] for r in rows], device), strict=True
        ):
            parts.append(f"{row['code']}\n  MODEL: {answer}\n  TRUTH: {row.get('doc', '-')}\n")
    (out / "samples.txt").write_text("\n".join(parts))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=None, help="stop after this many steps (for a trial)")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--code-weight", type=float, default=0.3)
    parser.add_argument("--last-code-weight", type=float, default=0.03)
    parser.add_argument("--attention", choices=("auto", "flex", "dense"), default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=60, help="how many answers of each kind to write")
    parser.add_argument(
        "--split-mib", type=int, default=0, help="write the weights in parts of this size instead"
    )
    return parser.parse_args()


def main() -> None:
    """Train, save, measure the saved weights and write the record."""
    args = parse()
    clock = Clock(args.minutes)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    model = TinyLlama(Config(dropout=args.dropout)).to(device)
    held = heldout_batches(args.data, tokenizer, args.length, device)
    source = endless(args.data, args, clock)
    record = train(model, source, held, args, clock)
    trained_for = clock.seconds()
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    assert tokenizer.token_to_id(ASSISTANT) is not None
    export.save(model, args.data, args.out, pad, end)
    export.reload(model, args.out)
    torch.set_float32_matmul_precision("highest")
    record["heldout_loss"] = heldout_loss(model, held)
    record["parameters"] = sum(p.numel() for p in model.parameters())
    record["seconds"] = round(trained_for, 1)
    record["tokens_per_second"] = round(record["tokens"] / trained_for)
    record["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    record["torch"] = torch.__version__
    record["settings"] = {k: v for k, v in vars(args).items() if k not in ("data", "out", "split_mib")}
    export.write_record(args.out, record)
    print(
        f"held-out loss of the saved weights {record['heldout_loss']:.4f}; {record['parameters']} parameters"
    )
    if args.split_mib:
        export.split(args.out, args.split_mib)
    write_samples(model, tokenizer, args, device)
    print(f"done after {clock.seconds():.0f} s", flush=True)


if __name__ == "__main__":
    main()
