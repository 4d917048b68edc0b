"""Nonsense is refused in one clear line, before anything is computed."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.errors import BatchError, ColumnError, OptionError, SourceError
from batch_sdk.job import EmbedJob, GenerateJob
from batch_sdk.sampling import SamplingParams

TABLE = pa.table({"text": ["x"], "n": [1]})


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": 0},
        {"top_k": -2},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": None},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"stop": ""},
        {"stop": ["a", 1]},
        {"stop": 7},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["a"]},
        {"seed": -1},
        {"ignore_eos": "yes"},
        {"min_p": 2},
        {"repetition_penalty": 0.0 - 1},
    ],
)
def test_bad_sampling(bad):
    with pytest.raises(OptionError) as caught:
        SamplingParams.from_mapping(bad)
    assert "wanted" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sampling_request_uses_sglangs_names_and_leaves_the_rest_to_the_engine():
    assert SamplingParams().to_request() == {
        "max_new_tokens": 128,
        "min_new_tokens": 0,
        "ignore_eos": False,
        "skip_special_tokens": True,
    }
    full = SamplingParams(temperature=0, top_k=-1, stop="\n", stop_token_ids=(3,), seed=7).to_request()
    assert full["sampling_seed"] == 7
    assert "seed" not in full
    assert full["stop"] == ["\n"]
    assert full["stop_token_ids"] == [3]
    assert full["temperature"] == 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"overwrit": True}, "did you mean 'overwrite'"),
        ({"window_rows": 0}, "window_rows=0"),
        ({"batch_rows": 1.5}, "batch_rows=1.5"),
        ({"limit_rows": 0}, "limit_rows=0"),
        ({"keep": "text"}, "keep='text'"),
        ({"keep": ["text", "text"]}, "each column once"),
        ({"chat": "maybe"}, "chat='maybe'"),
        ({"chat": 1}, "chat=1"),
        ({"system": "s", "chat": False}, "system message with chat=False"),
        ({"prompt": ""}, "prompt=''"),
        ({"model": ""}, "model=''"),
        ({"engine": "sglan"}, "did you mean 'sglang'"),
        ({"engine_options": {"wrds": 3}}, "did you mean 'words'"),
        ({"engine_options": {"words": 0}}, "words=0"),
        ({"response_column": ""}, "response_column=''"),
        ({"details_prefix": 3}, "details_prefix=3"),
    ],
)
def test_bad_options_of_generate(bad, says):
    good = {"prompt": "{{ text }}", "model": "m", "engine": "dummy"}
    with pytest.raises(OptionError) as caught:
        batch_sdk.generate(TABLE, **{**good, **bad})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"block_rows": 0}, {"block_rows": 65, "window_rows": 64}, {"normalize": "yes"}]
)
def test_bad_options_of_embed(bad):
    with pytest.raises(OptionError):
        batch_sdk.embed(TABLE, column="text", model="m", engine="dummy", **bad)


def test_bad_columns():
    options = {"model": "m", "engine": "dummy"}
    with pytest.raises(ColumnError, match="did you mean 'text'"):
        batch_sdk.embed(TABLE, column="txt", **options)
    with pytest.raises(ColumnError, match="type int64"):
        batch_sdk.embed(TABLE, column="n", **options)
    with pytest.raises(ColumnError, match="keep names column 'nope'"):
        batch_sdk.embed(TABLE, column="text", keep=["nope"], **options)


@pytest.mark.parametrize(
    ("column", "remedy"),
    [("response", "response_column"), ("error", "details_prefix"), ("prompt_tokens", "keep")],
)
def test_collisions_name_the_option_that_resolves_them(jobs, column, remedy):
    table = pa.table({"text": ["x"], column: ["old"]})
    with pytest.raises(ColumnError, match=f"two columns named '{column}'.*{remedy}"):
        jobs.generate(table)
    assert jobs.engine.answered == 0
    out = jobs.generate(table, response_column="answer", details_prefix="gen_")
    assert out.column(column).to_pylist() == ["old"]
    assert {"answer", "gen_error", "gen_prompt_tokens"} <= set(out.column_names)
    assert column in jobs.generate(table, keep=["text"]).column_names


def test_the_two_commands_chain(jobs):
    out = jobs.embed(jobs.generate(pa.table({"text": ["x"]})), column="response", details_prefix="embed_")
    assert out.column_names[-3:] == ["embedding", "embed_prompt_tokens", "embed_error"]


def test_keep(jobs):
    table = pa.table({"text": ["x"], "a": [1], "b": [2]})
    assert jobs.generate(table, keep=["b", "text"]).column_names[:3] == ["b", "text", "response"]
    assert jobs.generate(table, keep=[]).column_names[0] == "response"
    assert jobs.generate(table, "constant", keep=[]).num_rows == 1


@pytest.mark.parametrize(
    "data", [42, None, {"a": [1]}, [], [1], pa.table({}), pa.table([[1], [2]], names=["a", "a"]), object()]
)
def test_inputs_that_are_no_tables(jobs, data):
    with pytest.raises(SourceError):
        jobs.generate(data, "hi")


def test_a_running_engine_serves_many_jobs(jobs):
    engine = jobs.start("generate")
    for _ in range(2):
        batch_sdk.generate(TABLE, prompt="{{ text }}", model=engine, progress=False)
    assert engine.started
    assert engine.answered == 2
    with pytest.raises(OptionError, match="started for 'generate'"):
        batch_sdk.embed(TABLE, column="text", model=engine)
    with pytest.raises(OptionError, match="engine_options"):
        batch_sdk.generate(TABLE, prompt="x", model=engine, engine_options={"words": 1})
    engine.close()
    with pytest.raises(OptionError, match="not started"):
        batch_sdk.generate(TABLE, prompt="x", model=engine)
    with batch_sdk.create_engine("dummy", model="m", task="embed") as engine:
        assert batch_sdk.embed(TABLE, column="text", model=engine, progress=False).num_rows == 1
    assert not engine.started


def test_jobs_and_errors_are_plain_data():
    job = GenerateJob(model="m", prompt="p", keep=["a"], sampling=SamplingParams(stop=["x"]))
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.keep == ("a",)
    assert EmbedJob(model="m", column="c") == EmbedJob(model="m", column="c")
    error = pickle.loads(pickle.dumps(BatchError("got", "wanted", "remedy")))
    assert str(error) == "got; wanted wanted; remedy"


def test_importing_is_cheap():
    import subprocess
    import sys

    code = (
        "import sys, batch_sdk, batch_sdk.cli; "
        "print([m for m in ('torch', 'sglang', 'pydantic', 'arctic_sglang.compat') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
