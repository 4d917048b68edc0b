"""Drafts for a batch: the whole draft as one CUDA graph, over the vocabulary shards of all ranks."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

import torch
from torch import Tensor, distributed
from torch.nn import functional

from speculative.speculators.modules import LstmSpeculator, Speculator
from speculative.speculators.products import (
    MAX_BATCH,
    Weight,
    candidates,
    pack,
    product,
    quantise,
    settle,
    tune,
)

Float8 = Literal["auto", "on", "off"]
Gather = Callable[[Tensor], Tensor]
Way = Literal["matmul", "fused", "float8"]

_FLOAT8_CAPABILITY = (8, 9)
_MEASURED_REPLAYS = 10


def buckets(largest: int) -> list[int]:
    """Batch sizes that graphs are made for, two to an octave: 1, 2, 3, 4, 6, 8, 12, 16, ... up to `largest`."""
    sizes, power = {largest}, 1
    while power < largest:
        sizes |= {size for size in (power, power + power // 2) if size <= largest}
        power *= 2
    return sorted(sizes)


def gather_over(group: distributed.ProcessGroup) -> Gather:
    """The gather of a torch group: from int64 `[batch]` to `[ranks * batch]`, rank after rank."""

    def gather(tensor: Tensor) -> Tensor:
        whole = tensor.new_empty(group.size() * len(tensor))
        distributed.all_gather_into_tensor(whole, tensor.contiguous(), group=group)
        return whole

    return gather


@dataclass(frozen=True, slots=True)
class _Weights:
    """The weights of a way to draft: a head for every step, and an LSTM's projections unless torch multiplies them."""

    head: Sequence[Weight]
    proj: Sequence[Weight] | None
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    way: Way
    drafted: Tensor


