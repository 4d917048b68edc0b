"""Sampling parameters that differ from row to row, taken from columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from batch_sdk.errors import ColumnError, OptionError, RowError, RowErrorKind, check_names, nearest
from batch_sdk.sampling import SamplingParams
from batch_sdk.schema import is_text

_WHOLE = ("max_new_tokens", "min_new_tokens", "top_k", "seed")
_SWITCHES = ("ignore_eos", "skip_special_tokens")
_CACHED_COMBINATIONS = 4096


def check_sampling_columns(columns: Any) -> dict[str, str]:
    """Return a job's `sampling_columns` as a dict of parameter to column; raise `OptionError` for nonsense."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(c, str) and c for c in columns.values()):
        raise OptionError(f"sampling_columns={columns!r}", "a dict of sampling option to column name")
    check_names(columns, [field.name for field in fields(SamplingParams)], "sampling option")
    return dict(columns)


class RowSampling:
    """The sampling parameters of every row.

    Args:
        sampling: the job's; they hold where a column has a null.
        columns: parameter -> column.
        extra: request parameters that are the same for all rows.
        schema: the input's.

    Raises:
        ColumnError: a column is missing or its type cannot hold the parameter.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        columns: Mapping[str, str],
        extra: Mapping[str, Any],
        schema: pa.Schema,
    ) -> None:
        for parameter, name in columns.items():
            _check_column(parameter, name, schema)
        self._sampling = sampling
        self._extra = dict(extra)
        self._parameters = tuple(columns)
        self.columns = tuple(columns.values())
        self._job_request = {**sampling.to_request(), **self._extra}
        # Rows that agree share one dict, as rows without such columns do.
        self._merged = lru_cache(_CACHED_COMBINATIONS)(self._merge)

    def rows(self, columns: list[list[Any]]) -> Callable[[int], dict[str, Any] | RowError]:
        """Return a function from row to its request's parameters.

        Args:
            columns: the values of `self.columns` in one batch.
        """
        if not columns:
            return lambda row: self._job_request
        return lambda row: self._merged(tuple([_hashable(column[row]) for column in columns]))

    def _merge(self, values: tuple[Any, ...]) -> dict[str, Any] | RowError:
        given = {n: v for n, v in zip(self._parameters, values, strict=True) if v is not None}
        try:
            return {**replace(self._sampling, **given).to_request(), **self._extra}
        except OptionError as error:
            return RowError(RowErrorKind.INVALID_SAMPLING, str(error))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_column(parameter: str, name: str, schema: pa.Schema) -> None:
    if name not in schema.names:
        raise ColumnError(
            f"sampling_columns names column {name!r}, which the input lacks{nearest(name, schema.names)}",
            f"one of: {', '.join(schema.names)}",
        )
    kind = schema.field(name).type
    if pa.types.is_null(kind):
        return
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if parameter in _WHOLE:
        good, wanted = pa.types.is_integer(kind), "integers"
    elif parameter in _SWITCHES:
        good, wanted = pa.types.is_boolean(kind), "booleans"
    elif parameter == "stop":
        good, wanted = is_text(kind if inner is None else inner), "strings or lists of strings"
    elif parameter == "stop_token_ids":
        good, wanted = inner is not None and pa.types.is_integer(inner), "lists of integers"
    else:
        good, wanted = pa.types.is_integer(kind) or pa.types.is_floating(kind), "numbers"
    if not good:
        raise ColumnError(
            f"sampling_columns takes {parameter} from column {name!r} of type {kind}",
            f"a column of {wanted}",
            "cast it, or choose another",
        )
