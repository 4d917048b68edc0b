"""Structured output: typed values or typed errors, never strings."""

from __future__ import annotations

import enum
import json
import random
import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_sdk
from batch_sdk.engines.base import GenerateResult
from batch_sdk.engines.dummy_json import draw_json
from batch_sdk.errors import EngineError, OptionError, RowError
from batch_sdk.schema_types import InvalidValueError, typed_schema
from batch_sdk.structured import make_constraint


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Part(pydantic.BaseModel):
    name: str
    sizes: list[int]
    note: str | None = None


class Ticket(pydantic.BaseModel):
    title: str
    level: Level
    kind: Literal["bug", "wish"] | None
    score: float
    parts: list[Part]
    grid: list[list[float]] = []
    open: bool
    retries: Annotated[int, pydantic.Field(ge=0, le=9)] = 3
    main: Part | None = None


def kinds(out: pa.Table) -> list[str | None]:
    return [error and error["kind"] for error in out.column("error").to_pylist()]


def struct_of(schema: Any) -> pa.DataType:
    return typed_schema(schema).type


def required(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties)}


def test_a_thousand_rows_against_a_pydantic_model(jobs, tmp_path):
    table = pa.table({"text": [f"row {i} 世界" if i % 97 else None for i in range(1000)]})
    out, summary = jobs.generate(
        table,
        response_format=Ticket,
        max_new_tokens=30,
        window_rows=77,
        batch_rows=130,
        options={"broken_json": 0.2, "shuffle": True},
        return_summary=True,
    )
    kind = out.schema.field("response").type
    assert pa.types.is_struct(kind)
    assert kind.field("level").type == kind.field("kind").type == pa.string()
    part = kind.field("parts").type.value_type
    assert part.field("sizes").type.value_type == pa.int64()
    assert (kind.field("title").nullable, kind.field("kind").nullable) == (False, True)
    assert (part.field("name").nullable, part.field("note").nullable) == (False, True)
    assert kind.field("grid").type.value_type.value_type == pa.float64()
    good = 0
    for row, error in zip(out.column("response").to_pylist(), kinds(out), strict=True):
        assert (row is None) == (error in ("invalid_output", "null_input"))
        if row is not None:
            Ticket.model_validate(row)
            assert row["retries"] is not None, "the default is filled in"
            good += 1
    assert summary.errors["null_input"] == 11
    assert 100 < summary.errors["invalid_output"] < 600
    assert good + sum(summary.errors.values()) == 1000
    cut = [e for e in out.column("error").to_pylist() if e and "max_new_tokens cut" in e["message"]]
    assert cut, "some of the longer answers do not fit 30 tokens"
    out.column("response").chunk(0).validate(full=True)
    pq.write_table(out, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(out)


def test_without_broken_answers_all_rows_are_good_and_repeatable(jobs):
    table = pa.table({"text": [f"row {i}" for i in range(50)]})
    runs = [jobs.generate(table, response_format=Ticket, max_new_tokens=5000) for _ in range(2)]
    assert kinds(runs[0]) == [None] * 50
    assert runs[0].equals(runs[1])
    assert len({json.dumps(row) for row in runs[0].column("response").to_pylist()}) == 50


@pytest.mark.parametrize("rows", [0, 1])
def test_small_tables(jobs, rows):
    out = jobs.generate(pa.table({"text": pa.array(["x"] * rows, pa.string())}), response_format=Ticket)
    assert out.num_rows == rows
    assert pa.types.is_struct(out.schema.field("response").type)


def test_polars_gets_structs(jobs):
    import polars as pl

    out = jobs.generate(
        pl.DataFrame({"text": ["a", "b", None]}), response_format=Part, options={"broken_json": 0}
    )
    assert out.schema["response"] == pl.Struct(
        {"name": pl.String, "sizes": pl.List(pl.Int64), "note": pl.String}
    )
    assert out["response"].is_null().to_list() == [False, False, True]


def test_schema_as_dict_and_as_file(jobs, tmp_path):
    schema = required({"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}})
    path = tmp_path / "s.json"
    path.write_text(json.dumps(schema))
    table = pa.table({"text": ["x", "y", "z"]})
    out = jobs.generate(table, response_format=schema)
    assert out.schema.field("response").type == struct_of(schema)
    assert kinds(out) == [None] * 3
    for form in (path, str(path)):
        assert jobs.generate(table, response_format=form).equals(out)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string", "format": "date-time"}, pa.string()),
        ({"type": "number"}, pa.float64()),
        ({"type": ["boolean", "null"]}, pa.bool_()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"const": 3}, pa.int64()),
        (
            {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}], "$defs": {"x": {"type": "integer"}}},
            pa.int64(),
        ),
        (
            {"allOf": [{"$ref": "#/definitions/a~1b"}], "definitions": {"a/b": {"type": "string"}}},
            pa.string(),
        ),
        ({"oneOf": [{"const": "a"}, {"enum": ["b"]}]}, pa.string()),
        (
            {"properties": {"a": {"type": "integer"}}},
            pa.struct([pa.field("a", pa.int64(), nullable=True)]),
        ),
    ],
)
def test_types(schema, kind):
    assert struct_of(schema) == kind


