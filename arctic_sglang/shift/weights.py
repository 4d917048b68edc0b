"""One copy of a layer's weights for both modes: the order of its rows, and this rank's share as a view of them.

A layer is loaded as the base tensor parallelism has it: weight [out, in], out = the rows of a shard. In sequence
parallelism it is used whole, in tensor parallelism a rank uses one of `sp` parts. For layers whose rows are shared out
(query/key/value, gate/up) the rows are put in the order of the parts, so that a part is one contiguous block; for
layers whose columns are (attention's output, down) a part is a strided view, which matrix products take as it is.

Where there are fewer key/value heads than ranks, the rows of a head are stored once for each part that has it: a
few per cent of that one layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from arctic_sglang.shift.topology import Heads

Int64 = NDArray[np.int64]


def qkv_order(heads: Heads, shard: int, head_dim: int, value_dim: int | None = None) -> Int64:
    """The rows of a query/key/value layer in the order of the parts.

    Args:
        heads: of the model, on its ranks.
        shard: of the base tensor parallelism.
        head_dim: rows of a query or key head.
        value_dim: rows of a value head; None: as many.

    Returns:
        int64 [sp * rows of a part]: for each row as it is to be stored, its place as SGLang loads it (query heads, key
        heads, value heads of the shard). All rows are among them; those of a repeated head more than once.
    """
    value_dim = head_dim if value_dim is None else value_dim
    query, kv = heads.query_of_shard(shard), heads.kv_of_shard(shard)
    keys = len(query) * head_dim
    values = keys + len(kv) * head_dim
    rows: list[int] = []
    for rank in heads.topology.sequence_groups()[shard]:
        own_query, own_kv = heads.query_of_rank(rank), heads.kv_of_rank(rank)
        rows += _rows(0, own_query, query.start, head_dim)
        rows += _rows(keys, own_kv, kv.start, head_dim)
        rows += _rows(values, own_kv, kv.start, value_dim)
    return np.array(rows, np.int64)


def merged_order(sizes: Sequence[int], sp: int) -> Int64:
    """The rows of a layer that merges several outputs (gate and up) in the order of the parts.

    Args:
        sizes: rows of each output in a shard; they divide by `sp`.
        sp: parts.

    Returns:
        int64 [sum(sizes)]: for each row as it is to be stored, its place as SGLang loads it.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    rows = [
        start + part * (size // sp) + np.arange(size // sp)
        for part in range(sp)
        for start, size in zip(starts, sizes, strict=True)
    ]
    return np.concatenate(rows).astype(np.int64)


def loaded_order(order: Int64) -> Int64:
    """The way back, for weights that are loaded again: where each row as SGLang loads it is stored (the first place).

    Args:
        order: of `qkv_order` or `merged_order`.
    """
    return np.unique(order, return_index=True)[1].astype(np.int64)


def in_order(loaded: torch.Tensor, order: Int64, dim: int = 0) -> torch.Tensor:
    """The rows of a tensor in another order, as near to each other in memory as before.

    Args:
        loaded: a weight, a bias or the scales of its rows.
        order: int64 [rows], the place in `loaded` of each row to be.
        dim: along which the rows are.
    """
    rows = torch.from_numpy(order).to(loaded.device)
    return loaded.movedim(dim, 0)[rows].movedim(0, dim)


def part(stored: torch.Tensor, position: int, sp: int, dim: int | None) -> torch.Tensor:
    """A rank's part of a tensor, as a view.

    Args:
        stored: sp parts along `dim`, in their order.
        position: of the rank in its sequence group.
        sp: parts.
        dim: None: all ranks have all of it.
    """
    if dim is None:
        return stored
    size = stored.shape[dim] // sp
    return stored.narrow(dim, position * size, size)


def _rows(offset: int, heads: range, first: int, size: int) -> range:
    start = offset + (heads.start - first) * size
    return range(start, start + len(heads) * size)
