"""Templates: what they may read, what they may not do, and what a null is to them."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from batch_sdk.errors import ColumnError, PromptError, RowError
from batch_sdk.prompts import PromptBuilder


def build(prompt: str, row: dict, chat: bool = False, system: str | None = None):
    return PromptBuilder(prompt, system, list(row)).build(dict(row), chat)


def test_needed_columns_only():
    names = ["a", "b", "c", "my col", "range"]
    assert PromptBuilder("{{ a }} {% for x in c %}{{ x }}{% endfor %}", None, names).columns == ("a", "c")
    assert PromptBuilder("{{ a }}", "You know {{ b }}", names).columns == ("a", "b")
    assert PromptBuilder("{{ row['my col'] }}", None, names).columns == ("my col",)
    assert PromptBuilder("{{ row | length }}", None, names).columns == tuple(names)
    assert PromptBuilder("{% for i in range %}{% endfor %}", None, names).columns == ("range",)
    assert PromptBuilder("{% for i in range(3) %}x{% endfor %}", None, ["a"]).columns == ()
    assert PromptBuilder("{% set t = a %}{{ t }}", None, names).columns == ("a",)
    assert PromptBuilder("always the same", None, names).columns == ()


def test_missing_column_names_the_nearest_before_anything_starts(jobs):
    with pytest.raises(ColumnError) as caught:
        jobs.generate(pa.table({"body": ["x"], "title": ["y"]}), "{{ bdy }}")
    text = str(caught.value)
    assert "'bdy'" in text
    assert "did you mean 'body'" in text
    assert "body, title" in text
    assert jobs.engine.answered == 0
    with pytest.raises(ColumnError, match="system template needs column 'x'"):
        PromptBuilder("hi", "{{ x }}", ["a"])
    with pytest.raises(ColumnError, match="'no col'"):
        PromptBuilder("{{ row['no col'] }}", None, ["a"])


def test_columns_with_awkward_names():
    assert build("{{ row['my col'] }}!", {"my col": "v"}) == "v!"
    assert build("{{ row }}", {"row": "a column called row"}) == "a column called row"
    assert build("{{ range }}", {"range": "wins over the global"}) == "wins over the global"


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ a['__class__'] }}",
        "{{ (a | attr('x')).__init__ }}",
        "{{ range.__globals__ }}",
        "{{ a._private }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends a %}",
        "{{ a ",
        "{% for x in a %}",
        "{{ a | nosuchfilter }}",
        "{% if a is nosuchtest %}{% endif %}",
    ],
)
def test_escapes_and_nonsense_are_refused_on_compiling(prompt):
    with pytest.raises(PromptError):
        PromptBuilder(prompt, None, ["a"])


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ a | attr('__class__') }}",
        "{{ a[b] }}",
        "{{ '{0.__class__.__mro__}'.format(a) }}",
        "{{ a | attr(b) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_escapes_at_run_time_end_the_row(prompt):
    result = build(prompt, {"a": "text", "b": "__class__"})
    assert isinstance(result, RowError), result
    assert result.kind == "prompt_error"


@pytest.mark.parametrize(
    "prompt", ["{{ '\\ud83d' }}", "{{ a.encode()[:1].decode('utf-8', 'surrogateescape') }}"]
)
def test_text_that_is_no_unicode_ends_the_row(prompt):
    result = build(prompt, {"a": "ü"})
    assert isinstance(result, RowError)
    assert result.kind == "prompt_error"
    assert "surrogates" in result.message


def test_templates_cannot_change_a_row():
    result = build("{{ a.append(1) }}{{ a }}", {"a": [0]})
    assert isinstance(result, RowError)
    assert result.kind == "prompt_error"


def test_what_a_null_is():
    row = {"a": None, "b": "x"}
    for prompt in (
        "{{ a }}",
        "{{ a | upper }}",
        "{{ a ~ b }}",
        "{{ a + b }}",
        "{{ a.x }}",
        "{% for i in a %}{% endfor %}",
        "{{ a | length }}",
    ):
        result = build(prompt, row)
        assert isinstance(result, RowError), prompt
        assert result.kind == "null_input", prompt
        assert "'a'" in result.message
    assert build("{{ a or 'none' }}", row) == "none"
    assert build("{{ a | default('none') }}", row) == "none"
    assert build("{% if a %}yes{% else %}no{% endif %}", row) == "no"
    assert build("{% if a is none %}{{ b }}{% endif %}", row) == "x"
    assert build("{% if a == none %}{{ b }}{% endif %}", row) == "x"
    assert build("{{ a | tojson }}", row) == "null"
    assert build("{{ row | tojson }}", row) == '{"a": null, "b": "x"}'


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ a.x }}",
        "{{ a.x | upper }}",
        "{{ 'Name: ' ~ a.x }}",
        "{{ '%s' | format(a.x) }}",
        "{{ a }}",
        "{{ a.tags }}",
        "{{ a.tags | join(', ') }}",
        "{{ a.tags | map('upper') | join }}",
        "{% for tag in a.tags %}{{ tag | trim }}{% endfor %}",
        "{{ a.pairs }}",
        "{{ row }}",
        "{{ a | string }}",
    ],
)
def test_a_null_inside_is_a_null(prompt):
    result = build(prompt, {"a": {"x": None, "tags": ["p", None], "pairs": [("k", None)]}})
    assert isinstance(result, RowError)
    assert result.kind == "null_input"
    assert "column 'a' has a null inside" in result.message


def test_a_null_inside_can_be_asked_for():
    def row():
        return {"a": {"x": None, "y": 1, "tags": ["p", None, "q"]}}

    assert build("{{ a.y }} {{ a.tags[0] }} {{ a.tags | length }}", row()) == "1 p 3"
    assert build("{{ a.x or 'none' }} {{ a.x | default('none') }}", row()) == "none none"
    assert build("{{ a.tags | select | join('+') }}", row()) == "p+q"
    assert build("{{ a.tags | reject('none') | join('+') }}", row()) == "p+q"
    assert build("{% for tag in a.tags if tag is not none %}{{ tag }}{% endfor %}", row()) == "pq"
    assert build("{{ 'yes' if none in a.tags else 'no' }}", row()) == "yes"
    assert build("{{ a | tojson }}", row()) == '{"tags": ["p", null, "q"], "x": null, "y": 1}'
    date = build("{{ a | tojson }}", {"a": [datetime.date(2020, 1, 1)]})
    assert isinstance(date, RowError)
    assert date.kind == "prompt_error"


def test_a_row_that_breaks_the_template_breaks_alone(jobs):
    table = pa.table({"a": [1, 0, 2]})
    out = jobs.generate(table, "{{ 10 / a }}")
    errors = out.column("error").to_pylist()
    assert [e and e["kind"] for e in errors] == [None, "prompt_error", None]
    assert "ZeroDivisionError" in errors[1]["message"]
    missing_key = build("{{ a.nokey }}", {"a": {"x": 1}})
    assert isinstance(missing_key, RowError)
    assert missing_key.kind == "prompt_error"


def test_chat_and_system_messages(jobs):
    assert build("u {{ a }}", {"a": "1"}, chat=True, system="s {{ a }}") == [
        {"role": "system", "content": "s 1"},
        {"role": "user", "content": "u 1"},
    ]
    table = pa.table({"text": ["x"]})
    responses = {
        (chat, has): jobs.generate(table, chat=chat, options={"chat_template": has})["response"].to_pylist()
        for chat, has in [("auto", True), ("auto", False), (True, True), (False, True), (False, False)]
    }
    assert responses["auto", True] == responses[True, True]
    assert responses["auto", False] == responses[False, False] == responses[False, True]
    assert responses[True, True] != responses[False, True]


@pytest.mark.parametrize("extra", [{"chat": True}, {"system": "be brief"}])
def test_no_chat_template_is_an_error_not_a_plain_prompt(jobs, extra):
    with pytest.raises(PromptError, match="no chat template"):
        jobs.generate(pa.table({"text": ["x"]}), options={"chat_template": False}, **extra)


def test_whitespace_is_kept():
    assert build("{{ a }}\n", {"a": "x "}) == "x \n"
    assert build("<b>{{ a }}", {"a": "<&>"}) == "<b><&>"


def test_nothing_of_a_row_is_left_for_the_next_one():
    """A template's context serves many rows: what one sets, or fails in, the next one does not see."""
    template = "{% if a %}{% set x = a %}{% endif %}{{ x | default('none') }} {{ 1 // b }}"
    build = PromptBuilder(template, None, ["a", "b", "x"]).build
    rows = [("one", 1), ("", 1), ("two", 0), ("", 1), ("three", 1)]
    found = [build({"a": a, "b": b}, False) for a, b in rows]
    assert [text if isinstance(text, str) else "error" for text in found] == [
        "one 1", "none 1", "error", "none 1", "three 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "prompt",
    ["{{ x }}", "{{ 'x: ' ~ x }}", "{{ x | upper }}", "{{ x[:2] }}", "{{ [x] | join }}", "{{ [x] }}"],
)
def test_bytes_are_no_text(jobs, prompt):
    error = build(prompt, {"x": b"caf\xc3\xa9"})
    assert isinstance(error, RowError)
    assert error.kind == "prompt_error"
    assert "decode" in error.message
    for column in (pa.array([b"ab", b"cd"]), pa.array([b"ab", b"cd"], pa.binary(2))):
        table = jobs.generate(pa.table({"x": column}), prompt)
        assert [e["kind"] for e in table["error"].to_pylist()] == ["prompt_error"] * 2


def test_bytes_can_be_decoded():
    assert build("{{ x.decode() }} {{ x | length }}", {"x": b"caf\xc3\xa9"}) == "café 5"
    assert build("{{ x.decode('latin-1') }}", {"x": b"caf\xe9"}) == "café"
    error = build("{{ x.decode() }}", {"x": b"caf\xe9"})
    assert isinstance(error, RowError)
    assert error.kind == "prompt_error"
