"""What a response may be: a schema, a regular expression, a grammar or a choice; and how it is read.

Each becomes one of SGLang's sampling parameters `json_schema`, `regex` and `ebnf`. Responses under a schema or
a choice are read into typed values; what does not fit is a row error, never a string in a typed column.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa

from batch_sdk.errors import OptionError, RowError, RowErrorKind
from batch_sdk.schema_types import typed_schema

_RAW_CHARS = 500
_REASON_CHARS = 300

Read = Callable[[str], Any]
"""Turns a response into its value, or raises; a pydantic model's own validators raise anything."""


class Constraint(NamedTuple):
    """What is asked of every response.

    Attributes:
        sampling: the engine's sampling parameters for it; may be empty.
        type: Arrow type of one response.
        read: None where responses stay the strings that they are.
    """

    sampling: dict[str, str]
    type: pa.DataType
    read: Read | None

    def value(self, text: str, finish_reason: str | None) -> Any | RowError:
        """Return the typed value of one response, or why it has none."""
        assert self.read is not None
        try:
            return self.read(text)
        except Exception as error:  # noqa: BLE001  # the boundary to the validators of a user's model
            cut = "max_new_tokens cut the response: " if finish_reason == "length" else ""
            reason = _shorten(_reason(error), _REASON_CHARS)
            return RowError(
                RowErrorKind.INVALID_OUTPUT, f"{cut}{reason}; the response: {_shorten(text, _RAW_CHARS)}"
            )


def check_constraints(
    response_format: Any, regex: str | None, ebnf: str | None, choice: Sequence[str] | None
) -> tuple[Any, tuple[str, ...] | None]:
    """Check a job's options, one of which may be given.

    Returns:
        `response_format` with a file replaced by the schema in it, and `choice` as a tuple.

    Raises:
        OptionError: more than one is given, or one has a value that makes no sense.
    """
    options = {"response_format": response_format, "regex": regex, "ebnf": ebnf, "choice": choice}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise OptionError(" together with ".join(f"{name}=" for name in given), "one of them at most")
    for name in ("regex", "ebnf"):
        value = options[name]
        if value is not None and (not isinstance(value, str) or not value):
            raise OptionError(f"{name}={value!r}", "a string that is not empty")
    if choice is not None:
        good = isinstance(choice, Sequence) and not isinstance(choice, str) and len(choice) > 0
        if not good or not all(isinstance(c, str) and c for c in choice) or len(set(choice)) != len(choice):
            raise OptionError(f"choice={choice!r}", "a list of different strings, none of them empty")
        choice = tuple(choice)
    if isinstance(response_format, str | os.PathLike):
        response_format = _load(Path(response_format))
    elif response_format is not None and not isinstance(response_format, Mapping):
        _check_model(response_format)
    return response_format, choice


def make_constraint(
    response_format: Any, regex: str | None, ebnf: str | None, choice: Sequence[str] | None
) -> Constraint:
    """Turn options that `check_constraints` accepted into a constraint.

    Raises:
        OptionError: the schema has no faithful Arrow type.
    """
    if choice is not None:
        # A schema rather than a regular expression: every grammar backend escapes JSON strings alike, and the
        # closing quote tells "yes" from "yes, but".
        return _json_constraint({"type": "string", "enum": list(choice)})
    if regex is not None:
        return Constraint({"regex": regex}, pa.string(), None)
    if ebnf is not None:
        return Constraint({"ebnf": ebnf}, pa.string(), None)
    if response_format is None:
        return Constraint({}, pa.string(), None)
    if isinstance(response_format, Mapping):
        return _json_constraint(response_format)
    return _model_constraint(response_format)


def _json_constraint(schema: Mapping[str, Any]) -> Constraint:
    typed = typed_schema(schema)

    def read(text: str) -> Any:
        return typed.read(json.loads(text, parse_constant=_no_constant))

    return Constraint({"json_schema": _dumped(schema)}, typed.type, read)


def _model_constraint(model: Any) -> Constraint:
    import pydantic

    try:
        accepted = model.model_json_schema()
        # What the model gives back may differ from what it takes: defaults filled in, decimals as strings.
        typed = typed_schema(model.model_json_schema(mode="serialization"), check=False)
    except pydantic.errors.PydanticUserError as error:
        raise OptionError(
            f"response_format={model.__name__} has no JSON schema: {str(error).splitlines()[0]}",
            "a model of JSON types",
        ) from error

    def read(text: str) -> Any:
        return typed.read(model.model_validate_json(text).model_dump(mode="json", by_alias=True))

    return Constraint({"json_schema": _dumped(accepted)}, typed.type, read)


def _dumped(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise OptionError(f"response_format is no JSON: {error}", "a JSON schema as a dict") from error


def _check_model(model: Any) -> None:
    try:
        import pydantic
    except ImportError:
        good = False
    else:
        good = isinstance(model, type) and issubclass(model, pydantic.BaseModel)
    if not good:
        raise OptionError(
            f"response_format={model!r}",
            "a pydantic model class, a JSON schema as a dict, or the path of a JSON schema file",
        )


def _load(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"response_format {str(path)!r}: {error}", "a readable JSON schema file") from error
    if not isinstance(schema, dict):
        raise OptionError(
            f"response_format {str(path)!r} holds a {type(schema).__name__}", "a JSON schema: an object"
        )
    return schema


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no valid JSON: {error}"
    # pydantic's own text has a line a problem and links; the first problem is what people need.
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(error, pydantic.ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        path = ".".join(str(part) for part in found[0]["loc"])
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{path + ': ' if path else ''}{found[0]['msg']}{more}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _shorten(text: str, chars: int) -> str:
    # A surrogate that Arrow cannot store must not come in by the message either.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= chars else f"{text[:chars]} [... {len(text) - chars:,} more characters]"
