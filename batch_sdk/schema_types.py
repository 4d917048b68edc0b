"""JSON schemas as Arrow types, and parsed JSON as values of those types.

A schema that has no faithful Arrow type is refused as a whole, with the place in it: free-form objects,
recursion, unions of different types. Every other value either becomes a value of the column's type or is an
`InvalidValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa

from batch_sdk.errors import OptionError

Convert = Callable[[Any, str], Any]
"""Takes a parsed JSON value and its path, e.g. `$.items[2]`, and returns what Arrow takes."""


class InvalidValueError(ValueError):
    """A value does not fit its schema."""


class TypedSchema(NamedTuple):
    """A JSON schema's Arrow type, whether null is a value of it, and the conversion into it."""

    type: pa.DataType
    nullable: bool
    convert: Convert

    def read(self, value: Any, path: str = "$") -> Any:
        """Return `value` as Arrow takes it. Raises `InvalidValueError` where it does not fit."""
        if value is not None:
            return self.convert(value, path)
        if not self.nullable:
            raise InvalidValueError(f"{path} is null")
        return None


_ANNOTATIONS = frozenset(
    "title description default examples format deprecated readOnly writeOnly $schema $id $comment $defs "
    "definitions discriminator contentEncoding contentMediaType".split()
)
_CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "minLength": lambda value, bound: len(value) >= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, bound: re.search(bound, value) is not None,
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxItems": lambda value, bound: len(value) <= bound,
    "uniqueItems": lambda value, bound: not bound or all(v not in value[:i] for i, v in enumerate(value)),
}
_NUMBER_KEYWORDS = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_KEYWORDS: dict[str, tuple[str, ...]] = {
    "string": ("type", "minLength", "maxLength", "pattern"),
    "integer": _NUMBER_KEYWORDS,
    "number": _NUMBER_KEYWORDS,
    "boolean": ("type",),
    "array": ("type", "items", "minItems", "maxItems", "uniqueItems"),
    "object": ("type", "properties", "required", "additionalProperties"),
}
"""Type -> the keywords that mean something for it and are checked."""


def typed_schema(schema: Any, *, check: bool = True) -> TypedSchema:
    """Find a schema's Arrow type.

    Strings and string enums become string, integers int64, numbers float64, booleans bool, arrays list,
    objects struct. A property that is not required, or that may be null, is a nullable field.

    Args:
        schema: a JSON schema as parsed JSON, with all that it refers to inside it.
        check: whether bounds, lengths and patterns are checked too, and keywords that cannot be are refused;
            False where somebody else validates.

    Raises:
        OptionError: no Arrow type is faithful to the schema; says where and what to do.
    """
    return _Compiler(schema, check).compile(schema, "#", ())