RECURSIVE = {"$ref": "#/$defs/n", "$defs": {"n": required({"next": {"anyOf": [{"$ref": "#/$defs/n"}]}})}}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        (required({"m": {"type": "object", "additionalProperties": {"type": "integer"}}}), "#/properties/m"),
        (required({"m": {"type": "object"}}), "without properties at #/properties/m"),
        ({**required({"m": {"type": "string"}}), "additionalProperties": True}, "free-form keys at #"),
        (RECURSIVE, "recursive $ref '#/$defs/n' at #/properties/next/anyOf/0"),
        (required({"m": {}}), "no type at #/properties/m"),
        (required({"m": True}), "True at #/properties/m"),
        (required({"m": {"type": "array"}}), "#/properties/m"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}, "#"),
        ({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}, "#/items/anyOf"),
        ({"type": ["string", "integer"]}, "#"),
        ({"enum": ["a", 1]}, "#/enum"),
        ({"enum": [True, 1]}, "#/enum"),
        ({"enum": []}, "#/enum"),
        ({"type": "null"}, "#"),
        ({"type": "strin"}, "'strin'"),
        ({"$ref": "#/$defs/none"}, "which is not there"),
        ({"$ref": "other.json"}, "other.json"),
        ({"allOf": [{"type": "string"}, {"type": "string"}]}, "allOf"),
        ({"type": "string", "not": {"const": "x"}}, "'not'"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "integer", "minLength": 3}, "'minLength', which is not checked there at #"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "maxLength": 3}, "'maxLength'"),
        ({"enum": ["a"], "maxLength": 3}, "'maxLength'"),
        ({**required({"m": {"type": "string"}}), "minProperties": 1}, "'minProperties'"),
        ({"type": "string", "minLength": "1"}, "minLength"),
        ({**required({"m": {"type": "string"}}), "required": ["n"]}, "'n'"),
    ],
)
def test_schemas_without_a_faithful_type_are_refused_before_the_start(jobs, schema, where):
    with pytest.raises(OptionError) as caught:
        jobs.generate(pa.table({"text": ["x"]}), response_format=schema)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert jobs.engine.answered == 0


class Node(pydantic.BaseModel):
    next: Node | None = None


class Free(pydantic.BaseModel):
    anything: dict[str, Any]


@pytest.mark.parametrize(("model", "says"), [(Node, "recursive"), (Free, "#/properties/anything")])
def test_models_without_a_faithful_type(jobs, model, says):
    with pytest.raises(OptionError, match=says):
        jobs.generate(pa.table({"text": ["x"]}), response_format=model)


