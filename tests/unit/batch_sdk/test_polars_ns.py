"""`frame.arctic` on Polars: order, what is pushed below the model, dtypes, and who starts the engine."""

from __future__ import annotations

import datetime as dt
import gc
import subprocess
import sys

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import batch_sdk
import batch_sdk.polars_ns
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import ColumnError, EngineError, OptionError
from batch_sdk.polars_lazy import EngineLender, split_predicate

N = 1003
ENGINES = ["in-memory", "streaming"]


def frame(rows: int = N) -> pl.DataFrame:
    texts = [None if i % 97 == 5 else f"text {i % 10} ü {i}" for i in range(rows)]
    return pl.DataFrame({"id": range(rows), "text": texts, "kind": [i % 3 for i in range(rows)]})


@pytest.fixture
def expected(jobs):
    return jobs.embed(frame())


class Recording(DummyEngine):
    """Counts starts and closes, and remembers every text that reached it."""

    made: list[Recording]

    def __init__(self, **kw):
        super().__init__(**kw)
        self.texts: list[str] = []
        self.starts = self.closes = 0
        type(self).made.append(self)

    def start(self):
        self.starts += 1
        super().start()

    def close(self):
        self.closes += 1
        super().close()

    def submit(self, requests):
        for request in requests:
            self.texts += getattr(request, "texts", None) or [request.prompt]
        super().submit(requests)


@pytest.fixture
def made(monkeypatch):
    """The engines that queries started, in order."""
    monkeypatch.setattr(Recording, "made", [], raising=False)
    monkeypatch.setattr("batch_sdk.engines.dummy.DummyEngine", Recording)
    return Recording.made


def lazy(rows: int = N, **kw) -> pl.LazyFrame:
    return frame(rows).lazy().arctic.embed("text", model="dummy-model", engine="dummy", **kw)