class Drafter:
    """Drafts with a head. Not for several threads at once: it owns the buffers that its graphs read.

    There are three ways to a draft. `matmul`: torch's products and argmax; the twin of the others, and the way on the
    CPU, without graphs and for large batches. `fused`: the argmax within the head's product, weights as they are.
    `float8`: the same with the head, and an LSTM's projections, in float8 beside the originals, activations in float16.
    On a GPU each batch size is captured in the ways that are possible, and the fastest stays.

    Args:
        speculator: in `eval`, on its device. With a shard `gather` is needed.
        max_batch: the largest batch that gets a graph; larger ones are drafted step by step.
        gather: from int64 `[batch]` of this rank to those of all ranks, `[ranks * batch]` or `[ranks, batch]`, any
            order of ranks; see `gather_over`. Every rank must then draft and capture the same batches.
        float8: "auto": where it is measured to be faster; "on": for all batches up to `products.MAX_BATCH`; "off".
        graphs: False: no CUDA graphs.

    Raises:
        ValueError: the vocabulary is sharded and there is no `gather`, or float8 is "on" where it cannot be.
    """

    def __init__(
        self,
        speculator: Speculator,
        *,
        max_batch: int = 64,
        gather: Gather | None = None,
        float8: Float8 = "auto",
        graphs: bool = True,
    ) -> None:
        if speculator.shard.size > 1 and gather is None:
            shard = speculator.shard
            msg = f"the head holds part {shard.rank} of {shard.size} of the vocabulary: give a gather"
            raise ValueError(msg)
        self._speculator = speculator
        self._config = speculator.config
        self._first = speculator.shard.tokens(self._config.vocab_size).start
        self._gather = gather
        weight = speculator.head_weight(0)
        self._device, self._dtype = weight.device, weight.dtype
        self._on_gpu = self._device.type == "cuda"
        self._graphs_wanted = graphs and self._on_gpu
        self._sizes = buckets(max_batch)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._inputs: dict[torch.dtype, Tensor] = {}
        self._tokens = torch.zeros(max_batch, dtype=torch.int64, device=self._device)
        self._pool: tuple[int, int] | None = None
        self._ways = self._possible(float8)
        self._weights = {way: self._prepare(way) for way in self._ways}
        self._only_float8 = float8 == "on"

    @property
    def float8_bytes(self) -> int:
        """Memory of the weights in float8, which come on top of the originals."""
        held = self._weights.get("float8")
        return sum(w.bytes for w in (*held.head, *(held.proj or ()))) if held else 0

    def way(self, batch: int, steps: int | None = None) -> Way:
        """How a batch of this size is drafted by now: see the class."""
        graph = self._graphs.get((self._size(batch), self._steps(steps)))
        return self._eager_way(batch) if graph is None else graph.way

    def draft(self, hidden: Tensor, tokens: Tensor, steps: int | None = None) -> Tensor:
        """The likeliest next tokens: int64 `[batch, steps]`, of any strides; they hold until the next draft.

        Args:
            hidden: `[batch, input_hidden_dim]`, the target's last hidden states after its final norm.
            tokens: int `[batch]`, what the target chose from them.
            steps: how many; None: n_predict.

        Raises:
            ValueError: shapes do not fit, or the weights allow fewer steps.
        """
        steps, batch = self._steps(steps), len(tokens)
        if tokens.dim() != 1 or hidden.shape != (batch, self._config.input_hidden_dim):
            wanted = f"[batch, {self._config.input_hidden_dim}] and [batch]"
            msg = f"hidden states {list(hidden.shape)} and tokens {list(tokens.shape)} were given; wanted are {wanted}"
            raise ValueError(msg)
        if batch == 0 or steps == 0:
            return torch.empty(batch, steps, dtype=torch.int64, device=self._device)
        if self._graphs_wanted and self._gather is None and batch <= self._sizes[-1]:
            self.capture([batch], steps)
        found = self._graphs.get((self._size(batch), steps))
        if found is None:
            return self._eager(hidden, tokens, steps)
        self._inputs[self._weights[found.way].dtype][:batch].copy_(hidden)
        self._tokens[:batch].copy_(tokens)
        found.graph.replay()
        return found.drafted[:batch]

    def capture(
        self,
        batches: Iterable[int] | None = None,
        steps: int | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Makes the graphs of these batch sizes, or all, that are not there yet; nothing without graphs.

        Without a `gather` a missing graph is made by the first draft that needs it. With one this has to be called, by
        all ranks alike; batch sizes without a graph are then drafted step by step.

        Args:
            batches: sizes, each standing for the next larger one that graphs are made for.
            steps: of the draft; None: n_predict.
            stream: to capture on, where the gather needs a certain one.
        """
        if not self._graphs_wanted:
            return
        steps = self._steps(steps)
        sizes = {self._size(batch) for batch in (self._sizes if batches is None else batches)}
        for size in sorted(sizes, reverse=True):  # smaller graphs fit into the memory of larger ones
            if (size, steps) not in self._graphs:
                made = [self._capture(way, size, steps, stream) for way in self._ways_of(size)]
                self._graphs[size, steps] = made[0] if len(made) == 1 else min(made, key=self._time)

    def _steps(self, steps: int | None) -> int:
        steps = self._config.n_predict if steps is None else steps
        self._speculator.check_steps(steps)
        return steps

    def _size(self, batch: int) -> int:
        at = bisect_left(self._sizes, batch)
        return self._sizes[at] if at < len(self._sizes) else batch

    def _possible(self, float8: Float8) -> list[Way]:
        short = self._dtype in (torch.float16, torch.bfloat16)
        able = short and (
            not self._on_gpu or torch.cuda.get_device_capability(self._device) >= _FLOAT8_CAPABILITY
        )
        if float8 == "on":
            if not able:
                msg = (
                    f"a draft head in float8 was asked for; it needs weights in 16 bits (these are {self._dtype})"
                    " and, on a GPU, compute capability 8.9 or more; take float8='auto'"
                )
                raise ValueError(msg)
            return ["matmul", "float8"]
        if not self._on_gpu or not short:
            return ["matmul"]
        return ["matmul", "fused", "float8"] if able and float8 == "auto" else ["matmul", "fused"]

    def _ways_of(self, batch: int) -> list[Way]:
        """The ways to be measured for a batch of this size; where float8 is "on" it is the only one."""
        if batch > MAX_BATCH:
            return ["matmul"]
        return ["float8"] if self._only_float8 else self._ways

    def _eager_way(self, batch: int) -> Way:
        return "float8" if self._ways_of(batch) == ["float8"] else "matmul"

    def _prepare(self, way: Way) -> _Weights:
        head = [layer.weight.detach() for layer in self._speculator.head]
        lstm = isinstance(self._speculator, LstmSpeculator)
        if way != "float8":
            return _Weights([Weight(weight) for weight in head], None, self._dtype)
        if not lstm:
            return _Weights([quantise(weight) for weight in head], None, self._dtype)
        proj = [quantise(layer.weight) for layer in self._speculator.proj]
        return _Weights([quantise(weight) for weight in head], proj, torch.float16)

    @torch.no_grad()
    def _body(self, way: Way, hidden: Tensor, tokens: Tensor, drafted: Tensor) -> None:
        """Writes a draft into `drafted` int64 `[batch, steps]`."""
        weights, speculator = self._weights[way], self._speculator
        last, state = tokens.clamp(0, self._config.vocab_size - 1), speculator.start(hidden)
        for index in range(drafted.shape[1]):
            if weights.proj is None:
                state = speculator.step(index, state, last)
            else:
                gates = product(state.output, weights.proj[min(index, 1)])
                state = speculator.update(gates, state.cell, last)
            last = drafted[:, index]
            self._pick(way, weights.head[min(index, len(weights.head) - 1)], state.output, last)

    def _pick(self, way: Way, head: Weight, output: Tensor, out: Tensor) -> None:
        """Writes the likeliest tokens of all shards into `out` int64 `[batch]`."""
        if way == "matmul":
            logits = functional.linear(output, head.values)
            if self._gather is None:
                out.copy_(logits.argmax(-1))
                return
            values, at = logits.max(-1)
            mine = pack(values, at + self._first)
        else:
            parts = candidates(output.half() if head.in_8_bits else output, head, self._first)
            if self._gather is None:
                settle(parts, out)
                return
            mine = parts.new_empty(len(output))
            settle(parts, mine, ids=False)
        settle(self._gather(mine).reshape(-1, len(output)).T, out)

    def _eager(self, hidden: Tensor, tokens: Tensor, steps: int) -> Tensor:
        way = self._eager_way(len(tokens))
        drafted = tokens.new_empty(len(tokens), steps, dtype=torch.int64)
        self._body(way, hidden.to(self._weights[way].dtype).contiguous(), tokens.long(), drafted)
        return drafted

    def _capture(self, way: Way, size: int, steps: int, stream: torch.cuda.Stream | None) -> _Graph:
        weights = self._weights[way]
        if weights.dtype not in self._inputs:
            shape = (self._sizes[-1], self._config.input_hidden_dim)
            self._inputs[weights.dtype] = torch.zeros(shape, dtype=weights.dtype, device=self._device)
        hidden, tokens = self._inputs[weights.dtype][:size], self._tokens[:size]
        drafted = torch.zeros(size, steps, dtype=torch.int64, device=self._device)
        if way != "matmul":
            self._tune(weights, size)
        self._body(
            way, hidden, tokens, drafted
        )  # kernels are compiled and libraries set up outside the graph
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            self._body(way, hidden, tokens, drafted)
        self._pool = graph.pool()
        return _Graph(graph, way, drafted)

    def _tune(self, weights: _Weights, size: int) -> None:
        for weight in {id(w.values): w for w in (*weights.head, *(weights.proj or ()))}.values():
            dtype = torch.float16 if weight.in_8_bits else weights.dtype
            tune(torch.zeros(size, weight.values.shape[1], dtype=dtype, device=self._device), weight)

    def measure(
        self, batch: int, steps: int | None = None, repeats: int = _MEASURED_REPLAYS
    ) -> dict[Way, float]:
        """Milliseconds of a draft (median) in each way that this batch size may be drafted, in new graphs."""
        steps, size = self._steps(steps), self._size(batch)
        return {
            way: self._time(self._capture(way, size, steps, None), repeats) for way in self._ways_of(size)
        }

    def _time(self, made: _Graph, repeats: int = _MEASURED_REPLAYS) -> float:
        """Every rank replays as often, since a replay may gather."""
        made.graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            made.graph.replay()
            mark.record()
        marks[-1].synchronize()
        return median(before.elapsed_time(after) for before, after in pairwise(marks))
