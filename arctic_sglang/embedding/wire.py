"""What travels between the front door and an instance: arrays, never rows. Pickled by SGLang's own sockets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(slots=True, eq=False)
class EmbedBlock:
    """Rows for one forward step, from the front door to an instance.

    Attributes:
        number: unique among the blocks of a front door.
        ids: int32 `[tokens]`, rows one after another.
        lengths: int32 `[rows]`, none of them 0.
        small: of a request that goes ahead of large ones.
        dimensions: components to keep (Matryoshka); None: all.
    """

    number: int
    ids: np.ndarray
    lengths: np.ndarray
    small: bool = False
    dimensions: int | None = None


@dataclass(slots=True, eq=False)
class BlockVectors:
    """The answer to an `EmbedBlock`.

    Attributes:
        number: the block's.
        vectors: float32 `[rows, width]`, or None where the step failed.
        error: what went wrong.
    """

    number: int
    vectors: np.ndarray | None
    error: str | None = None
    # SGLang looks for it on whatever a scheduler sends.
    http_worker_ipc: str | None = None


@dataclass(slots=True)
class DropBlocks:
    """The front door no longer wants these blocks; those not begun are answered with an error at once."""

    numbers: list[int]
