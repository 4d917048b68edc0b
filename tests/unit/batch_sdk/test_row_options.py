"""Samples, sampling columns, log-probabilities, and prompts that are cut."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batch_sdk
from batch_sdk.engines.sglang_answers import asked, generated
from batch_sdk.errors import ColumnError, OptionError, RowError, RowErrorKind
from batch_sdk.truncation import truncated

TABLE = pa.table({"text": ["a", None, "b 世界", "c", "d"]})


def kinds(out: pa.Table) -> list[str | None]:
    return [error and error["kind"] for error in out.column("error").to_pylist()]


class TestSamples:
    def test_lists_of_n(self, jobs):
        one, out = jobs.generate(TABLE), jobs.generate(TABLE, n=3, batch_rows=2)
        assert kinds(out) == kinds(one)
        assert out.schema.field("response").type == pa.list_(pa.string())
        assert out.schema.field("finish_reason").type == pa.list_(pa.string())
        responses = out.column("response").to_pylist()
        assert responses[1] is None
        assert all(len(set(row)) == 3 for row in responses if row)
        assert [row and row[0] for row in responses] == one.column("response").to_pylist()
        assert out.column("completion_tokens").to_pylist() == [24, None, 24, 24, 24]
        assert out.column("prompt_tokens").equals(one.column("prompt_tokens"))
        assert jobs.generate(TABLE, n=1).equals(one)

    def test_structs_and_a_broken_sample(self, jobs):
        schema = {"properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
        table = pa.table({"text": [f"row {i}" for i in range(40)]})
        out = jobs.generate(table, n=2, response_format=schema, options={"broken_json": 0.3})
        struct = pa.struct([pa.field("a", pa.string(), nullable=False)])
        assert out.schema.field("response").type == pa.list_(struct)
        assert set(kinds(out)) == {None, "invalid_output"}
        messages = [e["message"] for e in out.column("error").to_pylist() if e]
        assert {m.split(":")[0] for m in messages} == {"sample 0", "sample 1"}
        assert all(len(row) == 2 for row in out.column("response").to_pylist() if row)

    def test_summary_counts_all_samples(self, jobs):
        _, summary = jobs.generate(TABLE, n=3, return_summary=True)
        assert summary.completion_tokens == 4 * 24

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            ({"n": 0}, "n=0"),
            ({"n": 1.5}, "n=1.5"),
            ({"n": True}, "n=True"),
            ({"n": 2, "temperature": 0}, "n=2 with temperature=0"),
            ({"n": 2, "seed": 1}, "n=2 with a seed"),
            ({"n": 2, "sampling_columns": {"seed": "text"}}, "n=2 with a seed"),
            ({"logprobs": 1}, "logprobs=1"),
            ({"on_too_long": "cut"}, "on_too_long='cut'"),
            ({"on_too_long": None}, "on_too_long=None"),
            ({"sampling_columns": ["text"]}, "sampling_columns=['text']"),
            ({"sampling_columns": {"seed": ""}}, "sampling_columns="),
            ({"sampling_columns": {"temprature": "text"}}, "did you mean 'temperature'"),
        ],
    )
    def test_nonsense_is_one_clear_line(self, bad, says):
        with pytest.raises(OptionError) as caught:
            batch_sdk.generate(TABLE, prompt="{{ text }}", model="m", engine="dummy", **bad)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


class TestSamplingColumns:
    def test_rows_have_their_own_and_nulls_the_jobs(self, jobs, monkeypatch):
        seen = {}
        submit = batch_sdk.engines.dummy.DummyEngine.submit

        def recording(self, requests):
            seen.update({request.position: request.sampling for request in requests})
            submit(self, requests)

        monkeypatch.setattr(batch_sdk.engines.dummy.DummyEngine, "submit", recording)
        table = pa.table(
            {
                "text": ["a", "b", "c", "d"],
                "heat": pa.array([0.5, None, float("nan"), -1.0], pa.float32()),
                "budget": pa.array([2, 3, None, 4], pa.int16()),
                "ends": [["x", "y"], None, [], ["z"]],
                "nothing": pa.nulls(4),
            }
        )
        columns = {"temperature": "heat", "max_new_tokens": "budget", "stop": "ends", "seed": "nothing"}
        out = jobs.generate(table, sampling_columns=columns, temperature=1.5, max_new_tokens=5, keep=[])
        assert kinds(out) == [None, None, "invalid_sampling", "invalid_sampling"]
        assert "temperature=-1.0; wanted" in out.column("error")[3].as_py()["message"]
        assert out.column("completion_tokens").to_pylist() == [2, 3, None, None]
        assert seen[0] == seen[1] | {"temperature": 0.5, "max_new_tokens": 2, "stop": ["x", "y"]}
        assert (seen[1]["temperature"], "stop" in seen[1]) == (1.5, False)
        assert "sampling_seed" not in seen[0]

    def test_a_value_that_fits_alone_and_not_with_the_rest(self, jobs):
        table = pa.table({"text": ["a", "b"], "budget": [3, 30]})
        out = jobs.generate(table, sampling_columns={"max_new_tokens": "budget"}, min_new_tokens=4)
        assert kinds(out) == ["invalid_sampling", None]

    def test_the_templates_row_does_not_see_them(self, jobs):
        table = pa.table({"text": ["a"], "budget": [3]})
        out = jobs.generate(table, "{{ text }}", sampling_columns={"max_new_tokens": "budget"}, keep=["text"])
        assert out.column_names[0] == "text"
        assert out.column("completion_tokens").to_pylist() == [3]

    def test_stop_strings_that_are_not_utf8_end_their_row(self, jobs):
        good = pa.array([b"ok", b"\xff", b"ok"], pa.binary())
        stops = pa.StringArray.from_buffers(3, good.buffers()[1], good.buffers()[2])
        table = pa.table({"text": ["a", "b", "c"], "s": stops})
        assert kinds(jobs.generate(table, sampling_columns={"stop": "s"}, keep=[])) == [
            None,
            "invalid_sampling",
            None,
        ]

    @pytest.mark.parametrize(
        ("parameter", "column", "says"),
        [
            ("temperature", "heet", "did you mean 'heat'"),
            ("temperature", "text", "a column of numbers"),
            ("max_new_tokens", "heat", "a column of integers"),
            ("ignore_eos", "budget", "a column of booleans"),
            ("stop", "budget", "strings or lists of strings"),
            ("stop_token_ids", "budget", "lists of integers"),
        ],
    )
    def test_columns_that_do_not_fit(self, jobs, parameter, column, says):
        table = pa.table({"text": ["a"], "heat": [0.5], "budget": [1]})
        with pytest.raises(ColumnError, match=says):
            jobs.generate(table, sampling_columns={parameter: column})
        assert jobs.engine.answered == 0


class TestLogprobs:
    def test_columns(self, jobs):
        out = jobs.generate(TABLE, logprobs=True, details_prefix="x_", max_new_tokens=3)
        assert out.schema.field("x_logprobs").type == pa.list_(pa.float32())
        assert out.schema.field("x_token_ids").type == pa.list_(pa.int32())
        assert [v and len(v) for v in out.column("x_token_ids").to_pylist()] == [3, None, 3, 3, 3]
        assert all(x <= 0 for row in out.column("x_logprobs").to_pylist() if row for x in row)
        assert out.equals(jobs.generate(TABLE, logprobs=True, details_prefix="x_", max_new_tokens=3))
        assert "logprobs" not in jobs.generate(TABLE).column_names

    def test_lists_of_lists_with_n(self, jobs):
        out = jobs.generate(TABLE, logprobs=True, n=2)
        assert out.schema.field("token_ids").type == pa.list_(pa.list_(pa.int32()))
        assert [len(one) for one in out.column("logprobs")[0].as_py()] == [8, 8]


def answer(text: str, reason: dict) -> dict:
    tokens = [(-0.5, 7, None), (-0.25, 9, None)]
    meta = {
        "finish_reason": reason,
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "output_token_logprobs": tokens,
    }
    return {"text": text, "meta_info": meta}


def test_sglangs_answers():
    stop = {"type": "stop"}
    one = generated(3, answer("a", stop), True)
    assert (one.text, one.logprobs, one.token_ids) == ("a", [-0.5, -0.25], [7, 9])
    assert generated(3, answer("a", stop), False).logprobs is None
    two = generated(3, [answer("a", stop), answer("b", {"type": "length"})], True)
    assert (two.text, two.finish_reason, two.completion_tokens) == (["a", "b"], ["stop", "length"], 4)
    assert two.token_ids == [[7, 9], [7, 9]]
    bad = generated(3, [answer("a", stop), answer("b", {"type": "abort", "message": "no"})], False)
    assert (bad.text, bad.error) == (None, ("aborted", "no"))


class TestTruncation:
    def test_modes(self):
        tokens = list(range(9))
        assert truncated(tokens, 4, "truncate_left") == [5, 6, 7, 8]
        assert truncated(tokens, 4, "truncate_left", fixed=1) == [0, 6, 7, 8]
        assert truncated(tokens, 4, "truncate_right", fixed=1) == [0, 1, 2, 3]
        assert truncated(tokens, 5, "truncate_middle") == [0, 1, 2, 7, 8]
        assert truncated(tokens, 1, "truncate_middle", fixed=1) == [0]
        assert truncated(tokens, 1, "truncate_left", fixed=1) == [0]
        assert truncated(tokens, 9, "truncate_left") == tokens

    @given(
        st.integers(0, 30),
        st.integers(1, 30),
        st.sampled_from(["truncate_left", "truncate_right", "truncate_middle"]),
        st.integers(0, 2),
    )
    def test_any_size(self, count, room, mode, fixed):
        left = truncated(range(count), room, mode, fixed)
        assert len(left) == min(count, room)
        assert list(left) == sorted(set(left))
        assert list(left[: min(fixed, room)]) == list(range(count))[: min(fixed, room, len(left))]

    @pytest.mark.parametrize("mode", ["truncate_left", "truncate_right", "truncate_middle"])
    def test_cut_rows_are_reported(self, jobs, mode):
        table = pa.table({"text": ["a b c d e f g", "a b", None, "a b c"]})
        run = {"chat": False, "on_too_long": mode, "options": {"max_input_tokens": 3}}
        out = jobs.generate(table, "{{ text }}", **run)
        assert kinds(out) == [None, None, "null_input", None]
        assert out.schema.field("prompt_truncated").type == pa.int32()
        assert out.column("prompt_truncated").to_pylist() == [4, 0, None, 0]
        assert out.column("prompt_tokens").to_pylist() == [3, 2, None, 3]
        kept = {"truncate_left": "e f g", "truncate_right": "a b c", "truncate_middle": "a b g"}[mode]
        alone = jobs.generate(pa.table({"text": [kept]}), "{{ text }}", chat=False)
        assert out.column("response")[0] == alone.column("response")[0]

    def test_no_limit_known_is_an_error_not_a_promise(self, jobs):
        with pytest.raises(OptionError, match="does not say how long"):
            jobs.generate(TABLE, on_too_long="truncate_left")
        assert "prompt_truncated" not in jobs.generate(TABLE).column_names


def test_what_sglang_raises_on_a_row_is_its_error():
    async def work(cause):
        raise cause

    assert asyncio.run(asked(work(ValueError("bad")))) == RowError(RowErrorKind.REJECTED, "bad")
    with pytest.raises(TypeError, match="has no len"):  # a mistake in a program, which every row would have
        asyncio.run(asked(work(TypeError("object of type 'NoneType' has no len()"))))
