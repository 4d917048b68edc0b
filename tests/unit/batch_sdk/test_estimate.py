"""Estimates from samples, with the dummy engine."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_sdk
from arctic_sglang.embedding.checkpoint import PoolingSpec
from batch_sdk import cli
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import ColumnError, EngineError, OptionError, SourceError

GENERATE = {"prompt": "{{ text }}", "chat": False, "model": "m", "engine": "dummy", "max_new_tokens": 8}


def table(rows: int) -> pa.Table:
    """Texts of 1 to 40 words, longer ones towards the end."""
    draw = np.random.default_rng(0)
    words = 1 + (39 * np.arange(rows) / max(1, rows) * draw.random(rows)).astype(int)
    return pa.table({"id": range(rows), "text": [" ".join(["w"] * count) for count in words]})


def words_of(data: pa.Table) -> int:
    return sum(len(text.split()) for text in data.column("text").to_pylist())


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 255, 256])
def test_a_sample_of_everything_is_exact(rows):
    data = table(rows)
    found = batch_sdk.estimate(data, **GENERATE)
    assert (found.rows, found.sample_rows, found.error_rows) == (rows, rows, 0)
    assert (found.prompt_tokens, found.prompt_tokens_margin) == (words_of(data), 0)
    assert (found.completion_tokens, found.completion_tokens_margin) == (8 * rows, 0)
    whole = batch_sdk.generate(data, **GENERATE)
    assert found.output_bytes == pytest.approx(whole.nbytes, rel=0.2)


def test_the_sample_is_of_the_whole_table():
    data = table(20_001)
    found = batch_sdk.estimate(data, sample_rows=300, **GENERATE)
    assert (found.rows, found.sample_rows) == (20_001, 300)
    assert abs(found.prompt_tokens - words_of(data)) < found.prompt_tokens_margin
    assert 0 < found.prompt_tokens_margin < 0.2 * found.prompt_tokens
    # From the beginning alone it would be a fraction of that.
    assert words_of(data.slice(0, 300)) / 300 < 0.1 * found.prompt_tokens / 20_001


def test_time_grows_with_the_rows():
    slow = {**GENERATE, "engine_options": {"delay_seconds": 0.02}, "window_rows": 10}
    # What else the machine does makes a sample slower, never faster.
    small, large = (
        min(
            (batch_sdk.estimate(table(rows), sample_rows=100, **slow) for _ in range(3)),
            key=lambda e: e.seconds,
        )
        for rows in (1000, 10_000)
    )
    # Ten rows every 20 ms, and some work.
    assert 0.9 * 2 < small.seconds < 4
    assert large.seconds == pytest.approx(10 * small.seconds, rel=0.3)
    assert large.rows_per_second == pytest.approx(500, rel=0.3)


def test_one_row_takes_its_time():
    found = batch_sdk.estimate(table(1), **GENERATE, engine_options={"delay_seconds": 0.05})
    assert 0.05 <= found.seconds < 1
    assert found.rows_per_second == pytest.approx(1 / found.seconds)
    failed = batch_sdk.estimate(table(1), **GENERATE, engine_options={"fail_on": "w"})
    assert failed.error_rows == 1


def test_what_only_the_model_knows_is_left_to_it():
    vectors = {"column": "text", "model": "m", "engine": "dummy"}
    found = batch_sdk.estimate(table(20), dimensions=64, engine_options={"embedding_size": 128}, **vectors)
    assert found.rows == 20
    with pytest.raises(OptionError, match="dimensions=64, but the vectors of the model 'm' have 32"):
        batch_sdk.estimate(table(20), dimensions=64, engine_options={"embedding_size": 32}, **vectors)
    with pytest.raises(OptionError, match="dimensions=0"):
        batch_sdk.estimate(table(20), dimensions=0, **vectors)
    with pytest.raises(OptionError, match="engine knows no prompts"):  # the real one's word
        batch_sdk.estimate(table(20), prompt_name="query", **vectors)

    class Prompted(DummyEngine):
        @property
        def info(self):
            return replace(super().info, checkpoint=PoolingSpec("mean", True, prompts={"query": "find: "}))

    with Prompted(model="m", task="embed", options={}) as engine:
        found = batch_sdk.estimate(table(20), column="text", model=engine, prompt_name="query")
    assert found.prompt_tokens == words_of(table(20)) + 20


def test_embeddings_and_errors(tmp_path):
    data = table(1000).append_column("odd", pa.array([None if i % 4 == 0 else "x" for i in range(1000)]))
    pq.write_table(data, tmp_path / "t.parquet", row_group_size=77)
    found = batch_sdk.estimate(
        tmp_path / "t.parquet", column="odd", model="m", engine="dummy", sample_rows=100
    )
    assert found.completion_tokens == 0
    assert found.error_rows == pytest.approx(250, abs=60)
    assert found.prompt_tokens == pytest.approx(750, abs=60)


@pytest.mark.parametrize("kind", ["jsonl", "lazy", "frame"])
def test_other_sources(tmp_path, kind):
    data = table(500)
    if kind == "jsonl":
        given = tmp_path / "t.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in data.to_pylist()))
    else:
        given = pl.from_arrow(data)
        given = given.lazy() if kind == "lazy" else given
    found = batch_sdk.estimate(given, sample_rows=500, **GENERATE)
    assert (found.rows, found.prompt_tokens) == (500, words_of(data))


def test_no_rows():
    found = batch_sdk.estimate(table(0), **GENERATE)
    assert (found.rows, found.seconds, found.prompt_tokens) == (0, 0, 0)
    assert "0, estimated from 0" in str(found)


def test_a_started_engine_is_left_running():
    with batch_sdk.create_engine("dummy", model="m", task="generate") as engine:
        found = batch_sdk.estimate(table(50), prompt="{{ text }}", model=engine)
        assert engine.started
        assert found.engine_start_seconds == 0


def test_nonsense(tmp_path):
    with pytest.raises(OptionError, match="sample_rows=1"):
        batch_sdk.estimate(table(5), sample_rows=1, **GENERATE)
    with pytest.raises(OptionError, match="output in an estimate"):
        batch_sdk.estimate(table(5), output=tmp_path / "x", **GENERATE)
    with pytest.raises(SourceError, match="a stream, which can be read only once"):
        batch_sdk.estimate(table(5).to_reader(), **GENERATE)
    # Said before an engine starts: this one could not.
    with pytest.raises(ColumnError, match="body"):
        batch_sdk.estimate(table(5), prompt="{{ body }}", model="/nowhere", engine="sglang")
    with pytest.raises(EngineError, match="died after 3"):
        batch_sdk.estimate(table(50), engine_options={"die_after_requests": 3}, **GENERATE)


def test_the_command_line(tmp_path, capsys):
    pq.write_table(table(300), tmp_path / "t.parquet")
    where = [str(tmp_path / "t.parquet"), "--model", "m", "--engine", "dummy"]
    prompt = ["--prompt", "{{ text }}", "--chat", "off", "--max-new-tokens", "4"]
    assert cli.main(["estimate", "generate", *where, *prompt, "--sample-rows", "40"]) == 0
    assert "rows      300, estimated from 40" in capsys.readouterr().out
    assert cli.main(["estimate", "embed", *where, "--column", "text"]) == 0
    assert "rows      300, estimated from 256" in capsys.readouterr().out
    assert cli.main(["estimate", "embed", *where, "--column", "txt"]) == 2
    assert "did you mean 'text'" in capsys.readouterr().err
    dies = ["--engine-option", "die_after_requests=1"]
    assert cli.main(["estimate", "embed", *where, "--column", "text", *dies]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["estimate", "embed", *where, "--column", "text", "--output", "x"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet"]
