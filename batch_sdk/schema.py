"""Which columns a job reads and which it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from batch_sdk.embed_inputs import is_token_ids
from batch_sdk.errors import ColumnError, RowError, SourceError, nearest
from batch_sdk.vectors import vector_fields

if TYPE_CHECKING:
    # Jobs check their options with this module.
    from batch_sdk.job import EmbedJob, Job

ERROR_TYPE = pa.struct([("kind", pa.string()), ("message", pa.string())])
"""Type of the error column: null where the row is fine."""


def check_input(schema: pa.Schema) -> None:
    """Raise `SourceError` unless every column has a name of its own and there is at least one."""
    if not schema.names:
        raise SourceError("the input has no columns", "a table with at least one column")
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise SourceError(
                f"the input has two columns named {name!r}", "unique names", "rename one of them"
            )
        seen.add(name)


def kept_fields(job: Job, schema: pa.Schema) -> list[pa.Field]:
    """Return the input's fields that are passed through, in the order of the output.

    Raises:
        ColumnError: `keep` names a column that the input lacks.
    """
    if job.keep is None:
        return list(schema)
    for name in job.keep:
        if name not in schema.names:
            raise ColumnError(
                f"keep names column {name!r}, which the input lacks{nearest(name, schema.names)}",
                f"some of: {', '.join(schema.names)}",
            )
    return [schema.field(name) for name in job.keep]


def embed_fields(job: EmbedJob, size: int) -> list[pa.Field]:
    """Return the fields that an embed job adds; `size` is the number of floats in a vector."""
    prefix = job.details_prefix
    return [
        *vector_fields(job.embedding_column, f"{prefix}embedding_scale", job.embedding_type, size),
        pa.field(f"{prefix}prompt_tokens", pa.int32()),
        pa.field(f"{prefix}error", ERROR_TYPE),
    ]


def output_schema(kept: Sequence[pa.Field], added: Sequence[pa.Field], result_option: str) -> pa.Schema:
    """Join the fields into the output's schema.

    Args:
        kept: fields of the input.
        added: fields of the job, the result first.
        result_option: the option that renames the result column.

    Raises:
        ColumnError: a name occurs twice.
    """
    names = {field.name for field in kept}
    for index, field in enumerate(added):
        if field.name in names:
            option = f"{result_option}=..." if index == 0 else "details_prefix=..."
            raise ColumnError(
                f"the output would have two columns named {field.name!r}",
                "unique names",
                f"pass {option} to rename the new one, or keep=[...] without the old one",
            )
        names.add(field.name)
    # Schema-level metadata (pandas, for one) describes the input as a whole and would be wrong here.
    return pa.schema([*kept, *added])


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are strings, dictionary-encoded ones included."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def check_embed_column(schema: pa.Schema, name: str) -> None:
    """Raise `ColumnError` unless `name` is a column of strings, of lists of token ids, or of nothing but nulls."""
    if name not in schema.names:
        raise ColumnError(
            f"the input has no column {name!r}{nearest(name, schema.names)}",
            f"one of: {', '.join(schema.names)}",
        )
    kind = schema.field(name).type
    if not is_text(kind) and not is_token_ids(kind) and not pa.types.is_null(kind):
        raise ColumnError(
            f"column {name!r} has type {kind}",
            "a column of strings, or of lists of token ids (int32, int64)",
            "cast it, or choose another",
        )


def error_array(errors: Sequence[RowError | None]) -> pa.StructArray:
    """Return the error column for one batch."""
    if not any(errors):
        return pa.nulls(len(errors), ERROR_TYPE)
    rows = [None if e is None else {"kind": e.kind.value, "message": e.message} for e in errors]
    return pa.array(rows, ERROR_TYPE)
