"""Jinja2 templates over the columns of a table, in a sandbox.

A template is compiled once. What it reads is known from its syntax tree, so that a missing column is an error
before any engine starts, and so that only the needed columns are read at all.

A null behaves like an undefined value: `{% if x %}`, `{{ x or '' }}`, `{{ x | default('') }}` and `x is none`
work, while printing it, or passing it to a filter, is a null input, wherever in a column's lists and structs it is;
`tojson` alone writes it, as null. No prompt ever says "None" by accident.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batch_sdk.engines.base import Message, Prompt
from batch_sdk.errors import ColumnError, PromptError, RowError, RowErrorKind, nearest

# What a template over hostile values can raise: Jinja's own errors, and those of operators and methods it
# calls.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)
_NEEDS_LOADER = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_GLOBALS = ("range", "namespace")
_ROW = "row"
"""`row['any column']` reaches columns whose names are no identifiers."""


class NullInputError(jinja2.UndefinedError):
    """A null was printed or computed with."""


class NullValue(jinja2.StrictUndefined):
    """Stands for a null: false, equal to none, missing for `default`, and an error wherever a value is
    needed.

    Args:
        column: that is null.
        inside: whether the null is in one of its lists or structs.
    """

    __slots__ = ()

    def __init__(self, column: str, inside: bool = False) -> None:
        hint = f"column {column!r} has a null inside" if inside else f"column {column!r} is null"
        super().__init__(hint=hint, name=column, exc=NullInputError)

    def __repr__(self) -> str:
        # Printing a list or a struct prints what is in it like this.
        self._fail_with_undefined_error()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, NullValue)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)


class BytesValue(bytes):
    """Bytes of a binary column: they can do all that bytes can, but become text only by `decode`."""

    __slots__ = ()

    def __str__(self) -> str:
        raise TypeError("the template prints bytes; decode them: {{ column.decode() }}")

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)


def _value(value: Any, column: str, inside: bool = False) -> Any:
    """Return what a template gets for a column's value: in lists and structs, too, no null and no plain bytes."""
    if value is None:
        return NullValue(column, inside)
    kind = type(value)
    if kind is bytes:
        return BytesValue(value)
    if kind is dict:
        return {name: _value(item, column, inside=True) for name, item in value.items()}
    if kind is list or kind is tuple:  # a map is a list of tuples
        return kind([_value(item, column, inside=True) for item in value])
    return value


def _refuse_none(value: Any) -> Any:
    """Printing hook: what a template makes of values may be none, or bytes, too."""
    if value is None:
        raise NullInputError("the template prints a null")
    return str(BytesValue(value)) if isinstance(value, bytes) else value


def _as_json(value: Any) -> None:
    if not isinstance(value, NullValue):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _is_none(value: Any) -> bool:
    return value is None or isinstance(value, NullValue)


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_refuse_none, autoescape=False
    )
    env.globals = {name: env.globals[name] for name in _GLOBALS}
    env.tests["none"] = _is_none
    env.policies["json.dumps_kwargs"] = {**env.policies["json.dumps_kwargs"], "default": _as_json}
    return env


_ENV = _environment()