GOOD = {"s": "é", "i": 2, "f": 1, "b": True, "l": [1.5, 2], "e": "x", "o": None}
FULL = required(
    {
        "s": {"type": "string", "maxLength": 3, "pattern": "^[^q]"},
        "i": {"type": "integer", "minimum": 0, "exclusiveMaximum": 10},
        "f": {"type": "number", "exclusiveMinimum": 0, "maximum": 9},
        "b": {"type": "boolean"},
        "l": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 1,
            "maxItems": 2,
            "uniqueItems": True,
        },
        "e": {"enum": ["x", "y"]},
        "o": {"type": ["string", "null"]},
    }
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"s": 1}, "$.s is 1, wanted a string"),
        ({"s": None}, "$.s is null"),
        ({"s": "four"}, "maxLength 3"),
        ({"s": "q"}, "pattern"),
        ({"s": "\ud83d"}, "$.s is no valid Unicode"),
        ({"i": True}, "$.i is True"),
        ({"i": 1.5}, "an integer"),
        ({"i": "1"}, "an integer"),
        ({"i": -1}, "minimum 0"),
        ({"i": 10}, "exclusiveMaximum 10"),
        ({"i": 2**63}, "64 bits"),
        ({"f": "1"}, "a number"),
        ({"f": 0}, "exclusiveMinimum"),
        ({"f": 10**400}, "range of float64"),
        ({"b": 0}, "true or false"),
        ({"l": {}}, "an array"),
        ({"l": []}, "minItems"),
        ({"l": [1, 2, 3]}, "maxItems"),
        ({"l": [1, 1.0]}, "uniqueItems"),
        ({"l": [1, None]}, "$.l[1] is null"),
        ({"e": "z"}, "one of ['x', 'y']"),
        ({"o": 3}, "$.o is 3"),
        ({"new": 3}, "unknown key 'new'"),
    ],
)
def test_values_that_do_not_fit(change, says):
    typed = typed_schema(FULL)
    assert typed.read(GOOD) == GOOD
    assert type(typed.read(GOOD)["f"]) is float
    assert typed.read({**GOOD, "i": 3.0})["i"] == 3
    with pytest.raises(InvalidValueError) as caught:
        typed.read({**GOOD, **change})
    assert says in str(caught.value)
    with pytest.raises(InvalidValueError, match="lacks 'b'"):
        typed.read({name: value for name, value in GOOD.items() if name != "b"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "NaN",
        '"\\ud800"',
        "{" * 100_000,
        "[" * 100_000,
        "1" * 5000,
        '{"name": NaN}',
        "\x00",
        "x" * 9999,
    ],
)
@pytest.mark.parametrize("form", [Part, Part.model_json_schema()], ids=["model", "dict"])
def test_hostile_responses_are_row_errors_of_bounded_length(form, text):
    constraint = make_constraint(form, None, None, None)
    for reason in ("stop", "length"):
        error = constraint.value(text, reason)
        assert isinstance(error, RowError)
        assert error.kind == "invalid_output"
        assert ("max_new_tokens cut" in error.message) == (reason == "length")
        assert len(error.message) < 1000
        assert text[:100] in error.message
        pa.array([error.message])


class Odd(Exception):
    def errors(self):
        return "not pydantic's"


@pytest.mark.parametrize(
    "cause", [KeyError("x"), RuntimeError("boom"), re.error("bad"), Odd("x"), NotImplementedError()]
)
def test_what_validators_raise_is_a_row_error(jobs, cause):
    class Picky(pydantic.BaseModel):
        name: str

        @pydantic.field_validator("name")
        @classmethod
        def known(cls, value: str) -> str:
            raise cause

    out = jobs.generate(pa.table({"text": ["x"]}), response_format=Picky)
    assert kinds(out) == ["invalid_output"]
    assert type(cause).__name__ in out.column("error")[0].as_py()["message"]


