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

from speculative.speculators import products, screen
from speculative.speculators.modules import LstmSpeculator, Speculator
from speculative.speculators.products import (
    MAX_BATCH,
    Weight,
    candidates,
    pack,
    product,
    quantise,
    settle,
)
from speculative.speculators.screen import Screen, screen_of, screened
from speculative.speculators.tiling import rows_block

Gather = Callable[[Tensor], Tensor]
Way = Literal["matmul", "fused", "float8", "screened"]
WAYS: tuple[Way, ...] = ("matmul", "fused", "float8", "screened")

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

    head: Sequence[Weight | Screen]
    proj: Sequence[Weight] | None
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    way: Way
    drafted: Tensor


class Drafter:
    """Drafts with a head. Not for several threads at once: it owns the buffers that its graphs read.

    There are four ways to a draft:

    - `matmul`: torch's products and argmax. The twin of the others, and the way on the CPU and for large batches;
    - `fused`: the argmax within the head's product, weights as they are;
    - `float8`: the same with the head, and an LSTM's projections, in float8, activations in float16;
    - `screened`: the head in 4 bits, checked with the head itself (see `screen`), projections in float8. Ranks agree,
      but since each checks nominees of its own, a sharded head may draft better than a whole one.

    On a GPU the first graph of every kernel size (to 16 rows, 32, 64, 128) is made in all ways, and the fastest stays.
    Ranks may find different ones: they still draft the same, since each token comes out of a gather.

    Args:
        speculator: in `eval`, on its device. With a shard `gather` is needed.
        max_batch: the largest batch that gets a graph; larger ones are drafted step by step.
        gather: from int64 `[batch]` of this rank to those of all ranks, `[ranks * batch]` or `[ranks, batch]`, any
            order of ranks; see `gather_over`. Every rank must then draft and capture the same batches.
        ways: that drafts may be made in; None: all that are possible, on the CPU `matmul`. Beyond `MAX_BATCH` of
            `products` it is always `matmul`.
        graphs: False: no CUDA graphs.

    Raises:
        ValueError: the vocabulary is sharded and there is no `gather`, or a way is asked for that is not possible.
    """

    def __init__(
        self,
        speculator: Speculator,
        *,
        max_batch: int = 64,
        gather: Gather | None = None,
        ways: Sequence[Way] | None = None,
        graphs: bool = True,
    ) -> None:
        shard = speculator.shard
        if shard.size > 1 and gather is None:
            msg = f"the head holds part {shard.rank} of {shard.size} of the vocabulary: give a gather"
            raise ValueError(msg)
        self._speculator = speculator
        self._config = speculator.config
        self._first = shard.tokens(self._config.vocab_size).start
        self._gather = gather
        weight = speculator.head_weight(0)
        self._device, self._dtype = weight.device, weight.dtype
        self._graphs_wanted = graphs and self._device.type == "cuda"
        self._sizes = buckets(max_batch)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._fastest: dict[int, Way] = {}
        self._inputs: dict[torch.dtype, Tensor] = {}
        self._tokens = torch.zeros(max_batch, dtype=torch.int64, device=self._device)
        self._pool: tuple[int, int] | None = None
        self._ways = self._possible() if ways is None else self._wanted(ways)
        self._weights = self._prepare()

    @property
    def extra_bytes(self) -> int:
        """Memory of the weights in 4 and 8 bits, which come on top of the originals."""
        lean = {
            id(w): w
            for way in self._weights
            for w in (*self._weights[way].head, *(self._weights[way].proj or ()))
        }
        return sum(w.bytes for w in lean.values() if isinstance(w, Screen) or w.in_8_bits)

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

        To be called at a start: kernels are compiled and timed, which may take a minute. Without a `gather` a missing
        graph is made by the first draft that needs it; with one all ranks have to call this alike, and batch sizes
        without a graph are drafted step by step.

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
            if (size, steps) in self._graphs:
                continue
            found = self._fastest.get(rows_block(size))
            made = [
                self._capture(way, size, steps, stream) for way in ([found] if found else self._ways_of(size))
            ]
            best = made[0] if len(made) == 1 else min(made, key=self._time)
            self._graphs[size, steps], self._fastest[rows_block(size)] = best, best.way

    def _steps(self, steps: int | None) -> int:
        steps = self._config.n_predict if steps is None else steps
        self._speculator.check_steps(steps)
        return steps

    def _size(self, batch: int) -> int:
        at = bisect_left(self._sizes, batch)
        return self._sizes[at] if at < len(self._sizes) else batch

    def _possible(self, *, on_gpu_alone: bool = True) -> list[Way]:
        on_gpu = self._device.type == "cuda"
        if self._dtype not in (torch.float16, torch.bfloat16) or (on_gpu_alone and not on_gpu):
            return ["matmul"]
        if on_gpu and torch.cuda.get_device_capability(self._device) < _FLOAT8_CAPABILITY:
            return ["matmul", "fused"]
        return list(WAYS) if self._config.state_dim % 4 == 0 else list(WAYS[:3])

    def _wanted(self, ways: Sequence[Way]) -> list[Way]:
        possible = self._possible(on_gpu_alone=False)
        if not ways or not set(ways) <= set(possible):
            msg = (
                f"ways to draft {list(ways)} were asked for; possible are {possible}, and all of {list(WAYS)} with"
                " weights in 16 bits, a width of a multiple of 4 and, on a GPU, compute capability 8.9 or more"
            )
            raise ValueError(msg)
        return [way for way in WAYS if way in ways]

    def _ways_of(self, batch: int) -> list[Way]:
        return ["matmul"] if batch > MAX_BATCH else self._ways

    def _eager_way(self, batch: int) -> Way:
        ways = self._ways_of(batch)
        return ways[0] if len(ways) == 1 else "matmul"

    def _prepare(self) -> dict[Way, _Weights]:
        heads = [layer.weight.detach() for layer in self._speculator.head]
        whole = _Weights([Weight(weight) for weight in heads], None, self._dtype)
        made: dict[Way, _Weights] = {"matmul": whole, "fused": whole}
        lean: dict[Way, Callable[[Tensor], Weight | Screen]] = {"float8": quantise, "screened": screen_of}
        proj, dtype = None, self._dtype
        if isinstance(self._speculator, LstmSpeculator) and not lean.keys().isdisjoint(self._ways):
            proj, dtype = [quantise(layer.weight) for layer in self._speculator.proj], torch.float16
        for way in lean.keys() & set(self._ways):
            made[way] = _Weights([lean[way](weight) for weight in heads], proj, dtype)
        return made

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

    def _pick(self, way: Way, head: Weight | Screen, output: Tensor, out: Tensor) -> None:
        """Writes the likeliest tokens of all shards into `out` int64 `[batch]`."""
        if isinstance(head, Screen):
            parts = screened(output.half(), head, self._first)
        elif way == "matmul":
            logits = functional.linear(output, head.values)
            if self._gather is None:
                out.copy_(logits.argmax(-1))
                return
            values, at = logits.max(-1, keepdim=True)
            parts = pack(values, at + self._first)
        else:
            parts = candidates(output.half() if head.in_8_bits else output, head, self._first)
        if self._gather is not None:
            mine = parts.new_empty(len(output))
            settle(parts, mine, ids=False)
            parts = self._gather(mine).reshape(-1, len(output)).T
        settle(parts, out)

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
        # Kernels are compiled and libraries set up outside the graph.
        self._body(way, hidden, tokens, drafted)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            self._body(way, hidden, tokens, drafted)
        self._pool = graph.pool()
        return _Graph(graph, way, drafted)

    def _tune(self, weights: _Weights, size: int) -> None:
        def activations(width: int, *, half: bool) -> Tensor:
            dtype = torch.float16 if half else weights.dtype
            return torch.zeros(size, width, dtype=dtype, device=self._device)

        for weight in (*weights.head, *(weights.proj or ())):
            if isinstance(weight, Screen):
                screen.tune(activations(weight.exact.shape[1], half=True), weight)
            else:
                products.tune(activations(weight.values.shape[1], half=weight.in_8_bits), weight)

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
