"""Chats as prompts: lists of templates, and columns of messages."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import ColumnError, OptionError, PromptError

MESSAGES = [
    {"role": "system", "content": "You know {{ topic }}."},
    {"role": "user", "content": "{{ text }}?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why {{ row['text'] }}?"},
]
TABLE = pa.table({"text": ["a", None, "Grüße 🌍"], "topic": ["x", "y", "z"], "unused": [1, 2, 3]})


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that reached the engine."""
    seen: list = []
    submit = DummyEngine.submit

    def recording(self, requests):
        seen.extend(request.prompt for request in requests)
        submit(self, requests)

    monkeypatch.setattr(DummyEngine, "submit", recording)
    return seen


def kinds(out: pa.Table) -> list[str | None]:
    return [error and error["kind"] for error in out.column("error").to_pylist()]


def test_a_list_of_templates(jobs, prompts):
    out = jobs.generate(TABLE, None, messages=MESSAGES)
    assert kinds(out) == [None, "null_input", None]
    assert prompts[1] == [
        {"role": "system", "content": "You know z."},
        {"role": "user", "content": "Grüße 🌍?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why Grüße 🌍?"},
    ]


def test_the_same_chat_as_prompt_and_system(jobs):
    chat = [{"role": "system", "content": "{{ topic }}"}, {"role": "user", "content": "{{ text }}"}]
    as_messages = jobs.generate(TABLE, None, messages=chat)
    assert as_messages.equals(jobs.generate(TABLE, "{{ text }}", system="{{ topic }}"))


STRUCT = pa.struct([("content", pa.string()), ("role", pa.string())])
CHATS = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "世界"}],
    None,
    [],
    [{"role": "user", "content": None}],
    [None],
    [{"role": None, "content": "x"}],
    [{"role": "user", "content": "{{ not a template }}"}],
]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(STRUCT),
        pa.large_list(pa.struct([("role", pa.large_string()), ("content", pa.large_string())])),
    ],
)
def test_a_column_of_messages(jobs, prompts, kind):
    table = pa.table({"id": range(7), "chat": pa.array(CHATS, kind)})
    out = jobs.generate(table, None, messages="chat", batch_rows=3)
    none = "null_input"
    assert kinds(out) == [None, none, "prompt_error", none, none, none, None]
    assert prompts == [CHATS[0], CHATS[6]]
    assert out.column("chat").equals(table.column("chat").cast(kind))


def test_dictionary_roles_and_no_rows(jobs, prompts):
    roles = pa.array(["user"]).dictionary_encode()
    inner = pa.StructArray.from_arrays([roles, pa.array(["hi"])], ["role", "content"])
    table = pa.table({"chat": pa.ListArray.from_arrays([0, 1], inner)})
    jobs.generate(table, None, messages="chat")
    assert prompts == [[{"role": "user", "content": "hi"}]]
    assert jobs.generate(table.slice(0, 0), None, messages="chat").num_rows == 0


def test_messages_that_are_not_utf8_end_their_row(jobs, prompts):
    raw = pa.array([b"good", b"\xff"], pa.binary())
    content = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    inner = pa.StructArray.from_arrays([pa.array(["user"] * 2), content], ["role", "content"])
    table = pa.table({"chat": pa.ListArray.from_arrays([0, 1, 2], inner), "id": [0, 1]})
    assert kinds(jobs.generate(table, None, messages="chat", keep=["id"])) == [None, "prompt_error"]
    assert prompts == [[{"role": "user", "content": "good"}]]


def test_only_needed_columns_are_read(jobs):
    plan = batch_sdk.plan.GeneratePlan(
        batch_sdk.GenerateJob(model="m", messages=MESSAGES, keep=[], sampling_columns={"seed": "unused"}),
        TABLE.schema,
    )
    assert plan.read == ("text", "topic", "unused")
    plan = batch_sdk.plan.GeneratePlan(
        batch_sdk.GenerateJob(model="m", messages=MESSAGES[:2], keep=[]), TABLE.schema
    )
    assert plan.read == ("text", "topic")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"prompt": "p", "messages": MESSAGES}, "prompt= together with messages="),
        ({}, "neither prompt= nor messages="),
        ({"messages": MESSAGES, "system": "s"}, "system= together with messages="),
        ({"messages": MESSAGES, "chat": False}, "messages= with chat=False"),
        ({"messages": []}, "messages=[]"),
        ({"messages": ""}, "messages=''"),
        ({"messages": 3}, "messages=3"),
        ({"messages": ["hi"]}, "messages[0]='hi'"),
        ({"messages": [{"role": "user"}]}, "messages[0]="),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0]="),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0]="),
        ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
    ],
)
def test_nonsense_is_one_clear_line(bad, says):
    with pytest.raises(OptionError) as caught:
        batch_sdk.generate(TABLE, model="m", engine="dummy", **bad)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_do_not_fit(jobs):
    with pytest.raises(ColumnError, match="did you mean 'topic'"):
        jobs.generate(TABLE, None, messages="topik")
    with pytest.raises(ColumnError, match="type int64"):
        jobs.generate(TABLE, None, messages="unused")
    more = pa.list_(pa.struct([*STRUCT, pa.field("name", pa.string())]))
    for kind in (more, pa.list_(pa.string()), pa.list_(pa.struct([("role", pa.string())])), STRUCT):
        with pytest.raises(ColumnError, match="role and content"):
            jobs.generate(pa.table({"chat": pa.nulls(1, kind)}), None, messages="chat")
    with pytest.raises(ColumnError, match=r"messages\[1\] template needs column 'body'"):
        jobs.generate(TABLE, None, messages=[MESSAGES[0], {"role": "user", "content": "{{ body }}"}])
    with pytest.raises(PromptError, match=r"messages\[0\] template does not compile"):
        jobs.generate(TABLE, None, messages=[{"role": "user", "content": "{{"}])
    with pytest.raises(PromptError, match="messages=, but the model"):
        jobs.generate(TABLE, None, messages=MESSAGES, options={"chat_template": False})


def test_jobs_stay_plain_data():
    given = [dict(message) for message in MESSAGES]
    job = batch_sdk.GenerateJob(model="m", messages=given, choice=["a"], sampling_columns={"seed": "s"})
    assert pickle.loads(pickle.dumps(job)) == job
    given[0]["content"] = "changed later"
    assert job.messages == tuple(MESSAGES)
