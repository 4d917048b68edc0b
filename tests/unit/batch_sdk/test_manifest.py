"""The manifest as data: there and back, and what makes two jobs different ones."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_sdk.errors import OutputError
from batch_sdk.job import EmbedJob, GenerateJob
from batch_sdk.manifest import Manifest, Part, describe_job, describe_schema, differences
from batch_sdk.sampling import SamplingParams
from batch_sdk.sources import base, open_source

TABLE = pa.table({"text": ["a", "ü", None], "n": [1, 2, 3]})


def describe(job=None, data=TABLE, engine="dummy", **options) -> Manifest:
    job = job or GenerateJob(model="m", prompt="say {{ text }}")
    return describe_job(job, open_source(data), engine=engine, engine_options=options, rows_per_file=10)


def test_there_and_back():
    job = GenerateJob(
        model="m", prompt="größer {{ text }}", keep=["n"], sampling=SamplingParams(stop="\n", temperature=0)
    )
    manifest = replace(describe(job, words=3), output_schema=describe_schema(TABLE.schema))
    manifest = manifest.with_part(Part("part-00000.parquet", 0, 3, 7, 8, {"null_input": 1}))
    assert Manifest.from_json(manifest.to_json(), "x") == manifest
    assert manifest.kept == ("n",)
    assert manifest.job["sampling"]["stop"] == ["\n"]
    assert (manifest.tally().prompt_tokens, manifest.tally().errors) == (7, {"null_input": 1})
    assert differences(Manifest.from_json(manifest.to_json(), "x"), describe(job, words=3)) == []


def test_a_part_replaces_the_one_of_its_name():
    parts = [Part("a", 0, 2), Part("b", 2, 3)]
    manifest = replace(describe(), parts=tuple(parts))
    changed = manifest.with_part(Part("a", 0, 2, errors={"rejected": 1}))
    assert [p.name for p in changed.parts] == ["a", "b"]
    assert changed.tally().errors == {"rejected": 1}
    assert (manifest.rows, changed.with_part(Part("c", 5, 1)).rows) == (5, 6)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "parts": 3}', "null"])
def test_damaged_manifests(text):
    with pytest.raises(OutputError, match="no manifest"):
        Manifest.from_json(text, "x")


def test_a_later_format_is_refused():
    text = describe().to_json().replace('"format": 2', '"format": 3')
    with pytest.raises(OutputError, match=r"has format 3.*wanted format 2 at most"):
        Manifest.from_json(text, "x")


GENERATE = {"model": "m", "prompt": "say {{ text }}"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": "tell {{ text }}"}, "prompt was 'say {{ text }}' and is 'tell {{ text }}'"),
        ({"model": "n"}, "model was 'm' and is 'n'"),
        ({"system": "x"}, "system was not given and is 'x'"),
        ({"keep": ["n"]}, "keep was not given and is ['n']"),
        ({"limit_rows": 2}, "limit_rows"),
        ({"chat": False}, "chat"),
        ({"response_column": "r"}, "response_column"),
        ({"sampling": SamplingParams(temperature=1)}, "temperature was not given and is 1"),
        ({"sampling": SamplingParams(stop=("a",))}, "stop was [] and is ['a']"),
    ],
)
def test_what_shapes_the_output_differs(change, says):
    found = differences(describe(), describe(GenerateJob(**{**GENERATE, **change})))
    assert len(found) == 1
    assert says in found[0]


def test_commands_engines_versions_and_columns_differ():
    embed = describe(EmbedJob(model="m", column="text"))
    assert differences(describe(), embed) == ["the command was 'generate' and is 'embed'"]
    assert differences(describe(), describe(engine="sglang")) == ["engine was 'dummy' and is 'sglang'"]
    assert differences(describe(revision="a"), describe()) == [
        "engine option revision was 'a' and is not given"
    ]
    pooled = [describe(embedding_pooling=kind) for kind in ("cls", "mean")]
    assert differences(*pooled) == ["engine option embedding_pooling was 'cls' and is 'mean'"]
    old = replace(describe(), versions={**describe().versions, "sglang": "0.4"})
    assert "the version of sglang was '0.4'" in differences(old, describe())[0]
    columns = describe_schema(TABLE.schema)
    one, other = (replace(describe(), output_schema=c) for c in (columns, columns[::-1]))
    assert differences(one, other) == ["the order of the columns"]
    assert differences(one, replace(other, output_schema=())) == []
    cast = replace(other, output_schema=(("text", "string"), ("n", "int32")))
    assert differences(one, cast) == ["the type of column 'n' was 'int64' and is 'int32'"]


PACE = (
    "tp_size dp_size pp_size ep_size ulysses_sequence_parallel_size embedding_replicas nnodes node_rank dist_init_addr "
    "base_gpu_id mem_fraction_static max_running_requests max_total_tokens chunked_prefill_size max_prefill_tokens "
    "schedule_policy schedule_conservativeness window_tokens embedding_step_tokens enable_fast_embedding page_size "
    "attention_backend sampling_backend disable_cuda_graph cuda_graph_bs_decode enable_torch_compile random_seed "
    "disable_radix_cache enable_hierarchical_cache hicache_ratio cpu_offload_gb speculative_algorithm suffix_max_depth "
    "speculative_draft_model_path enable_shift_parallel log_level decode_log_interval show_time_cost enable_metrics "
    "port nccl_port download_dir cpu_threads_per_rank watchdog_timeout custom_sigquit_handler"
).split()
SHAPING = (
    "revision tokenizer_path tokenizer_mode tokenizer_backend chat_template dtype quantization kv_cache_dtype "
    "context_length json_model_override_args embedding_pooling allow_auto_truncate preferred_sampling_params "
    "lora_paths load_format model_impl grammar_backend constrained_json_disable_any_whitespace swiftkv_min_tokens "
    "torchao_config speculative_accept_threshold_acc speculative_accept_threshold_single sampling_defaults "
    "an_option_of_tomorrow"
).split()


@pytest.mark.parametrize("option", PACE)
def test_pace_may_differ(option):
    fast = GenerateJob(**GENERATE, window_rows=7, batch_rows=3)
    then, now = describe(engine="sglang", **{option: 1}), describe(fast, engine="sglang", **{option: 2})
    assert differences(then, now) == []
    assert differences(then, describe(engine="sglang")) == []


@pytest.mark.parametrize("option", SHAPING)
def test_engine_options_that_shape_the_rows_differ(option):
    then, now = (describe(engine="sglang", **{option: value}) for value in (1, 2))
    assert differences(then, now) == [f"engine option {option} was 1 and is 2"]
    assert differences(then, describe(engine="sglang")) == [f"engine option {option} was 1 and is not given"]
    assert differences(then, then) == []


def test_which_options_shape_the_rows_is_the_engines_own():
    for name in ("url", "timeout_seconds", "max_retries", "seed"):
        assert differences(describe(engine="http", **{name: 1}), describe(engine="http", **{name: 2})) == []
    assert differences(describe(seed=1, die_after_requests=5), describe(seed=2, fail_on="x")) == []
    for name in ("words", "broken_json", "max_input_tokens"):
        assert differences(describe(**{name: 1}), describe(**{name: 2})) == [
            f"engine option {name} was 1 and is 2"
        ]
    own = [describe(engine="mine:Engine", seed=seed) for seed in (1, 2)]
    assert differences(*own) == ["engine option seed was 1 and is 2"]


def test_manifests_of_format_1_go_on():
    old = (
        describe(engine="sglang", tp_size=2, dtype="bfloat16").to_json().replace('"format": 2', '"format": 1')
    )
    then = Manifest.from_json(old, "x")
    assert then.format == 1
    assert differences(then, describe(engine="sglang", tp_size=4, dtype="bfloat16")) == []
    assert differences(then, describe(engine="sglang")) == [
        "engine option dtype was 'bfloat16' and is not given"
    ]
    # What it says of a started engine: nothing, whatever the engine's options.
    started = replace(describe(engine="sglang"), format=1)
    assert differences(started, describe(engine="sglang", dtype="bfloat16")) == []
    assert Manifest.from_json(started.to_json(), "x") == started


def test_secrets_are_not_written_down():
    text = describe(api_key="s3cret", headers={"a": "s3cret"}, max_total_tokens=77).to_json()
    assert "s3cret" not in text
    assert "77" in text
    urls = ["https://me:s3cret@one/v1", "http://two:80/a@b", "s3cret@"]
    manifest = describe(engine="http", url=urls, more={"url": urls[0]})
    assert manifest.engine_options == {
        "url": ["https://one/v1", "http://two:80/a@b", "s3cret@"],
        "more": {"url": "https://one/v1"},
    }


def test_options_that_are_no_data_are_told_by_their_type():
    hooked = describe(hook=test_damaged_manifests)
    assert hooked.engine_options == {"hook": {"$object": f"{__name__}:test_damaged_manifests"}}
    assert Manifest.from_json(hooked.to_json(), "x") == hooked
    assert differences(hooked, describe(hook=test_damaged_manifests)) == []
    assert "engine option hook was" in differences(hooked, describe(hook=TABLE))[0]


def test_names_that_are_no_utf_8_come_back(tmp_path):
    manifest = replace(describe(), input={"files": [{"path": "caf\udce9.parquet"}]})
    path = tmp_path / "m.json"
    path.write_text(manifest.to_json(), encoding="utf-8")
    assert Manifest.from_json(path.read_text(encoding="utf-8"), "x") == manifest


def test_tables_are_known_by_their_contents():
    same = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(0, 0), TABLE.slice(1)])
    assert open_source(same).fingerprint() == open_source(TABLE).fingerprint()
    assert open_source(TABLE.to_batches()[0]).fingerprint() == open_source(TABLE).fingerprint()
    views = TABLE.set_column(0, "text", TABLE["text"].cast(pa.string_view()))
    pieces = pa.concat_tables([views.slice(0, 1), views.slice(1)])
    assert open_source(views).fingerprint() == open_source(pieces).fingerprint()
    for other in (
        TABLE.slice(1),
        TABLE.rename_columns(["text", "m"]),
        TABLE.set_column(1, "n", pa.array([1, 2, 4])),
        TABLE.set_column(0, "text", pa.array(["a", None, "ü"])),
        TABLE.set_column(1, "n", pa.array([1, 2, 3], pa.int32())),
    ):
        found = differences(describe(), describe(data=other))
        assert found, other
        assert "input's" in found[0]
    frame = pl.DataFrame({"text": ["a", "b"]})
    assert open_source(frame).fingerprint() == open_source(frame.clone()).fingerprint()
    assert open_source(frame).fingerprint() != open_source(frame.reverse()).fingerprint()
    empty = pa.table({"text": pa.array([], pa.string())})
    assert open_source(empty).fingerprint()["rows"] == 0


def test_streams_and_queries_cannot_be_recognised():
    for data in (TABLE.to_reader(), pl.from_arrow(TABLE).lazy()):
        manifest = describe(data=data)
        assert manifest.input is None
        assert "cannot be recognised" in differences(manifest, manifest)[0]


def test_changed_files_are_named(tmp_path):
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for path in paths:
        pq.write_table(TABLE, path)
    before = describe(data=paths)
    assert differences(before, describe(data=paths)) == []
    assert "order" in differences(before, describe(data=paths[::-1]))[0]
    assert differences(before, describe(data=paths[:1])) == [f"input file {str(paths[1])!r} is gone"]
    assert differences(describe(data=paths[:1]), before) == [f"input file {str(paths[1])!r} is new"]
    assert differences(before, describe()) == ["the input was files and is a table in memory"]
    pq.write_table(TABLE.slice(1), paths[0])
    (found,) = differences(before, describe(data=paths))
    assert "a.parquet" in found
    assert "has changed" in found
    assert "rows 3" in found


@pytest.mark.parametrize("start", range(13))
def test_sources_begin_at_any_row(tmp_path, start):
    table = pa.table({"text": [f"t{i}" for i in range(11)], "n": range(11)})
    for name, part in (("a", table.slice(0, 7)), ("b", table.slice(0, 0)), ("c", table.slice(7))):
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=3)
    for data in (tmp_path, table, pl.from_arrow(table), pl.from_arrow(table).lazy(), table.to_reader()):
        batches = list(open_source(data).batches_from(["n"], 2, start))
        assert all(b.schema.names == ["n"] for b in batches)
        assert [n for b in batches for n in b.column(0).to_pylist()] == list(range(start, 11)), type(data)


def test_skipped_files_and_row_groups_are_not_read(tmp_path):
    table = pa.table({"text": [f"{i} " + "x" * 100 for i in range(60)]})
    for name, part in (("a", table.slice(0, 30)), ("b", table.slice(30))):
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=10, use_dictionary=False)
    source = open_source(tmp_path)
    for name, keep_from in (("a", None), ("b", 2)):
        path = tmp_path / f"{name}.parquet"
        meta = pq.read_metadata(path)
        data = bytearray(path.read_bytes())
        stop = len(data) if keep_from is None else meta.row_group(keep_from).column(0).data_page_offset
        data[4:stop] = b"\0" * (stop - 4)
        path.write_bytes(bytes(data))
    (batch,) = source.batches_from(["text"], 100, 55)
    assert [text.split()[0] for text in batch.column(0).to_pylist()] == ["55", "56", "57", "58", "59"]


def test_a_fingerprint_does_not_depend_on_the_cut(monkeypatch):
    monkeypatch.setattr(base, "HASHED_ROWS", 4)
    table = pa.concat_tables([TABLE] * 7)
    for cut in (
        table.combine_chunks(),
        pa.concat_tables([table.slice(0, 5), table.slice(5)]).combine_chunks(),
    ):
        assert open_source(cut).fingerprint() == open_source(table).fingerprint()


def test_a_fingerprint_takes_a_part_of_the_table_at_a_time():
    table = pa.table({"text": pa.array(["x" * 5_000] * 16_384, pa.large_string())})
    source = open_source(table)
    before, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        source.fingerprint()
    finally:
        pa.set_memory_pool(before)
    assert 0 < counted.max_memory() < 0.6 * table.nbytes


def test_a_fingerprint_of_more_than_a_batch_can_hold(monkeypatch):
    concat = pa.concat_batches

    def small(pieces):
        if sum(piece.num_rows for piece in pieces) > 2:
            raise pa.ArrowInvalid("offset overflow")
        return concat(pieces)

    monkeypatch.setattr(pa, "concat_batches", small)
    table = pa.concat_tables([TABLE] * 3)
    found = open_source(table).fingerprint()
    assert found["rows"] == 9
    assert open_source(table.combine_chunks()).fingerprint() == found
    assert open_source(table.slice(1)).fingerprint() != found
