"""What ranks send each other in sequence parallelism, over torch's process groups: gloo on CPUs, NCCL on GPUs.

The slow twin of faster exchanges: whatever sends the same parts may stand in its place.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import distributed

from arctic_sglang.shift import layout
from arctic_sglang.shift.push import Vocabulary
from arctic_sglang.shift.topology import Tokens, Topology


class Exchange(Protocol):
    """The collectives of a step in sequence parallelism. All ranks call the same ones in the same order."""

    def to_heads(self, rows: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """Own tokens' rows of all heads become all tokens' rows of own heads: [share, sp * c] -> [tokens, c].

        What was received may lie in a buffer that the next but one exchange writes to.
        """
        ...

    def to_rows(self, heads: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """All tokens' rows of own heads become own tokens' rows of all heads: [tokens, c] -> [share, sp * c].

        Rows of padding are 0. What was received may lie in a buffer that the next but one exchange writes to.
        """
        ...

    def overlaps(self, tokens: Tokens) -> bool:
        """Whether a step is so large that parts had better travel while others are computed: the next two do that."""
        ...

    def heads_from_parts(
        self, compute: Callable[..., torch.Tensor], kind: torch.Tensor, tokens: Tokens
    ) -> torch.Tensor:
        """As `to_heads`, of rows that are computed part by part.

        Args:
            compute: (position in the group, target=None) -> own tokens' rows of the heads of that rank, [share, c],
                in `target` if there is one.
            kind: [0, c], of the type and the device of the rows.
            tokens: of the step.
        """
        ...

    def rows_in_chunks(self, heads: torch.Tensor, tokens: Tokens) -> Iterator[tuple[slice, torch.Tensor]]:
        """As `to_rows`, some rows after the other as they come: which ones of [share], and [those, sp * c].

        To be used up before anything else is sent.
        """
        ...

    def embed(self, ids: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Own tokens' embeddings, of a vocabulary that all ranks share out: [sp * n] -> [n, hidden]."""
        ...

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of rows [sp * n, ...]: each rank gets those of its position, [n, ...]."""
        ...

    def gather(self, rows: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """All rows of the sequence group, position after position: [n, hidden] -> [sp * n, hidden].

        Args:
            rows: own ones.
            chosen: int64 [any], which of all rows somebody will read; what is in the others is nobody's business.
                None: all.
        """
        ...

    def add(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks that hold other shards for the same tokens; may change `rows`."""
        ...


class Collectives:
    """An `Exchange` over process groups.

    Every rank of `topology.world` makes one, at the same time.

    Args:
        topology: the ranks.
        rank: this one.
        world: the group of all ranks; None: torch's default group.
    """

    def __init__(self, topology: Topology, rank: int, world: distributed.ProcessGroup | None = None) -> None:
        self._topology, self._position = topology, topology.position(rank)
        everybody = distributed.get_process_group_ranks(world or distributed.group.WORLD)
        self._sequence = _own(topology.sequence_groups(), rank, everybody, world)
        self._tensor = _own(topology.tensor_groups(), rank, everybody, world) if topology.tp > 1 else None

    @property
    def sequence(self) -> distributed.ProcessGroup | None:
        """The group of the ranks that this one shares tokens with; None: torch's default group."""
        return self._sequence

    def to_heads(self, rows: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """See `Exchange`."""
        return layout.received_heads(self._all_to_all(layout.send_rows(rows, tokens.sp)), tokens)

    def to_rows(self, heads: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """See `Exchange`."""
        return layout.received_rows(self._all_to_all(layout.send_heads(heads, tokens)))

    def overlaps(self, tokens: Tokens) -> bool:
        """Never."""
        del tokens
        return False

    def heads_from_parts(
        self, compute: Callable[..., torch.Tensor], kind: torch.Tensor, tokens: Tokens
    ) -> torch.Tensor:
        """See `Exchange`."""
        parts = kind.new_empty(tokens.sp, tokens.share, kind.shape[1])
        for part, target in enumerate(parts):
            compute(part, target)
        return layout.received_heads(self._all_to_all(parts), tokens)

    def rows_in_chunks(self, heads: torch.Tensor, tokens: Tokens) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Exchange`."""
        rows = self.to_rows(heads, tokens)
        for first in range(0, len(rows), 2):
            yield slice(first, first + 2), rows[first : first + 2]

    def embed(self, ids: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """See `Exchange`."""
        return self.scatter(vocabulary.rows(ids))

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        own = rows.new_empty(len(rows) // self._topology.sp, *rows.shape[1:])
        distributed.reduce_scatter_tensor(own, rows.contiguous(), group=self._sequence)
        return self.add(own)

    def gather(self, rows: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """See `Exchange`."""
        found = rows.new_empty(len(rows) * self._topology.sp, *rows.shape[1:])
        distributed.all_gather_into_tensor(found, rows.contiguous(), group=self._sequence)
        if chosen is None:
            return found
        # Other exchanges leave the others as they were; who reads one of them shall see it.
        kept = torch.full_like(found, torch.nan)
        kept[chosen] = found[chosen]
        return kept

    def add(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        if self._topology.tp > 1:
            distributed.all_reduce(rows, group=self._tensor)
        return rows

    def _all_to_all(self, parts: torch.Tensor) -> torch.Tensor:
        """Part p goes to position p of the sequence group: [sp, ...] -> [sp, ...], part p from position p."""
        found = torch.empty_like(parts)
        distributed.all_to_all_single(found.view(-1), parts.contiguous().view(-1), group=self._sequence)
        return found


def _own(
    groups: tuple[tuple[int, ...], ...],
    rank: int,
    everybody: list[int],
    world: distributed.ProcessGroup | None,
) -> distributed.ProcessGroup | None:
    """The group that this rank is in. All ranks make all groups, as torch wants it."""
    if len(groups) == 1:  # all ranks: SGLang's own group, with what it has set up already
        return world
    found = None
    for group in groups:
        made = distributed.new_group([everybody[member] for member in group])
        if rank in group:
            found = made
    return found