def test_the_column_has_what_the_model_makes_of_a_response():
    class Bill(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(populate_by_name=True)
        total: Decimal
        when: datetime
        currency: str = "EUR"
        tags: set[str] = pydantic.Field(default=set(), alias="Tags")

    constraint = make_constraint(Bill, None, None, None)
    value = constraint.value('{"total": 1.50, "when": "2024-05-17T10:00:00Z"}', "stop")
    assert value == {"total": "1.5", "when": "2024-05-17T10:00:00Z", "currency": "EUR", "Tags": []}
    assert constraint.type.field("total").type == pa.string()
    pa.array([value], constraint.type)


SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "minimum": -5, "maximum": 5},
        {"type": "number"},
        {"type": "integer", "exclusiveMaximum": -7},
        {"type": "number", "exclusiveMinimum": 7},
        {"type": "string", "minLength": 30, "maxLength": 31},
        {"type": "boolean"},
        {"enum": ["a", "b"]},
        {"type": ["string", "null"]},
        {"const": 4},
        {"anyOf": [{"type": "null"}, {"type": "number"}]},
    ]
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(lambda item: {"type": "array", "items": item}, inner),
        st.builds(
            lambda parts, some: {"type": "object", "properties": parts, "required": list(parts)[:some]},
            st.dictionaries(st.text(min_size=1, max_size=3), inner, min_size=1, max_size=3),
            st.integers(0, 3),
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_what_is_drawn_from_any_schema_becomes_an_arrow_value(schema, seed):
    constraint = make_constraint(schema, None, None, None)
    text = draw_json(json.dumps(schema), random.Random(seed), ["one", "zwei"])
    value = constraint.value(text, "stop")
    assert not isinstance(value, RowError), value
    array = pa.array([value, None], constraint.type)
    array.validate(full=True)
    kept = json.loads(text)
    if not isinstance(kept, dict | list):
        assert array[0].as_py() == kept


CHOICES = ["yes", 'say "no"', "a\\b", "x|y", "Grüße 🌍", "line\nbreak", "yes, but", "null"]


def test_choice_is_an_enum_and_the_column_a_string(jobs):
    table = pa.table({"text": [f"row {i}" for i in range(60)]})
    out = jobs.generate(table, choice=CHOICES)
    assert out.schema.field("response").type == pa.string()
    assert set(out.column("response").to_pylist()) == set(CHOICES)
    out = jobs.generate(table, choice=CHOICES, options={"broken_json": 1.0})
    assert kinds(out) == ["invalid_output"] * 60


def test_constraints_reach_the_engine_under_sglangs_names(jobs, monkeypatch):
    seen = []
    submit = batch_sdk.engines.dummy.DummyEngine.submit
    monkeypatch.setattr(
        batch_sdk.engines.dummy.DummyEngine,
        "submit",
        lambda self, requests: (seen.extend(r.sampling for r in requests), submit(self, requests)),
    )
    table = pa.table({"text": ["x"]})
    for options in (
        {"regex": "[ab]+"},
        {"ebnf": 'root ::= "a"'},
        {"choice": ["ä"]},
        {"response_format": Part},
        {},
    ):
        jobs.generate(table, **options)
    names = {"regex", "ebnf", "json_schema"}
    assert [sorted(names & set(sampling)) for sampling in seen] == [
        ["regex"],
        ["ebnf"],
        ["json_schema"],
        ["json_schema"],
        [],
    ]
    assert json.loads(seen[2]["json_schema"]) == {"type": "string", "enum": ["ä"]}
    assert json.loads(seen[3]["json_schema"]) == Part.model_json_schema()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"regex": "a", "ebnf": "b"}, "regex= together with ebnf="),
        ({"choice": ["a"], "response_format": Part}, "response_format= together with choice="),
        ({"regex": ""}, "regex=''"),
        ({"ebnf": 3}, "ebnf=3"),
        ({"choice": []}, "choice=[]"),
        ({"choice": "yes"}, "choice='yes'"),
        ({"choice": ["a", "a"]}, "different strings"),
        ({"choice": ["a", ""]}, "different strings"),
        ({"response_format": 3}, "response_format=3"),
        ({"response_format": dict}, "pydantic model class"),
        ({"response_format": Part(name="x", sizes=[])}, "pydantic model class"),
        ({"response_format": "nowhere.json"}, "nowhere.json"),
        ({"response_format": {"type": "string", "default": {1, 2}}}, "no JSON"),
        ({"response_format": {}}, "no type at #"),
    ],
)
def test_nonsense_is_one_clear_line(bad, says):
    with pytest.raises(OptionError) as caught:
        batch_sdk.generate(pa.table({"text": ["x"]}), prompt="{{ text }}", model="m", engine="dummy", **bad)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_schema_files_that_hold_no_schema(tmp_path, content):
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"s\.json"):
        batch_sdk.GenerateJob(model="m", prompt="p", response_format=path)


def test_an_engine_that_returns_less_than_asked_is_broken(jobs, monkeypatch):
    monkeypatch.setattr(
        batch_sdk.engines.dummy.DummyEngine,
        "_generate",
        lambda self, request: GenerateResult(request.position, "text", 1, 1, "stop"),
    )
    for options, says in (({"n": 2}, "several samples"), ({"logprobs": True}, "log-probabilities")):
        with pytest.raises(EngineError, match=says):
            jobs.generate(pa.table({"text": ["x"]}), **options)