def test_eager_is_batch_sdk(expected):
    options = {"model": "dummy-model", "engine": "dummy", "progress": False}
    assert_frame_equal(frame().arctic.embed("text", **options), expected)
    out = frame().arctic.generate("say {{ id }}", max_new_tokens=2, **options)
    assert_frame_equal(out, batch_sdk.generate(frame(), prompt="say {{ id }}", max_new_tokens=2, **options))
    with pytest.raises(OptionError, match="did you mean 'normalize'"):
        frame().arctic.embed("text", normalise=True, **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_lazy_is_eager_with_its_order(expected, engine):
    out = lazy(batch_rows=50, window_rows=70, engine_options={"shuffle": True})
    assert_frame_equal(out.collect(engine=engine), expected)
    out = frame().lazy().arctic.generate("{{ id }}", model="dummy-model", engine="dummy", max_new_tokens=3)
    wanted = batch_sdk.generate(
        frame(), prompt="{{ id }}", model="dummy-model", engine="dummy", max_new_tokens=3, progress=False
    )
    assert out.collect_schema() == wanted.schema
    assert_frame_equal(out.collect(engine=engine), wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one(engine, rows, made):
    out = lazy(rows, size=16).collect(engine=engine)
    assert out.shape == (rows, 6)
    assert out.schema == lazy(rows).collect_schema()


@pytest.mark.parametrize("engine", ENGINES)
def test_filters_on_input_columns_go_below_the_model(expected, made, engine):
    out = lazy(size=16).filter(pl.col("id") >= 900, pl.col("prompt_tokens") == 4).filter(pl.col("kind") == 1)
    wanted = expected.filter(pl.col("id") >= 900, pl.col("prompt_tokens") == 4, pl.col("kind") == 1)
    assert 0 < wanted.height < 40
    assert_frame_equal(out.collect(engine=engine), wanted)
    below = frame().filter(pl.col("id") >= 900, pl.col("kind") == 1, pl.col("text").is_not_null())
    assert made[-1].texts == below["text"].to_list()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "step",
    [
        lambda f: f.filter(pl.col("embedding").arr.get(0) > 0),
        lambda f: f.filter((pl.col("id") > 500) | (pl.col("prompt_tokens") == 3)),
        lambda f: f.filter(pl.col("error").is_not_null()),
        lambda f: f.filter(pl.col("id").cum_sum() < 90, pl.col("kind") == 1),
        lambda f: f.filter(pl.col("id") > pl.col("id").mean()),
        lambda f: f.filter(pl.col("text").is_first_distinct() & (pl.col("kind") == 0)),
        lambda f: f.filter(pl.col("id").is_between(3, 90)).head(7),
        lambda f: f.head(90).filter(pl.col("id") > 80),
        lambda f: f.slice(10, 20).filter(pl.col("kind") == 2),
        lambda f: f.tail(4),
        lambda f: f.select("kind", pl.col("embedding").arr.sum()),
        lambda f: f.filter(pl.col("prompt_tokens") > 2).select("id"),
        lambda f: f.select(pl.len()),
        lambda f: f.filter(pl.col("id") < 0),
        lambda f: f.head(0),
        lambda f: f.filter(pl.lit(False)),
        lambda f: f.filter(pl.col("kind").replace({1: None}).is_null()),
        lambda f: f.with_row_index().filter(pl.col("index") > 1000),
        lambda f: f.sort("id", descending=True).head(3),
        lambda f: f.join(f.filter(pl.col("id") < 5), on="id", maintain_order="left"),
        lambda f: f.group_by("kind").agg(pl.col("prompt_tokens").sum()).sort("kind"),
    ],
)
def test_what_follows_gives_what_it_gives_on_the_whole_table(expected, engine, step):
    assert_frame_equal(step(lazy(batch_rows=64)).collect(engine=engine), step(expected.lazy()).collect())


@pytest.mark.parametrize("engine", ENGINES)
def test_head_and_a_filter_before_limit_what_is_read(made, engine):
    source = frame().lazy().filter(pl.col("text").is_not_null(), pl.col("kind") == 0)
    lazy_out = source.arctic.embed("text", model="m", engine="dummy", size=16)
    out = lazy_out.head(5).filter(pl.col("id") > 3).collect(engine=engine)
    assert out["id"].to_list() == [6, 9, 12]
    assert made[-1].texts == [f"text {i % 10} ü {i}" for i in (6, 9, 12)]


def test_a_query_without_a_new_column_starts_no_engine(made):
    out = lazy(size=16).filter(pl.col("id") > 1000).select("kind", "id").collect()
    assert_frame_equal(out, frame().filter(pl.col("id") > 1000).select("kind", "id"))
    assert all(engine.starts == 0 for engine in made)


def test_only_what_is_needed_is_kept(made):
    with Recording(model="m", task="generate", options={}) as engine:
        query = frame().lazy().arctic.generate("{{ text }}", model=engine).select("response")
        assert query.collect().height == N
        assert "id" not in query.collect().columns


@pytest.mark.parametrize("size", [16, None])
def test_who_starts_and_closes(made, size):
    query = lazy(size=size)
    starts = lambda: sum(engine.starts for engine in made)  # noqa: E731
    running = lambda: sum(engine.started for engine in made)  # noqa: E731
    assert starts() == 0
    query.collect_schema()
    query.collect_schema()
    assert starts() == running() == (size is None)
    query.sink_parquet("/dev/null")
    assert (starts(), running()) == (1, 0)
    query.collect()
    assert (starts(), running()) == (2, 0)


def test_an_engine_started_for_the_schema_alone_ends_with_the_query(made):
    query = lazy()
    query.collect_schema()
    assert [engine.started for engine in made][-1]
    del query
    gc.collect()
    assert not any(engine.started for engine in made)


def test_a_given_engine_is_left_running_and_clean(made):
    with Recording(model="m", task="embed", options={"shuffle": True}) as engine:
        query = frame().lazy().arctic.embed("text", model=engine, batch_rows=16, window_rows=64)
        for _ in range(2):
            stopped = iter(query.collect_batches(chunk_size=16, maintain_order=True))
            next(stopped)
            del stopped
            gc.collect()
            assert len(engine.texts) < N / 2, "read on after the query stopped"
            engine.texts.clear()
            assert query.filter(pl.col("error").is_null()).collect().height == N - 11
            engine.texts.clear()
        assert engine.started
        assert engine.starts == 1


def test_one_engine_in_two_parts_at_once_is_refused(made, monkeypatch):
    monkeypatch.setattr("batch_sdk.polars_lazy._LET_GO_SECONDS", 0.05)
    with Recording(model="m", task="embed", options={}) as engine:
        query = frame().lazy().arctic.embed("text", model=engine)
        with EngineLender(given=engine).lend(), pytest.raises(EngineError, match="two parts"):
            query.collect()
        assert query.collect().height == N


def test_an_engine_of_a_query_that_polars_keeps_ends_with_the_process():
    code = """
import polars as pl
from batch_sdk.engines.dummy import DummyEngine
import batch_sdk
class Loud(DummyEngine):
    def close(self):
        print("closed")
        super().close()
import batch_sdk.engines.dummy as dummy
dummy.DummyEngine = Loud
frame = pl.LazyFrame({"text": ["a b"] * 1000})
query = frame.arctic.embed("text", model="m", engine="dummy", size=16, batch_rows=8, window_rows=64)
batches = iter(query.collect_batches(chunk_size=8, maintain_order=True))
next(batches)
print("stops early")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["stops early", "closed"], done.stderr


def test_sink_parquet(tmp_path, expected):
    frame().write_parquet(tmp_path / "in.parquet", row_group_size=100)
    query = pl.scan_parquet(tmp_path / "in.parquet").arctic.embed("text", model="m", engine="dummy")
    query.sink_parquet(tmp_path / "out.parquet")
    assert_frame_equal(pl.read_parquet(tmp_path / "out.parquet"), expected)


def test_dtypes_round_trip():
    rows = 40
    kinds = pl.Enum(["a", "b", "c"])
    table = pl.DataFrame(
        {
            "text": pl.Series([f"t{i % 7}" for i in range(rows)], dtype=pl.Categorical),
            "enum": pl.Series(["abc"[i % 3] for i in range(rows)], dtype=kinds),
            "when": [dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=i) for i in range(rows)],
            "day": [dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(rows)],
            "took": [dt.timedelta(microseconds=i) for i in range(rows)],
            "small": pl.Series(range(rows), dtype=pl.UInt8),
            "money": pl.Series([f"{i}.25" for i in range(rows)]).cast(pl.Decimal(10, 2)),
            "list": [[i, None] for i in range(rows)],
            "struct": [{"x": i, "y": "ü"} for i in range(rows)],
            "raw": [b"\x00\xff"] * rows,
            "null": [None] * rows,
        }
    ).with_columns(pl.col("when").cast(pl.Datetime("ms", "Europe/Berlin")))
    query = table.lazy().arctic.embed("text", model="m", engine="dummy", batch_rows=7)
    for engine in ENGINES:
        out = query.collect(engine=engine)
        assert_frame_equal(out.select(table.columns), table)
        picked = (
            query.filter(pl.col("enum") == "b", pl.col("text") == "t1").select("when").collect(engine=engine)
        )
        wanted = table.filter(pl.col("enum") == "b", pl.col("text") == "t1").select("when")
        assert wanted.height > 1
        assert_frame_equal(picked, wanted)


def test_mistakes_are_found_when_the_query_is_written():
    source = frame().lazy()
    options = {"model": "m", "engine": "dummy"}
    with pytest.raises(ColumnError, match="did you mean 'text'"):
        source.arctic.embed("txt", **options)
    with pytest.raises(ColumnError, match="did you mean 'kind'"):
        source.arctic.generate("{{ kid }}", **options)
    with pytest.raises(OptionError, match="sink_parquet"):
        source.arctic.embed("text", output="x.parquet", **options)
    with pytest.raises(OptionError, match="head"):
        source.arctic.generate("{{ text }}", limit_rows=3, **options)
    with pytest.raises(OptionError, match="did you mean 'temperature'"):
        source.arctic.generate("{{ text }}", temprature=3, **options)
    with pytest.raises(OptionError, match="did you mean 'normalize'"):
        source.arctic.embed("text", normalise=True, **options)
    with pytest.raises(OptionError, match="size=0"):
        source.arctic.embed("text", size=0, **options)
    with pytest.raises(OptionError, match="did you mean 'words'"):
        source.arctic.embed("text", engine_options={"wrds": 1}, **options)
    with pytest.raises(OptionError, match="not started"):
        source.arctic.embed("text", model=DummyEngine(model="m", task="embed", options={}))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_goes_wrong_later_is_raised_by_the_query(engine, made):
    with pytest.raises(OptionError, match="size=17; wanted 16"):
        lazy(size=17).collect(engine=engine)
    with pytest.raises(EngineError, match="died after 3 requests"):
        lazy(size=16, engine_options={"die_after_requests": 3}).collect(engine=engine)
    assert not any(started.started for started in made)


def test_predicates_are_split():
    a, b, c = pl.col("a") > 1, pl.col("b") < 2, pl.col("c").is_null()
    early, late = split_predicate(a & (c & b), ("a", "b"))
    assert early.meta.eq(a & b)
    assert late.meta.eq(c)
    early, late = split_predicate(a | c, ("a", "b"))
    assert early is None
    assert late.meta.eq(a | c)
    assert split_predicate(None, ("a",)) == (None, None)


@pytest.mark.parametrize("order", ["batch_sdk, polars", "polars, batch_sdk"])
def test_the_namespace_is_there_in_any_order_of_imports(order):
    check = f"import {order}; assert polars.LazyFrame.arctic and polars.DataFrame.arctic"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