class Template:
    """One compiled template.

    Args:
        source: the template's text.
        name: what to call it in errors, e.g. "prompt".

    Raises:
        PromptError: a syntax error, an attempt to reach private attributes, or a tag that needs other files.
    """

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        try:
            tree = _ENV.parse(source)
            self._template = _ENV.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(
                f"the {name} template does not compile: line {error.lineno}: {error.message}", "valid Jinja2"
            ) from error
        except jinja2.TemplateError as error:
            raise PromptError(f"the {name} template does not compile: {error}", "valid Jinja2") from error
        self._refuse_unsafe(tree)
        # Globals are searched for too: a column may be called like one of them, and then it wins.
        bare = ImmutableSandboxedEnvironment()
        bare.globals = {}
        bare.tests["none"] = _is_none
        self._names = meta.find_undeclared_variables(bare.parse(source))
        self._globals = {name: _ENV.globals[name] for name in _GLOBALS if name in self._names}
        self._row_keys = _row_keys(tree)
        self._context: Any = None
        self.uses_row = _ROW in self._names

    def _refuse_unsafe(self, tree: nodes.Template) -> None:
        for node in tree.find_all(_NEEDS_LOADER):
            raise PromptError(
                f"the {self.name} template uses {type(node).__name__.lower()} in line {node.lineno}",
                "a template that stands alone",
            )
        # Jinja itself leaves unknown names inside an {% if %} for later.
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            known = _ENV.filters if isinstance(node, nodes.Filter) else _ENV.tests
            if node.name not in known:
                raise PromptError(
                    f"the {self.name} template uses the unknown {type(node).__name__.lower()} {node.name!r}"
                    f" in line {node.lineno}{nearest(node.name, known)}"
                )
        for name, line in _attribute_names(tree):
            if name.startswith("_"):
                raise PromptError(
                    f"the {self.name} template reaches for the private attribute {name!r} in line {line}",
                    "columns and their public attributes only",
                )

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that this template reads, in the table's order.

        Raises:
            ColumnError: one of them is not in `available`.
        """
        wanted = set(self._names)
        if _ROW in wanted and _ROW not in available:
            wanted.discard(_ROW)
            wanted |= set(available) if self._row_keys is None else self._row_keys
        for name in sorted(wanted - set(available)):
            if name in _GLOBALS and name in self._names:
                continue
            raise ColumnError(
                f"the {self.name} template needs column {name!r}, which the input lacks"
                f"{nearest(name, available)}",
                f"one of: {', '.join(available)}",
            )
        return tuple(name for name in available if name in wanted)

    def render(self, row: dict[str, Any]) -> str:
        """Fill in one row. Raises what templates raise; `PromptBuilder` turns that into row errors.

        Args:
            row: the values by name. The globals that the template uses are added to it.
        """
        for name, value in self._globals.items():
            row.setdefault(name, value)
        # Template.render copies the row and all globals for each call, and makes a context, which takes longer than
        # the rest. A context that no row has left anything in serves the next one.
        context, self._context = self._context, None
        if context is None:
            context = _ENV.context_class(_ENV, row, self._template.name, self._template.blocks)
        context.parent = row
        text: str = _ENV.concat(self._template.root_render_func(context))
        if not context.vars and not context.exported_vars:
            self._context = context
        return text


def _attribute_names(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """Yield the attributes and constant keys that the template names, with their lines."""
    for attribute in tree.find_all(nodes.Getattr):
        yield attribute.attr, attribute.lineno
    for item in tree.find_all(nodes.Getitem):
        # row['_id'] is a column, never an attribute.
        on_row = isinstance(item.node, nodes.Name) and item.node.name == _ROW
        if isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str) and not on_row:
            if item.arg.value.startswith("__"):
                yield item.arg.value, item.lineno


def _row_keys(tree: nodes.Template) -> set[str] | None:
    """Return the columns read as `row['x']`; None if `row` is used in any other way, so that all may be
    read."""
    keys: set[str] = set()
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.node, nodes.Name) and item.node.name == _ROW:
            if not isinstance(item.arg, nodes.Const) or not isinstance(item.arg.value, str):
                return None
            keys.add(item.arg.value)
    uses = sum(name.name == _ROW for name in tree.find_all(nodes.Name))
    indexed = sum(
        isinstance(item.node, nodes.Name) and item.node.name == _ROW for item in tree.find_all(nodes.Getitem)
    )
    return keys if uses == indexed else None


class RowTemplates:
    """Templates that are filled in from the same row.

    Raises:
        ColumnError: see `Template.columns`.
    """

    def __init__(self, templates: Sequence[Template], available: Sequence[str]) -> None:
        self._templates = templates
        used = {name for template in templates for name in template.columns(available)}
        self.columns = tuple(name for name in available if name in used)
        self._with_row = _ROW not in available and any(template.uses_row for template in templates)

    def render(self, row: dict[str, Any]) -> list[str] | RowError:
        """Return the texts in order, or why there are none.

        Args:
            row: the values of `self.columns`; nulls as None. Changed in place.
        """
        for name, value in row.items():
            if type(value) is not str:
                row[name] = _value(value, name)
        if self._with_row:
            row[_ROW] = dict(row)
        try:
            texts = [template.render(row) for template in self._templates]
            for text in texts:
                text.encode("utf-8")  # half of a surrogate pair would stop the tokenizer, for all rows
            return texts
        except NullInputError as error:
            return RowError(RowErrorKind.NULL_INPUT, str(error))
        except _RENDER_ERRORS as error:
            return RowError(RowErrorKind.PROMPT_ERROR, f"{type(error).__name__}: {error}")


class PromptBuilder:
    """Turns rows into prompts.

    Args:
        prompt: template of the user's text.
        system: template of the system message, or None. Only with `chat`.
        available: the input's columns.

    Raises:
        PromptError, ColumnError: see `Template`.
    """

    def __init__(self, prompt: str, system: str | None, available: Sequence[str]) -> None:
        templates = [Template(prompt, "prompt")]
        if system is not None:
            templates.append(Template(system, "system"))
        self._templates = RowTemplates(templates, available)
        self.columns = self._templates.columns

    def build(self, row: dict[str, Any], chat: bool) -> Prompt | RowError:
        """Return the row's prompt, or why it has none.

        Args:
            row: the values of `self.columns`; nulls as None. Changed in place.
            chat: True for messages, False for plain text.
        """
        texts = self._templates.render(row)
        if isinstance(texts, RowError):
            return texts
        if not chat:
            return texts[0]
        messages: list[Message] = [{"role": "system", "content": text} for text in texts[1:]]
        messages.append({"role": "user", "content": texts[0]})
        return messages
