"""Which rank holds which heads, which share of the weights, and which tokens. Pure: whole numbers in and out.

There are `tp * sp` ranks. Rank g = shard * sp + position: `shard` of the base tensor parallelism, `position` in its
group of ranks that hold the same weights and share out the tokens (a sequence group). Head block `position` of shard
`shard` is block g of plain tensor parallelism over all ranks, so a KV cache written either way holds the same heads on
the same rank, and neither ranks nor vocabulary have to be put in another order.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topology:
    """Ranks of one model.

    Attributes:
        tp: ranks of the base tensor parallelism (--tp-size).
        sp: ranks of a sequence group (--ulysses-sequence-parallel-size).

    Raises:
        ValueError: one of them is below 1.
    """

    tp: int
    sp: int

    def __post_init__(self) -> None:
        for flag, value in (("--tp-size", self.tp), ("--ulysses-sequence-parallel-size", self.sp)):
            if value < 1:
                msg = f"{flag} is {value}; it must be at least 1"
                raise ValueError(msg)

    @property
    def world(self) -> int:
        """All ranks."""
        return self.tp * self.sp

    def shard(self, rank: int) -> int:
        """Which part of the base tensor parallelism's weights a rank holds."""
        return rank // self.sp

    def position(self, rank: int) -> int:
        """A rank's place in its sequence group."""
        return rank % self.sp

    def sequence_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that hold the same weights and share out the tokens."""
        return tuple(tuple(range(shard * self.sp, (shard + 1) * self.sp)) for shard in range(self.tp))

    def tensor_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that hold different weights and work on the same tokens of a step in sequence parallelism."""
        return tuple(tuple(range(position, self.world, self.sp)) for position in range(self.sp))


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of a model, shared out over ranks as SGLang does it for `topology.world` of them.

    Where there are fewer key/value heads than ranks, several ranks hold the same one.

    Attributes:
        topology: the ranks.
        query: query heads of the model.
        kv: key/value heads of the model.

    Raises:
        ValueError: they do not divide.
    """

    topology: Topology
    query: int
    kv: int

    def __post_init__(self) -> None:
        ranks = self.topology.world
        if self.query < 1 or self.kv < 1 or self.query % self.kv:
            msg = f"a model with {self.query} query heads and {self.kv} key/value heads: they must divide"
            raise ValueError(msg)
        if self.query % ranks:
            msg = (
                f"{self.query} query heads do not divide over {_ranks(self.topology)}; {_choices(self.query)}"
            )
            raise ValueError(msg)
        for count, name in (
            (ranks, _ranks(self.topology)),
            (self.topology.tp, f"--tp-size {self.topology.tp}"),
        ):
            if self.kv % count and count % self.kv:
                msg = (
                    f"{self.kv} key/value heads neither divide over {name} nor can be repeated evenly; take a number "
                    f"that divides {self.kv}, or a multiple of it"
                )
                raise ValueError(msg)

    def query_of_rank(self, rank: int) -> range:
        """The query heads whose attention a rank computes, in either mode."""
        return _block(rank, self.topology.world, self.query)

    def kv_of_rank(self, rank: int) -> range:
        """The key/value heads in a rank's cache, in either mode."""
        return _block(rank, self.topology.world, self.kv)

    def query_of_shard(self, shard: int) -> range:
        """The query heads whose weights a shard of the base tensor parallelism holds."""
        return _block(shard, self.topology.tp, self.query)

    def kv_of_shard(self, shard: int) -> range:
        """The key/value heads whose weights a shard of the base tensor parallelism holds."""
        return _block(shard, self.topology.tp, self.kv)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A step's tokens, shared out over a sequence group: rank after rank, as many each, the last ones padded.

    Attributes:
        count: tokens of the step, 0 or more; they need not divide, and may be fewer than ranks.
        sp: ranks of the group.
    """

    count: int
    sp: int

    @property
    def share(self) -> int:
        """Rows of each rank, padding included."""
        return -(-self.count // self.sp)

    @property
    def padded(self) -> int:
        """Rows of all ranks, padding included."""
        return self.share * self.sp

    def of_position(self, position: int) -> range:
        """The tokens of a rank, without padding; empty where all its rows are padding."""
        first = min(position * self.share, self.count)
        return range(first, min(first + self.share, self.count))


def check_divides(name: str, size: int, topology: Topology) -> None:
    """Refuses a dimension of the weights that the ranks cannot share out.

    Args:
        name: of the dimension, as config.json has it.
        size: of the model.
        topology: the ranks.

    Raises:
        ValueError: it does not divide.
    """
    if size % topology.world:
        msg = f"{name} {size} does not divide over {_ranks(topology)}; {_choices(size)}"
        raise ValueError(msg)


def _block(index: int, parts: int, total: int) -> range:
    """Part `index` of `total` heads; with fewer heads than parts, one head, the same for neighbours."""
    if total >= parts:
        each = total // parts
        return range(index * each, (index + 1) * each)
    head = index // (parts // total)
    return range(head, head + 1)


def _ranks(topology: Topology) -> str:
    return (
        f"{topology.world} ranks (--tp-size {topology.tp} x --ulysses-sequence-parallel-size {topology.sp})"
    )


def _choices(size: int, most: int = 64) -> str:
    fitting = [str(ranks) for ranks in range(1, min(size, most) + 1) if size % ranks == 0]
    return f"take as many ranks as one of {', '.join(fitting)}"
