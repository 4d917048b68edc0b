"""How a kernel goes through a weight, and which way is the fastest on this GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Tiling:
    """A block's outputs, how much of their width is one bite, warps of a block, and bites under way."""

    outputs: int
    width: int
    warps: int
    stages: int


def rows_block(batch: int) -> int:
    """Rows of activations that a kernel is compiled for; 16 are the least that tensor cores take."""
    return max(triton.next_power_of_2(batch), 16)


@dataclass
class Tilings:
    """Those of a kernel, the first being the one for sizes that were not tuned.

    What is chosen is a matter of speed alone, but sums are taken in another order, so results may differ in their
    last bits from one start to the next.
    """

    choice: tuple[Tiling, ...]
    _fastest: dict[tuple, Tiling] = field(default_factory=dict)

    def chosen(self, x: Tensor, weight: Tensor) -> Tiling:
        """For activations `[batch, width]` and a weight of such types and sizes."""
        return self._fastest.get(_key(x, weight), self.choice[0])

    def tune(self, x: Tensor, weight: Tensor, run: Callable[[Tiling], object]) -> Tiling:
        """Times `run` by each tiling and keeps the fastest. Not while a graph is captured."""
        key = _key(x, weight)
        if key not in self._fastest:
            times = {tiling: milliseconds(run, tiling) for tiling in self.choice}
            self._fastest[key] = min(times, key=times.__getitem__)
        return self._fastest[key]


def milliseconds(run: Callable[[Tiling], object], tiling: Tiling, calls: int = 10) -> float:
    """Of a call, within a CUDA graph of several; infinite where the tiling does not fit into the GPU."""
    try:
        run(tiling)
    except OutOfResources:
        return float("inf")
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            run(tiling)
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return min(times)


def _key(x: Tensor, weight: Tensor) -> tuple:
    return (x.device, x.dtype, rows_block(len(x)), weight.dtype, *weight.shape)
