"""The batch SDK over real SGLang engines."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from typing import Literal

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

import batch_sdk
from batch_sdk.engines import children
from batch_sdk.engines.intake import Room
from batch_sdk.errors import EngineError, OptionError

pytestmark = pytest.mark.engine

PROMPTS = [f"def add_{i}(a, b):\n    return a + b * {i}\n" * (1 + i % 5) for i in range(16)]


def generate(data, engine, prompt="{{ text }}", **options):
    options = {"temperature": 0, "max_new_tokens": 12, "progress": False} | options
    return batch_sdk.generate(data, prompt=prompt, model=engine, **options)


def kinds(out: pa.Table) -> list[str | None]:
    return [error and error["kind"] for error in out.column("error").to_pylist()]


class TestGenerate:
    def test_rows_keep_their_order_and_match_single_requests(self, generator):
        out = generate(pa.table({"text": PROMPTS}), generator, window_rows=9, batch_rows=5, chat=False)
        assert kinds(out) == [None] * len(PROMPTS)
        tokenizer = generator._engine.tokenizer_manager.tokenizer
        assert out.column("prompt_tokens").to_pylist() == [len(tokenizer(p)["input_ids"]) for p in PROMPTS]
        assert all(1 <= n <= 12 for n in out.column("completion_tokens").to_pylist())
        assert set(out.column("finish_reason").to_pylist()) <= {"stop", "length"}
        alone = [
            generate(pa.table({"text": [p]}), generator, chat=False).column("response")[0].as_py()
            for p in PROMPTS[:5]
        ]
        same = sum(a == b for a, b in zip(alone, out.column("response").to_pylist(), strict=False))
        assert same >= 4, "a batch may round differently, but not often"

    def test_prefix_order_and_duplicates_change_nothing(self, generator):
        texts = [f"{PROMPTS[i % 3] * 4} {i % 7}" for i in range(40)]
        plain = generate(pa.table({"text": texts}), generator, chat=False, max_new_tokens=4)
        options = {"order": "prefix", "dedupe": True, "window_rows": 24, "batch_rows": 7}
        out = generate(pa.table({"text": texts}), generator, chat=False, max_new_tokens=4, **options)
        assert out.column("prompt_tokens").equals(plain.column("prompt_tokens"))
        pairs = zip(out.column("response").to_pylist(), plain.column("response").to_pylist(), strict=True)
        assert sum(a == b for a, b in pairs) >= 38, "a batch may round differently, but not often"
        by_text = {}
        for text, answer in zip(texts, out.column("response").to_pylist(), strict=True):
            assert by_text.setdefault(text, answer) == answer

    def test_a_window_of_few_tokens_changes_nothing(self, generator, monkeypatch):
        """Rows longer than the window too; at SGLang there is never more than it, or one row."""
        room = Room(60)
        monkeypatch.setattr(generator._intake, "_room", room)
        held = []
        take = room.take

        async def noting(tokens):
            await take(tokens)
            held.append((room._used, tokens))

        monkeypatch.setattr(room, "take", noting)
        out = generate(pa.table({"text": PROMPTS}), generator, chat=False, max_new_tokens=3)
        assert kinds(out) == [None] * len(PROMPTS)
        lengths = out.column("prompt_tokens").to_pylist()
        assert max(lengths) > 60 > 2 * min(lengths)
        assert [tokens for _, tokens in held] == lengths
        assert all(used <= max(60, tokens) for used, tokens in held)
        assert room._used == 0

    def test_special_rows(self, generator):
        limit = generator.max_input_tokens
        texts = ["short", None, "word " * (limit + 10), "Grüße 世界 🌍", "a"]
        out = generate(pa.table({"text": texts}), generator)
        assert kinds(out) == [None, "null_input", "too_long", None, None]
        assert str(limit) in out.column("error")[2].as_py()["message"]
        out = generate(pa.table({"text": ["short"]}), generator, max_new_tokens=limit + 100)
        assert kinds(out) == ["too_long"]

    def test_what_the_prefix_cache_had_is_counted(self, generator):
        texts = [f"# {i} of the cache's own\n" + PROMPTS[i] for i in range(8)]
        options = {"chat": False, "return_summary": True, "window_rows": 1}
        cold, warm = (generate(pa.table({"text": texts}), generator, **options).summary for _ in range(2))
        assert cold.cached_tokens < warm.cached_tokens < warm.prompt_tokens
        assert warm.cache_hit_rate > 0.5

    def test_chat_template_and_system_message(self, generator, monkeypatch):
        assert generator.info.has_chat_template
        # The tiny model's own template leaves the system message out.
        template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"
        monkeypatch.setattr(generator._engine.tokenizer_manager.tokenizer, "chat_template", template)
        table = pa.table({"text": ["x = 1"]})
        tokens = {
            name: generate(table, generator, **options).column("prompt_tokens")[0].as_py()
            for name, options in {
                "plain": {"chat": False},
                "chat": {"chat": True},
                "auto": {},
                "system": {"system": "You write docstrings."},
            }.items()
        }
        assert tokens["plain"] < tokens["chat"] == tokens["auto"] < tokens["system"]

    def test_stop_strings_and_sampling_reach_the_engine(self, generator):
        table = pa.table({"text": PROMPTS[:4]})
        full = generate(table, generator, max_new_tokens=20).column("response").to_pylist()
        stop = full[0][len(full[0]) // 2]
        cut = generate(table, generator, max_new_tokens=20, stop=stop).column("response").to_pylist()
        assert stop not in cut[0]
        assert full[0].startswith(cut[0])
        hot = {
            generate(table.slice(0, 1), generator, temperature=2.0, max_new_tokens=20)
            .column("response")[0]
            .as_py()
            for _ in range(4)
        }
        assert len(hot) > 1

    def test_a_row_that_sglang_refuses_is_one_error_row(self, generator):
        # An id outside the vocabulary passes our checks and fails in SGLang's.
        out = generate(pa.table({"text": ["a", "b"]}), generator, stop_token_ids=[10**9])
        assert all(kind in (None, "rejected", "aborted") for kind in kinds(out))
        assert kinds(generate(pa.table({"text": ["a"]}), generator)) == [None]

    def test_structured_output_is_structs_or_typed_errors(self, generator):
        class Answer(pydantic.BaseModel):
            kind: Literal["bug", "wish"]
            tags: list[Literal["a", "b"]] = pydantic.Field(max_length=2)
            good: bool
            size: Literal[1, 22] | None

        table = pa.table({"text": PROMPTS[:5]})
        out = generate(table, generator, response_format=Answer, max_new_tokens=80, temperature=0.8)
        assert pa.types.is_struct(out.schema.field("response").type)
        assert kinds(out).count(None) >= 4, out.column("error").to_pylist()
        for row, kind in zip(out.column("response").to_pylist(), kinds(out), strict=True):
            assert (row is None) == (kind == "invalid_output")
            assert row is None or Answer.model_validate(row)
        cut = generate(table, generator, response_format=Answer, max_new_tokens=3)
        assert kinds(cut) == ["invalid_output"] * 5
        assert all("max_new_tokens cut" in e["message"] for e in cut.column("error").to_pylist())

    def test_choice_regex_and_ebnf(self, generator):
        choices = ["yes", 'say "no"', "a\\b", "x|y [0-9]", "Grüße 🌍", "line\nbreak"]
        table = pa.table({"text": PROMPTS[:8]})
        hot = {"max_new_tokens": 60, "temperature": 2.0}
        out = generate(table, generator, choice=choices, **hot)
        assert set(out.column("response").to_pylist()) <= set(choices), out.column("error").to_pylist()
        assert len(set(out.column("response").to_pylist())) > 1
        out = generate(table, generator, regex="[ab]{3}-[0-9]", **hot)
        assert all(re.fullmatch("[ab]{3}-[0-9]", text) for text in out.column("response").to_pylist())
        out = generate(table, generator, ebnf='root ::= "left" | "right"', **hot)
        assert set(out.column("response").to_pylist()) <= {"left", "right"}
        broken = generate(table.slice(0, 1), generator, regex="[ab")
        assert kinds(broken) == ["rejected"]

    def test_samples_log_probabilities_and_row_sampling(self, generator):
        table = pa.table({"text": PROMPTS[:4], "budget": [2, 5, None, 3]})
        options = {"sampling_columns": {"max_new_tokens": "budget"}, "ignore_eos": True, "logprobs": True}
        out = generate(table, generator, **options)
        assert out.column("completion_tokens").to_pylist() == [2, 5, 12, 3]
        for ids, logprobs, count in zip(
            *(out.column(n).to_pylist() for n in ("token_ids", "logprobs", "completion_tokens")), strict=True
        ):
            assert len(ids) == len(logprobs) == count
            assert all(value <= 0 for value in logprobs)
        tokenizer = generator._engine.tokenizer_manager.tokenizer
        decoded = [
            tokenizer.decode(ids, skip_special_tokens=True) for ids in out.column("token_ids").to_pylist()
        ]
        assert decoded == out.column("response").to_pylist()
        several = generate(table, generator, n=3, temperature=1.5, **options)
        assert kinds(several) == [None] * 4
        assert several.column("completion_tokens").to_pylist() == [6, 15, 36, 9]
        assert [len(set(row)) > 1 for row in several.column("response").to_pylist()].count(True) >= 3
        assert [[len(one) for one in row] for row in several.column("logprobs").to_pylist()][1] == [5, 5, 5]

    def test_over_long_prompts_are_cut_to_fit(self, generator):
        limit = generator.max_input_tokens
        table = pa.table({"text": ["short", "word " * (limit + 10)]})
        for mode in ("truncate_left", "truncate_middle", "truncate_right"):
            out = generate(table, generator, chat=False, on_too_long=mode, max_new_tokens=12)
            assert kinds(out) == [None, None]
            cut, left = out.column("prompt_truncated").to_pylist(), out.column("prompt_tokens").to_pylist()
            assert cut[0] == 0
            assert cut[1] > 0
            assert left[1] <= limit
            assert limit - 12 <= left[1]
            whole = generator._engine.tokenizer_manager.tokenizer(table["text"][1].as_py())["input_ids"]
            assert cut[1] + left[1] == len(whole)
        huge = generate(table.slice(0, 1), generator, on_too_long="truncate_left", max_new_tokens=limit + 100)
        assert kinds(huge) == ["too_long"]

    def test_messages(self, generator):
        chats = [[{"role": "user", "content": f"def f{i}(): pass"}] for i in range(3)]
        table = pa.table({"text": [chat[0]["content"] for chat in chats], "chat": chats})
        column = generate(table, generator, prompt=None, messages="chat")
        listed = generate(table, generator, prompt=None, messages=[{"role": "user", "content": "{{ text }}"}])
        assert kinds(column) == [None] * 3
        tokens = generate(table, generator).column("prompt_tokens")
        assert column.column("prompt_tokens") == listed.column("prompt_tokens") == tokens

    def test_a_shared_engine_survives_an_interrupted_job(self, generator, monkeypatch):
        wait = generator.wait
        calls = []

        def interrupted():
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return wait()

        with monkeypatch.context() as patch:
            patch.setattr(generator, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generate(pa.table({"text": PROMPTS}), generator, max_new_tokens=40, window_rows=4)
        out = generate(pa.table({"text": PROMPTS}), generator)
        assert kinds(out) == [None] * len(PROMPTS)


class TestEmbed:
    def test_vectors_match_sentence_transformers(self, minilm_embedder, minilm_dir):
        from sentence_transformers import SentenceTransformer

        texts = ["A cat sat on the mat.", "", "Grüße 世界 🌍", "longer " * 254, "  spaces  ", "x"] * 3
        out = batch_sdk.embed(
            pa.table({"text": texts}),
            column="text",
            model=minilm_embedder,
            block_rows=4,
            batch_rows=7,
            progress=False,
        )
        assert kinds(out) == [None] * len(texts)
        assert max(out.column("prompt_tokens").to_pylist()) == minilm_embedder.max_input_tokens == 256
        assert out.schema.field("embedding").type == pa.list_(pa.float32(), 384)
        ours = np.stack(out.column("embedding").to_pylist())
        theirs = SentenceTransformer(str(minilm_dir), device="cpu").encode(texts)
        cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert cosine.min() > 0.9999

    def test_embed_rows_that_are_null_or_too_long(self, minilm_embedder):
        texts = ["fine", None, "word " * 2000, "fine"]
        out = batch_sdk.embed(pa.table({"text": texts}), column="text", model=minilm_embedder, progress=False)
        assert kinds(out) == [None, "null_input", "too_long", None]
        assert out.column("embedding").is_null().to_pylist() == [False, True, True, False]
        np.testing.assert_allclose(
            out.column("embedding")[0].as_py(), out.column("embedding")[3].as_py(), atol=1e-5
        )

    def test_a_lazy_query_drives_the_engine_from_threads_of_polars(self, minilm_embedder, tmp_path):
        texts = pl.DataFrame({"id": range(50), "text": [f"text {i}" for i in range(50)]})
        texts.write_parquet(tmp_path / "in.parquet")
        query = pl.scan_parquet(tmp_path / "in.parquet").arctic.embed(
            "text", model=minilm_embedder, batch_rows=8
        )
        query.filter(pl.col("id") % 2 == 1).sink_parquet(tmp_path / "out.parquet")
        out = pl.read_parquet(tmp_path / "out.parquet")
        assert out["id"].to_list() == list(range(1, 50, 2))
        again = texts.filter(pl.col("id") % 2 == 1).arctic.embed(
            "text", model=minilm_embedder, progress=False
        )
        np.testing.assert_allclose(out["embedding"].to_numpy(), again["embedding"].to_numpy(), atol=1e-5)

    def test_token_ids_are_taken_as_they_are(self, minilm_embedder):
        texts = ["A cat sat on the mat.", "x", "Grüße"]
        tokenizer = minilm_embedder._engine.tokenizer_manager.tokenizer
        ids = [*tokenizer(texts)["input_ids"], None, [], [1] * 257, [10**6], [-1]]
        out = batch_sdk.embed(pa.table({"ids": ids}), column="ids", model=minilm_embedder, progress=False)
        assert kinds(out) == [None] * 3 + ["null_input", "rejected", "too_long", "rejected", "rejected"]
        same = batch_sdk.embed(
            pa.table({"text": texts}), column="text", model=minilm_embedder, progress=False
        )
        np.testing.assert_allclose(
            np.stack(out["embedding"].to_pylist()[:3]), np.stack(same["embedding"].to_pylist()), atol=1e-5
        )


@pytest.mark.full
def test_two_copies_of_a_model_share_the_rows(tiny_model_dir):
    options = {"dp_size": 2, "max_total_tokens": 4000}
    before = children.pids()
    with batch_sdk.create_engine(
        "sglang", model=str(tiny_model_dir), task="generate", options=options
    ) as engine:
        assert engine._intake._room._tokens == 2 * 2 * 4000
        out = generate(pa.table({"text": PROMPTS * 3}), engine, window_rows=11, batch_rows=5)
        assert kinds(out) == [None] * 48
    assert children.since(before) == []


def test_not_in_a_running_loop(tiny_model_dir):
    async def start():
        batch_sdk.create_engine("sglang", model=str(tiny_model_dir), task="generate").start()

    with pytest.raises(EngineError, match="running event loop"):
        asyncio.run(start())


def test_a_model_that_is_not_there(tmp_path):
    before = children.pids()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="did not start"):
        batch_sdk.create_engine("sglang", model=str(tmp_path), task="generate").start()
    assert [p for p in children.since(before) if p.is_running()] == []


@pytest.mark.parametrize(
    "option",
    [
        {"model_path": "x"},
        {"is_embedding": True},
        {"skip_tokenizer_init": True},
        {"window_tokens": 0},
        {"window_tokens": "many"},
    ],
)
def test_options_that_are_not_the_users(option):
    with pytest.raises(OptionError):
        batch_sdk.create_engine("sglang", model="m", task="generate", options=option)


def wait_for(condition, process, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


# That the death is seen is in the next test too, and the end after the last restart in the unit tests.
@pytest.mark.parametrize(
    ("event", "code"), [pytest.param("scheduler dies", 1, marks=pytest.mark.full), ("ctrl-c", 130)]
)
def test_death_and_interruption_end_the_command_cleanly(tiny_model_dir, tmp_path, event, code):
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"text": PROMPTS * 400}), source)
    command = [sys.executable, "-m", "batch_sdk.cli", "generate", str(source), "-o", str(out), "--model"]
    options = ["--prompt", "{{ text }}", "--window-rows", "8", "--batch-rows", "8", "--max-new-tokens", "64"]
    options += ["--max-restarts", "0"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, str(tiny_model_dir), *options], stderr=stream, stdout=stream, start_new_session=True
        )
    family = psutil.Process(process.pid)
    wait_for(lambda: len(os.listdir(tmp_path)) == 3, process)  # the staging file: the engine is up
    time.sleep(2)
    engine = [p for p in family.children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]
    if event == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the engine's processes as well
    else:
        # SGLang renames its processes; the scheduler is the one with the weights.
        max(engine, key=lambda p: p.memory_info().rss).kill()
    begun = time.monotonic()
    assert process.wait(timeout=60) == code, log.read_text()[-3000:]
    assert time.monotonic() - begun < 15
    message = "interrupted" if event == "ctrl-c" else "error: a process of the engine died"
    assert f"arctic-batch: {message}" in log.read_text()
    _, alive = psutil.wait_procs(engine, timeout=5)
    assert alive == []
    assert sorted(os.listdir(tmp_path)) == ["in.parquet", "log"]


def test_a_scheduler_that_dies_is_started_again(tiny_model_dir, tmp_path):
    source, out, log = tmp_path / "in.parquet", tmp_path / "out", tmp_path / "log"
    table = pa.table({"id": range(96), "text": PROMPTS * 6})
    pq.write_table(table, source)
    command = [sys.executable, "-m", "batch_sdk.cli", "generate", str(source), "-o", str(out), "--model"]
    options = ["--prompt", "{{ text }}", "--window-rows", "8", "--batch-rows", "8", "--max-new-tokens", "8"]
    with log.open("w") as stream:
        process = subprocess.Popen([*command, tiny_model_dir, *options], stderr=stream, stdout=stream)
    family = psutil.Process(process.pid)
    wait_for(lambda: list(out.glob(".part-*")), process)
    engine = [p for p in family.children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]
    max(engine, key=lambda p: p.memory_info().rss).kill()
    try:
        assert process.wait(timeout=200) == 0, log.read_text()[-3000:]
    finally:
        children.kill([family])
    assert "1 restarts" in log.read_text()
    assert children.first_dead(engine) is not None
    done = pq.read_table(out / "part-00000.parquet")
    assert done.column("id").to_pylist() == list(range(96))
    assert done.column("error").null_count == 96


def test_an_sglang_that_does_not_fit_is_refused_before_anything_starts(tiny_model_dir, tmp_path, monkeypatch):
    from arctic_sglang.compat import source

    (tmp_path / "_version.py").write_text("__version__ = version = '0.5.17'\n")
    monkeypatch.setattr(source, "installed_root", lambda: tmp_path)
    before = children.pids()
    with pytest.raises(EngineError, match=r"(?s)\(batch\).*TokenizerManager is gone"):
        batch_sdk.create_engine("sglang", model=tiny_model_dir, task="generate").start()
    assert children.since(before) == []
