"""The types that vectors can have in an output, and how they are made of the engine's float32."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pyarrow as pa

VectorType = Literal["float32", "float16", "int8", "binary"]
VECTOR_TYPES: tuple[str, ...] = get_args(VectorType)

_INT8_LARGEST = 127
# A vector that was scaled in bfloat16 is off by up to 2^-8: its norm, the quotient and its components are rounded.
_UNIT_TOLERANCE = 1e-2
_ITEMS = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


def vector_fields(name: str, scale_name: str, kind: VectorType, size: int) -> list[pa.Field]:
    """Return the fields of a vector column.

    Args:
        name: of the vectors: FixedSizeList of `size` items; with "binary" of size / 8 bytes, rounded up.
        scale_name: of the column that "int8" needs beside it, float32: a component is its item times this.
        kind: see `VectorType`.
        size: floats in a vector of the engine's.
    """
    items = -(-size // 8) if kind == "binary" else size
    fields = [pa.field(name, pa.list_(_ITEMS[kind], items))]
    return [*fields, pa.field(scale_name, pa.float32())] if kind == "int8" else fields


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return vectors float32 `[n, d]` scaled to length 1, those of length 0 as they are."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return vectors / np.where(norms > 0, norms, 1)[:, None]


def is_unit_length(vectors: np.ndarray) -> bool:
    """Whether all vectors float32 `[n, d]` are of length 1, within what bfloat16 leaves of that."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return bool((np.abs(norms - 1) < _UNIT_TOLERANCE).all())


def vector_arrays(vectors: np.ndarray, missing: np.ndarray, kind: VectorType) -> list[pa.Array]:
    """Return the columns of `vector_fields`.

    "float16" rounds. "int8" divides each vector by a scale of its own, its largest component over 127, and rounds.
    "binary" keeps one bit a component, set where it is above 0, the first component in the highest bit of the first
    byte (as sentence-transformers' "ubinary").

    Args:
        vectors: float32 `[n, d]`.
        missing: bool `[n]`, rows that are null.
        kind: see `VectorType`.
    """
    mask = pa.array(missing)
    if kind == "int8":
        largest = np.abs(vectors).max(axis=1, initial=0).astype(np.float32)
        scales = np.where(largest > 0, largest / _INT8_LARGEST, 1).astype(np.float32)
        items = np.rint(vectors / scales[:, None]).astype(np.int8)
        return [_column(items, mask), pa.array(scales, mask=missing)]
    if kind == "binary":
        return [_column(np.packbits(vectors > 0, axis=1), mask)]
    return [_column(vectors.astype(kind, copy=False), mask)]


def _column(items: np.ndarray, mask: pa.Array) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(items.reshape(-1)), items.shape[1], mask=mask)
