"""A column of inputs to embed, and how its rows become blocks: texts, or token ids as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.errors import RowError, RowErrorKind

Rows = slice | np.ndarray
"""Rows of a chunk: a slice where they are neighbours, else their numbers in order."""

_LARGEST_ID = 2**31 - 1
_ID_TYPES = (pa.int32(), pa.int64(), pa.uint32(), pa.uint64())


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for what is no value in Python: text that is not UTF-8, a date outside the years 1 to 9999.

    Attributes:
        reason: what is wrong with it.
    """

    reason: str

    def __repr__(self) -> str:
        return f"({self.reason})"

    @property
    def error(self) -> RowError:
        """That of a row which needs the value."""
        return RowError(RowErrorKind.PROMPT_ERROR, self.reason)


def column_values(column: pa.Array) -> list[Any]:
    """Return a column as Python values, with `Unreadable` for what Arrow cannot make one of."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(column, index) for index in range(len(column))]
    return values


def _value(column: pa.Array, index: int) -> Any:
    try:
        return column[index].as_py()
    except UnicodeDecodeError:
        return Unreadable("the text is not valid UTF-8")
    except (ValueError, OverflowError) as error:
        return Unreadable(f"a value of type {column.type} that Python cannot hold: {error}")


def any_unreadable(values: Sequence[Any]) -> bool:
    """Whether `column_values` had to put in an `Unreadable`."""
    return Unreadable in map(type, values)


class Block(NamedTuple):
    """Rows of a chunk cut for one request.

    Attributes:
        first: the first row that goes to the engine.
        rows: those that go to the engine.
        refused: those that do not, and why.
        texts: of `rows`, or none.
        ids: of `rows`, or None.
    """

    first: int
    rows: Rows
    refused: dict[int, RowError]
    texts: list[str]
    ids: TokenRows | None = None


class EmbedInputs(ABC):
    """The input column of a chunk."""

    _null: RowError

    def __init__(self, column: pa.Array) -> None:
        self._nulls = np.empty(0, np.intp)
        if column.null_count:
            self._nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))

    @abstractmethod
    def block(self, first: int, last: int) -> Block:
        """Cut rows `first` to `last`, exclusive."""

    def _refused(self, first: int, last: int) -> dict[int, RowError]:
        begin, end = np.searchsorted(self._nulls, (first, last))
        return dict.fromkeys(self._nulls[begin:end].tolist(), self._null)


class TextInputs(EmbedInputs):
    """Texts, decoded block by block."""

    _null = RowError(RowErrorKind.NULL_INPUT, "the text is null")

    def __init__(self, column: pa.Array) -> None:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()  # which may have a null among its values
        super().__init__(column)
        self._column = column

    def block(self, first: int, last: int) -> Block:
        """Cut rows; those that are null or no UTF-8 are refused."""
        texts = column_values(self._column.slice(first, last - first))
        refused = self._refused(first, last)
        if any_unreadable(texts):
            bad = {row: text.error for row, text in enumerate(texts, first) if isinstance(text, Unreadable)}
            refused |= bad
        rows = _others(first, last, refused)
        if refused:
            texts = [text for row, text in enumerate(texts, first) if row not in refused]
        return Block(_first(rows), rows, refused, texts)


class TokenInputs(EmbedInputs):
    """Token ids: of a column without nulls in lists of int32 they are the column's own memory."""

    _null = RowError(RowErrorKind.NULL_INPUT, "the list of token ids is null")

    def __init__(self, column: pa.Array) -> None:
        super().__init__(column)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        # flatten() leaves out what may stand behind a null, and heeds slices.
        values = column.flatten()
        if values.null_count:
            values = pc.fill_null(values, np.iinfo(values.type.to_pandas_dtype()).max)
        self._rows = TokenRows(_int32(values.to_numpy()), lengths.astype(np.int32))

    def block(self, first: int, last: int) -> Block:
        """Cut rows; those that are null are refused."""
        refused = self._refused(first, last)
        rows = _others(first, last, refused)
        ids = self._rows.slice(first, last)
        if refused:
            # A null has no ids, so that only its length has to go.
            ids = TokenRows(ids.ids, self._rows.lengths[rows])
        return Block(_first(rows), rows, refused, [], ids)


def embed_inputs(column: pa.Array) -> EmbedInputs:
    """Return the inputs of a column whose type is one of those that `schema.check_embed_column` takes."""
    return TokenInputs(column) if is_token_ids(column.type) else TextInputs(column)


def is_token_ids(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are lists of whole numbers that can hold token ids."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists) and kind.value_type in _ID_TYPES


def _int32(ids: np.ndarray) -> np.ndarray:
    """What is outside int32 becomes an id that no vocabulary has."""
    if ids.dtype == np.int32:
        return ids
    smallest = 0 if ids.dtype.kind == "u" else -1
    largest = min(_LARGEST_ID, np.iinfo(ids.dtype).max)
    return np.clip(ids, smallest, largest).astype(np.int32)


def _others(first: int, last: int, refused: dict[int, RowError]) -> Rows:
    if not refused:
        return slice(first, last)
    return np.setdiff1d(np.arange(first, last), np.fromiter(refused, np.intp), assume_unique=True)


def _first(rows: Rows) -> int:
    return int(rows.start if isinstance(rows, slice) else rows[0] if len(rows) else 0)
