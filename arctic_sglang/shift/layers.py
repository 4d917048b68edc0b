"""Linear layers that change their mode from step to step, over one copy of their weights.

A layer here is anything like SGLang's: parameters `weight`, `bias` (or None) and others that its format names,
`tp_rank` and `tp_size`, and `forward(x)`, which returns the product and a bias to add later (None). It was made and
loaded for the base tensor parallelism. `take` puts its weights in the order of the parts, and leaves it with its part
of them as its own: from then on it is, to itself and to SGLang, a layer of tensor parallelism over all ranks. What it
does in sequence parallelism is said here, and only while such a step runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from arctic_sglang.shift import formats, weights
from arctic_sglang.shift.exchange import Exchange
from arctic_sglang.shift.figures import Figures
from arctic_sglang.shift.formats import Format, Seen
from arctic_sglang.shift.policy import Mode, Policy, Timing
from arctic_sglang.shift.topology import Tokens, Topology
from arctic_sglang.shift.weights import Int64

Forward = Callable[..., Any]


@dataclass(slots=True)
class Shift:
    """This rank, and the step that it is in.

    Attributes:
        topology: all ranks.
        rank: this one.
        policy: which step gets which mode.
        exchange: how ranks of a sequence group reach each other.
        tokens: of the step, while one runs in sequence parallelism; None: everything is tensor parallel.
        ran: the last step that ran here, as mode and tokens, until somebody takes it.
        figures: of the steps so far.
        timings: by which the threshold was chosen; none where it was given.
    """

    topology: Topology
    rank: int
    policy: Policy
    exchange: Exchange
    tokens: Tokens | None = None
    ran: tuple[Mode, int] | None = None
    figures: Figures = field(default_factory=Figures)
    timings: list[Timing] = field(default_factory=list)
    _running: bool = False

    @property
    def position(self) -> int:
        """This rank's place in its sequence group."""
        return self.topology.position(self.rank)

    def told(self) -> dict[str, Any]:
        """What a server tells of it, as JSON can hold it: figures are this rank's so far."""
        return {
            "threshold": self.policy.threshold,
            "sequence_groups": [list(group) for group in self.topology.sequence_groups()],
            **self.figures.told(),
            "timings": [asdict(timing) for timing in self.timings],
        }

    @contextmanager
    def step(self, count: int, mode: Mode | None = None) -> Iterator[None]:
        """Runs a step in its mode, whatever becomes of it; within a step, what it runs belongs to it.

        Args:
            count: its tokens, as the kernels see them.
            mode: that it must have; None: as the policy says.
        """
        if self._running:
            yield
            return
        mode = mode or self.policy.mode(count)
        self.tokens = Tokens(count, self.topology.sp) if mode is Mode.SEQUENCE else None
        self._running, self.ran = True, (mode, count)
        try:
            yield
        finally:
            self._running, self.tokens = False, None

    @contextmanager
    def rest(self, count: int, mode: Mode | None) -> Iterator[None]:
        """What is left of a step when most of its rows are done with, in a mode of its own.

        Args:
            count: rows that go on.
            mode: that it must have; None: as the policy says.
        """
        kept, mode = self.tokens, mode or self.policy.mode(count)
        self.tokens = Tokens(count, self.topology.sp) if mode is Mode.SEQUENCE else None
        try:
            yield
        finally:
            self.tokens = kept

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """This rank's share of all tokens' rows: [tokens, ...] -> [share, ...], padded with zeros; else all of them.

        Args:
            rows: of the step's tokens, which every rank has.
        """
        if self.tokens is None:
            return rows
        mine = self.tokens.of_position(self.position)
        padding = rows.new_zeros(self.tokens.share - len(mine), *rows.shape[1:])
        return (
            torch.cat((rows[mine.start : mine.stop], padding))
            if len(padding)
            else rows[mine.start : mine.stop]
        )

    def note(self) -> None:
        """Counts the step that ran here last, which a request had; once."""
        if self.ran is not None:
            self.figures.count(*self.ran)
            self.ran = None


