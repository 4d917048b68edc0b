"""The threshold `auto`: how long a step takes in either mode, on this model and these GPUs, measured at the start.

Measured are a model's first layers without their attention, which is the same work in both modes. On GPUs they are
captured into CUDA graphs, as steps of these sizes are, so that it is the GPUs' time that counts. It also makes both
modes' kernels ready before the first request. All ranks take part; a step takes what the slowest of them takes, and
the least that was seen is what it takes where nobody else uses the GPUs (`timing`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from arctic_sglang.compat import vendor
from arctic_sglang.shift.exchange import Exchange
from arctic_sglang.shift.layers import Shift
from arctic_sglang.shift.policy import Mode, Timing
from arctic_sglang.shift.symmetric import Widths
from arctic_sglang.shift.topology import Tokens
from arctic_sglang.timing import Least, least

_LAYERS = 4
_REPEATS = 8  # at a time


def measure(
    model: Any, shift: Shift, sizes: list[int], device: torch.device, dtype: torch.dtype
) -> tuple[list[Timing], bool]:
    """Times steps in both modes.

    Args:
        model: SGLang's, switched.
        shift: this rank.
        sizes: tokens of the steps.
        device: of the model.
        dtype: of its activations.

    Returns:
        The times, and whether all of them were steady: nobody else was using the GPUs.

    Raises:
        ValueError: its layers cannot be run by themselves.
    """
    layers = list(model.model.layers)[:_LAYERS]
    kind, found, steady = (model.config.hidden_size, device, dtype), [], True
    with torch.no_grad(), _without_attention(layers):
        for size in sizes:
            took = {mode: _took(layers, shift, mode, size, kind) for mode in Mode}
            found.append(Timing(size, took[Mode.TENSOR].seconds, took[Mode.SEQUENCE].seconds))
            steady = steady and all(one.steady for one in took.values())
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found, steady


def exchanges(
    exchange: Exchange, sp: int, widths: Widths, sizes: list[int], device: torch.device, dtype: torch.dtype
) -> dict[int, float]:
    """Times the two all-to-alls around a layer's attention: seconds of both by tokens of the step.

    Args:
        exchange: of this rank.
        sp: ranks of the sequence group.
        widths: of what travels.
        sizes: tokens of the steps.
        device: of the model.
        dtype: of its activations.
    """
    found = {}
    for size in sizes:
        tokens = Tokens(size, sp)
        rows = torch.zeros(tokens.share, sp * widths.heads, device=device, dtype=dtype)
        heads = torch.zeros(size, widths.rows, device=device, dtype=dtype)
        run = partial(_both, exchange, rows, heads, tokens)
        run()  # kernels are compiled outside of graphs
        found[size] = _least(run, device, rounds=1).seconds
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _both(exchange: Exchange, rows: torch.Tensor, heads: torch.Tensor, tokens: Tokens) -> None:
    exchange.to_heads(rows, tokens)
    exchange.to_rows(heads, tokens)


def warm(model: Any, shift: Shift, sizes: list[int], device: torch.device, dtype: torch.dtype) -> None:
    """Runs both modes once, so that no request waits until their kernels are ready; arguments as of `measure`."""
    layers = list(model.model.layers)[:1]
    with torch.no_grad(), _without_attention(layers):
        for size in sizes:
            for mode in Mode:
                with shift.step(size, mode):
                    _runner(layers, shift, size, (model.config.hidden_size, device, dtype))()


def _took(
    layers: list[Any], shift: Shift, mode: Mode, size: int, kind: tuple[int, torch.device, torch.dtype]
) -> Least:
    """What the layers take on a step in a mode."""
    with shift.step(size, mode):
        run = _runner(layers, shift, size, kind)
        try:
            run()
        except (AssertionError, AttributeError, TypeError, KeyError) as error:
            msg = (
                "--shift-parallel-threshold auto: the model's layers cannot be run by themselves to be measured "
                f"({type(error).__name__}: {error}); give a number of tokens instead"
            )
            raise ValueError(msg) from error
        return _least(run, kind[1])


def _least(run: Callable[[], None], device: torch.device, **rounds: int) -> Least:
    """What it takes, of the slowest rank; `rounds` as of `least`."""
    once = _replayed(run) if device.type == "cuda" else partial(_plainly, run)
    group = vendor.get_tp_group()

    def sample() -> NDArray[np.float64]:
        times = []
        for _ in range(_REPEATS):
            group.barrier()
            times.append(once())
        slowest = torch.tensor(times, dtype=torch.float64)
        distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX, group=group.cpu_group)
        return slowest.numpy()

    return least(sample, **rounds)


def _runner(
    layers: list[Any], shift: Shift, size: int, kind: tuple[int, torch.device, torch.dtype]
) -> Callable[[], None]:
    """What runs the layers on a step of zeros; to be used within the step."""
    hidden, device, dtype = kind
    positions = torch.zeros(
        size, dtype=torch.int64, device=device
    )  # a step may have more tokens than rotations are kept
    one = torch.full((1,), size, device=device)
    batch = vendor.ForwardBatch(
        forward_mode=vendor.ForwardMode.EXTEND, batch_size=1, input_ids=positions, req_pool_indices=one, seq_lens=one,
        out_cache_loc=None, seq_lens_sum=size, positions=positions,
    )  # fmt: skip
    share = size if shift.tokens is None else shift.tokens.share
    rows = torch.zeros(share, hidden, device=device, dtype=dtype)

    def run() -> None:
        states, residual = rows.clone(), None
        for layer in layers:
            states, residual = layer(positions, states, batch, residual)

    return run


def _plainly(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _replayed(run: Callable[[], None]) -> Callable[[], float]:
    """Replays it as a CUDA graph, and says how many seconds the GPU took."""
    graph = torch.cuda.CUDAGraph()
    # SGLang's, which tells its all-reduce of the buffers in the graph.
    with vendor.graph_capture() as capture, torch.cuda.graph(graph, stream=capture.stream):
        run()

    def once() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    return once


@contextmanager
def _without_attention(layers: list[Any]) -> Iterator[None]:
    """Attention gives back its queries while this lasts."""
    kept = [
        (part, part.forward)
        for layer in layers
        for part in layer.modules()
        if isinstance(part, vendor.RadixAttention)
    ]

    def queries(q: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return q.reshape(len(q), -1).contiguous()

    # Some models ask for the cache's type, to write to it while they rotate. There is none yet.
    nothing = SimpleNamespace(token_to_kv_pool=SimpleNamespace(dtype=None))
    for part, _ in kept:
        part.forward = queries
    try:
        with vendor.forward_context(vendor.ForwardContext(attn_backend=nothing)):
            yield
    finally:
        for part, forward in kept:
            part.forward = forward