class _Compiler:
    def __init__(self, root: Any, check: bool) -> None:
        self._root = root
        self._check = check

    def compile(self, schema: Any, where: str, refs: tuple[str, ...]) -> TypedSchema:
        schema, refs = self._resolved(schema, where, refs)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                self._refuse_others(schema, where, (union,))
                return self._union(schema[union], f"{where}/{union}", refs)
        if "const" in schema or "enum" in schema:
            self._refuse_others(schema, where, ("type", "const" if "const" in schema else "enum"))
        if "const" in schema:
            return self._enum([schema["const"]], f"{where}/const")
        if "enum" in schema:
            return self._enum(schema["enum"], f"{where}/enum")
        kinds = schema.get("type", "object" if "properties" in schema else None)
        names = kinds if isinstance(kinds, list) else [kinds]
        rest = [name for name in names if name != "null"]
        if len(rest) != 1:
            _refuse(where, f"type {kinds!r}", "give it one type, or one type and null")
        found = self._of_type(rest[0], schema, where, refs)
        return found._replace(nullable="null" in names)

    def _resolved(self, schema: Any, where: str, refs: tuple[str, ...]) -> tuple[dict[str, Any], tuple]:
        while isinstance(schema, Mapping) and ("$ref" in schema or "allOf" in schema):
            if "$ref" in schema:
                ref = schema["$ref"]
                if ref in refs:
                    _refuse(where, f"a recursive $ref {ref!r}", "nest to a fixed depth")
                refs = (*refs, ref)
                target = self._target(ref, where)
            elif isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1:
                target = schema["allOf"][0]
            else:
                _refuse(where, "allOf", "write the parts as one schema")
            own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
            schema = {**target, **own} if isinstance(target, Mapping) else target
        if not isinstance(schema, Mapping):
            _refuse(where, repr(schema), "give it a schema with a type")
        return dict(schema), refs

    def _target(self, ref: Any, where: str) -> Any:
        found = self._root
        if not isinstance(ref, str) or not ref.startswith("#"):
            _refuse(where, f"$ref {ref!r}", "refer to #/$defs/... in the same schema")
        for part in ref[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                _refuse(where, f"$ref {ref!r}, which is not there", "define it under $defs")
            found = found[part]
        return found

    def _refuse_others(self, schema: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
        if not self._check:
            return
        for name, value in schema.items():
            if name not in _ANNOTATIONS and name not in known:
                _refuse(where, f"the keyword {name!r}, which is not checked there", "leave it out")
            if name == "pattern":
                try:
                    re.compile(value)
                except (re.error, TypeError) as error:
                    _refuse(where, f"pattern {value!r}: {error}", "a pattern that Python's re takes")
            elif name in _CHECKS and not isinstance(value, int | float):
                _refuse(where, f"{name}={value!r}", "give it a number")

    def _union(self, members: Any, where: str, refs: tuple[str, ...]) -> TypedSchema:
        if not isinstance(members, list) or not members:
            _refuse(where, repr(members), "give it a list of schemas")
        some = [(i, m) for i, m in enumerate(members) if not _only_null(m)]
        found = [self.compile(member, f"{where}/{index}", refs) for index, member in some]
        if len({str(one.type) for one in found}) != 1:
            what = " | ".join(str(one.type) for one in found) or "nothing but null"
            _refuse(where, f"a union of {what}", "one type besides null, e.g. an object with optional fields")
        nullable = len(some) < len(members) or any(one.nullable for one in found)
        return TypedSchema(found[0].type, nullable, _first_of([one.convert for one in found]))

    def _enum(self, values: Any, where: str) -> TypedSchema:
        if not isinstance(values, list):
            _refuse(where, repr(values), "give it a list of values")
        some = [value for value in values if value is not None]
        kinds = {type(value) for value in some}
        if len(kinds) != 1 or not kinds <= set(_SCALARS_OF):
            _refuse(where, f"the values {values!r}", "strings only, or numbers of one kind only")
        kind, convert = _SCALARS[_SCALARS_OF[kinds.pop()]]
        return TypedSchema(kind, len(some) < len(values), _one_of(some, convert))

    def _of_type(self, name: Any, schema: dict, where: str, refs: tuple[str, ...]) -> TypedSchema:
        if name == "array":
            found = self._array(schema, where, refs)
        elif name == "object":
            found = self._object(schema, where, refs)
        elif name in _SCALARS:
            found = TypedSchema(_SCALARS[name][0], False, _SCALARS[name][1])
        else:
            _refuse(where, f"type {name!r}" if name else "no type", "give it a type")
        self._refuse_others(schema, where, _KEYWORDS[name])
        bounds = [(k, v) for k, v in schema.items() if k in _CHECKS] if self._check else []
        return found._replace(convert=_bounded(found.convert, bounds)) if bounds else found

    def _array(self, schema: dict, where: str, refs: tuple[str, ...]) -> TypedSchema:
        if "prefixItems" in schema or not isinstance(schema.get("items"), Mapping):
            _refuse(
                where, "an array without one schema for all its items", "give it items, or use named fields"
            )
        item = self.compile(schema["items"], f"{where}/items", refs)

        def convert(value: Any, path: str) -> list[Any]:
            if type(value) is not list:
                raise _wrong(value, path, "an array")
            return [item.read(one, f"{path}[{index}]") for index, one in enumerate(value)]

        return TypedSchema(pa.list_(pa.field("item", item.type, nullable=item.nullable)), False, convert)

    def _object(self, schema: dict, where: str, refs: tuple[str, ...]) -> TypedSchema:
        properties, required = schema.get("properties"), schema.get("required", [])
        if schema.get("additionalProperties", False) is not False or "patternProperties" in schema:
            _refuse(
                where, "an object with free-form keys", "use named properties, or an array of key and value"
            )
        if not isinstance(properties, Mapping) or not properties:
            _refuse(where, "an object without properties", "name its properties")
        for name in required:
            if name not in properties:
                _refuse(where, f"the required property {name!r}, which is not defined", "define it")
        nodes = {n: self.compile(p, f"{where}/properties/{n}", refs) for n, p in properties.items()}
        fields = [pa.field(n, t.type, nullable=t.nullable or n not in required) for n, t in nodes.items()]
        return TypedSchema(pa.struct(fields), False, _struct(nodes, frozenset(required)))


def _refuse(where: str, what: str, remedy: str) -> NoReturn:
    raise OptionError(
        f"the response schema has {what} at {where}", "a schema with a faithful Arrow type", remedy
    )


def _only_null(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    return schema.get("type") == "null" or ("const" in schema and schema["const"] is None)


def _wrong(value: Any, path: str, wanted: str) -> InvalidValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return InvalidValueError(f"{path} is {shown}, wanted {wanted}")


def _struct(nodes: dict[str, TypedSchema], required: frozenset[str]) -> Convert:
    def convert(value: Any, path: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise _wrong(value, path, "an object")
        for name in value:
            if name not in nodes:
                raise InvalidValueError(f"{path} has the unknown key {name!r}")
        missing = required - value.keys()
        if missing:
            raise InvalidValueError(f"{path} lacks {min(missing)!r}")
        return {
            name: node.read(value[name], f"{path}.{name}") if name in value else None
            for name, node in nodes.items()
        }

    return convert


def _first_of(converts: list[Convert]) -> Convert:
    if len(converts) == 1:
        return converts[0]

    def convert(value: Any, path: str) -> Any:
        for one in converts[:-1]:
            try:
                return one(value, path)
            except InvalidValueError:
                continue
        return converts[-1](value, path)

    return convert


def _one_of(values: list[Any], scalar: Convert) -> Convert:
    def convert(value: Any, path: str) -> Any:
        found = scalar(value, path)
        if found not in values:
            raise _wrong(value, path, f"one of {values!r}")
        return found

    return convert


def _bounded(inner: Convert, bounds: list[tuple[str, Any]]) -> Convert:
    def convert(value: Any, path: str) -> Any:
        found = inner(value, path)
        for name, bound in bounds:
            if not _CHECKS[name](found, bound):
                raise _wrong(value, path, f"{name} {bound!r}")
        return found

    return convert


def _string(value: Any, path: str) -> str:
    if type(value) is not str:
        raise _wrong(value, path, "a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair; UTF-8, and so Arrow, cannot.
        raise InvalidValueError(f"{path} is no valid Unicode: {error.reason}") from error
    return value


def _integer(value: Any, path: str) -> int:
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not -(2**63) <= value < 2**63:
        raise _wrong(value, path, "an integer of 64 bits")
    return int(value)


def _number(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise _wrong(value, path, "a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidValueError(f"{path} is over the range of float64") from error


def _boolean(value: Any, path: str) -> bool:
    if type(value) is not bool:
        raise _wrong(value, path, "true or false")
    return value


_SCALARS: dict[str, tuple[pa.DataType, Convert]] = {
    "string": (pa.string(), _string),
    "integer": (pa.int64(), _integer),
    "number": (pa.float64(), _number),
    "boolean": (pa.bool_(), _boolean),
}
_SCALARS_OF: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