class Switched(ABC):
    """A linear layer of one copy.

    Args:
        layer: loaded for the base tensor parallelism.
        shift: this rank.
        order: of its rows, see `weights`; None: a layer whose columns are shared out.
        form: of its weights.

    Attributes:
        whole: its tensors by name, rows in their order.
        copied: the part of the weight, where its kernel does not compute with a view; None elsewhere.

    Raises:
        ValueError: there is no kernel for its part.
    """

    def __init__(
        self, layer: Any, shift: Shift, order: Int64 | None = None, form: Format = formats.PLAIN
    ) -> None:
        self.layer, self.shift, self.order, self.form = layer, shift, order, form
        self.whole: dict[str, torch.Tensor] = {}
        self.copied: torch.Tensor | None = None
        self._seen_whole = Seen(layer, self.whole)
        self._seen_parts: list[Seen] = []
        self._tensor_parallel: Forward = layer.forward
        self.take()
        layer.forward = self.forward

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's product in the mode of the step."""
        tokens = self.shift.tokens
        if tokens is None:
            return self._tensor_parallel(x, *args, **kwargs)
        return self.sequence_parallel(x, tokens), None

    @abstractmethod
    def sequence_parallel(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """The product with the whole copy, of this rank's share of the tokens."""

    def product(self, x: torch.Tensor, bias: bool = True) -> torch.Tensor:
        """With the whole copy: [rows, in] -> [rows, out].

        Args:
            x: rows.
            bias: whether to add it, where there is one.
        """
        return self.form.product(self._seen_whole, x, self.whole.get("bias") if bias else None)

    def take(self) -> None:
        """Takes what was loaded into the layer into the copy; where there is one already, in place."""
        for name, axes in self.form.axes.items():
            parameter = getattr(self.layer, name, None)
            if parameter is None:
                continue
            loaded = parameter.data
            if self.order is not None and axes.rows is not None:
                loaded = weights.in_order(loaded, self.order, axes.rows)
            if name in self.whole:  # captured graphs know where it is
                self.whole[name].copy_(loaded)
            else:
                self.whole[name] = loaded
        if not self._seen_parts:
            self._seen_parts = [
                Seen(self.layer, {name: self._part(name, whole, part) for name, whole in self.whole.items()})
                for part in range(self.shift.topology.sp)
            ]
        if self.form.quantized and not self._kernel_takes_view():
            self.copied = formats.packed(self._part("weight", self.whole["weight"]), self.form.axes["weight"])
        for name, whole in self.whole.items():
            copied = self.copied if name == "weight" else None
            getattr(self.layer, name).data = self._part(name, whole) if copied is None else copied
        self.layer.tp_rank, self.layer.tp_size = self.shift.rank, self.shift.topology.world

    def give(self) -> None:
        """Gives the layer back what it had when it was loaded, so that it can be loaded again; then `take`."""
        given = {}
        for name, whole in self.whole.items():
            given[name], rows = whole, self.form.axes[name].rows
            if self.order is not None and rows is not None:
                given[name] = weights.in_order(whole, weights.loaded_order(self.order), rows)
        for name, data in given.items():  # now that there was memory for all of them
            getattr(self.layer, name).data = data
        self.layer.tp_rank = self.shift.topology.shard(self.shift.rank)
        self.layer.tp_size = self.shift.topology.tp

    def _part(self, name: str, whole: torch.Tensor, position: int | None = None) -> torch.Tensor:
        # Of a layer whose columns are shared out, a bias is added to the sum of all parts, and scales are the rows'.
        axes = self.form.axes[name]
        dim = axes.columns if self.order is None else axes.rows
        position = self.shift.position if position is None else position
        return weights.part(whole, position, self.shift.topology.sp, dim)

    def _rows(self) -> int:
        """The dimension of the weight that runs along its rows."""
        rows = self.form.axes["weight"].rows
        assert rows is not None
        return rows

    def _kernel_takes_view(self) -> bool:
        try:
            return formats.takes_part(
                self.form, self.layer, self.whole["weight"], lambda whole: self._part("weight", whole)
            )
        except (RuntimeError, AssertionError) as error:
            shape = list(self._part("weight", self.whole["weight"]).shape)
            msg = f"there is no product with a part {shape} of quantised weights: {error}; take fewer ranks"
            raise ValueError(msg) from error


class SwitchedQkv(Switched):
    """Query, key and value, or query alone: own rows in, all tokens of this rank's heads out. `order` is given."""

    def sequence_parallel(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """[share, in] -> [tokens, rows of a part]."""
        exchange, form = self.shift.exchange, self.form
        # Where one part had to be copied, no other is computed with as it lies.
        if self.copied is not None or not exchange.overlaps(tokens):
            return exchange.to_heads(self.product(x), tokens)

        def compute(part: int, target: torch.Tensor | None = None) -> torch.Tensor:
            seen = self._seen_parts[part]
            if target is None:
                return form.product(seen, x, seen.bias)
            form.write(seen, target, x, seen.bias)
            return target

        width = self.whole["weight"].shape[self._rows()] // tokens.sp
        return exchange.heads_from_parts(compute, x.new_empty(0, width), tokens)


class SwitchedGateUp(Switched):
    """Gate and up: own rows in, and out part by part, as if each part were a row of its own. `order` is given."""

    def sequence_parallel(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """[share, in] -> [share * sp, rows of a part]; an activation of halves takes each row for itself."""
        product = self.product(x)
        return product.view(len(x) * tokens.sp, product.shape[1] // tokens.sp)


class SwitchedRow(Switched):
    """A layer whose columns are shared out, behind a gate."""

    def sequence_parallel(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """[share * sp, columns of a part] -> [share, out]."""
        return self._sum(x.reshape(tokens.share, tokens.sp * x.shape[1]))

    def _sum(self, rows: torch.Tensor) -> torch.Tensor:
        return self.shift.exchange.add(self.product(rows, bias=self._adds_bias()))

    def _adds_bias(self) -> bool:
        """One of the ranks whose products are summed."""
        return self.shift.topology.shard(self.shift.rank) == 0


class SwitchedOutput(SwitchedRow):
    """A layer whose columns are shared out, behind attention: all tokens of this rank's heads in, own rows out."""

    def sequence_parallel(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """[tokens, columns of a part] -> [share, out]."""
        exchange = self.shift.exchange
        if not exchange.overlaps(tokens):
            return self._sum(exchange.to_rows(x, tokens))
        found = x.new_empty(tokens.share, self.whole["weight"].shape[self._rows()])
        bias = self.whole.get("bias") if self._adds_bias() else None
        for chunk, rows in exchange.rows_in_chunks(x, tokens):
            self.form.write(self._seen_whole, found[chunk], rows, bias)
        return exchange.add(found)
