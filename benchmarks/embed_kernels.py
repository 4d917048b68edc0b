"""What the GPU can do at most, and what the model's arithmetic alone takes. Run by `embed_speed.py`; answers a pipe.

- `peak`: one square bf16 product, in TFLOP/s;
- `gemms`: the products with weights of a forward step of the shape, one after another on random data, in tokens/s:
  no attention, no norm, no activation, no embedding, and nothing on the host but launching them.
"""

import json
import sys
import time
from typing import Any

import torch
from engine_child import own_output


def timed(work: Any, seconds: float, device: torch.device) -> float:
    """Seconds of one call: the mean over about `seconds`, after a warm-up."""

    def many(count: int) -> float:
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            work()
        _wait(device)
        return (time.perf_counter() - started) / count

    many(3)
    return many(max(3, int(seconds / many(3))))


def peak(size: int, dtype: str, seconds: float) -> dict[str, float]:
    """TFLOP/s of a product of two `size` x `size` matrices."""
    device = _device()
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    return {"tflops": 2 * size**3 / timed(lambda: a @ b, seconds, device) / 1e12, "size": size}


def gemms(config: dict[str, Any], step_tokens: int, dtype: str, seconds: float) -> dict[str, float]:
    """Tokens a second of a step's products: QKV in one, output, up and down, in every layer with its own weights."""
    device, kind = _device(), getattr(torch, dtype)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    sizes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    weights = [
        [torch.randn(out, into, device=device, dtype=kind) for into, out in sizes] for _ in range(layers)
    ]
    narrow, wide = (torch.randn(step_tokens, width, device=device, dtype=kind) for width in (hidden, inner))

    def step() -> None:
        for layer in weights:
            for weight in layer:
                torch.nn.functional.linear(wide if weight.shape[1] == inner else narrow, weight)

    rate = step_tokens / timed(step, seconds, device)
    flops = 2 * layers * sum(into * out for into, out in sizes)
    return {"tokens_per_second": rate, "step_tokens": step_tokens, "tflops": rate * flops / 1e12}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def serve(channel: Any) -> None:
    """Answers questions until the pipe closes."""
    print(json.dumps({"device": str(_device()), "torch": torch.__version__}), file=channel, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        kind = {"peak": peak, "gemms": gemms}[question.pop("kind")]
        print(json.dumps(kind(**question)), file=channel, flush=True)


if __name__ == "__main__":
    serve(own_output())
