"""Datasets in, batches out: what is neither a table nor a file name."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import batch_sdk
from batch_sdk.errors import ColumnError, OptionError, OutputError, SourceError

SMALL = {"model": "m", "engine": "dummy", "progress": False, "window_rows": 8, "batch_rows": 5}


@pytest.fixture
def folder(tmp_path):
    for year, rows in ((2023, 13), (2024, 0), (2025, 30)):
        (tmp_path / f"year={year}").mkdir()
        table = pa.table(
            {"id": range(rows), "text": [f"{year} ü {i}" for i in range(rows)], "unused": [0.5] * rows}
        )
        pq.write_table(table, tmp_path / f"year={year}" / "a.parquet", row_group_size=7)
    return tmp_path


def generate(data, **options):
    return batch_sdk.generate(data, prompt="{{ text }}", **{**SMALL, **options})


def test_a_dataset_with_partitions_and_a_filter(folder):
    data = ds.dataset(folder, partitioning="hive").filter(pc.field("id").isin(range(0, 30, 3)))
    out = generate(data, keep=["year", "id"])
    assert out.select(["year", "id"]).to_pydict() == {
        "year": [2023] * 5 + [2025] * 10,
        "id": [*range(0, 13, 3), *range(0, 30, 3)],
    }
    assert out["error"].null_count == 15
    assert batch_sdk.embed(data, column="text", block_rows=3, **SMALL).num_rows == 15


def test_only_wanted_columns_are_read(folder, monkeypatch):
    seen = []
    scanner = ds.FileSystemDataset.scanner
    data = ds.dataset(folder, partitioning="hive")

    class Noting:
        format, schema = data.format, data.schema

        def scanner(self, **options):
            seen.append(options["columns"])
            return scanner(data, **options)

    source = batch_sdk.sources.open_source(data)
    source._dataset = Noting()
    assert generate(source, keep=["id"]).num_rows == 43
    assert [sorted(columns) for columns in seen] == [["id", "text"]]


@pytest.mark.parametrize("kind", ["memory", "csv", "union", "empty"])
def test_other_datasets(tmp_path, kind):
    table = pa.table({"text": ["a", "b", None]})
    if kind == "csv":
        (tmp_path / "a.csv").write_text("text\na\nb\nc\n")
        data = ds.dataset(tmp_path / "a.csv", format="csv")
    elif kind == "union":
        data = ds.dataset([ds.dataset(table), ds.dataset(table)])
    else:
        data = ds.dataset(table.slice(0, 0) if kind == "empty" else table)
    assert generate(data).num_rows == {"memory": 3, "csv": 3, "union": 6, "empty": 0}[kind]


def test_what_a_dataset_cannot_do(folder, tmp_path):
    data = ds.dataset(folder, partitioning="hive")
    with pytest.raises(ColumnError, match="needs column 'nothing'"):
        batch_sdk.generate(data, prompt="{{ nothing }}", **SMALL)
    with pytest.raises(OutputError, match="the input's own place"):
        generate(data, output=folder)
    out = tmp_path / "out"
    assert generate(data, output=out).rows == 43
    with pytest.raises(OutputError):
        generate(data, output=out, resume=True)
    (folder / "year=2025" / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match="the dataset cannot be read"):
        generate(data)


def test_batches_go_to_a_function_in_order_and_the_job_waits():
    table = pa.table({"id": range(43), "text": ["t"] * 43})
    seen, ahead = [], []

    def source():
        for start in range(0, 43, 5):
            ahead.append(start)
            yield table.slice(start, 5).to_batches()[0]

    def take(batch):
        seen.append(batch)
        assert len(ahead) <= len(seen) + 3  # two are in the window of 8 rows, one is being opened

    summary = generate(pa.RecordBatchReader.from_batches(table.schema, source()), output=take)
    assert (summary.rows, summary.output) == (43, None)
    assert [batch.num_rows for batch in seen] == [5] * 8 + [3]
    assert pa.Table.from_batches(seen).equals(generate(table))


def test_nothing_to_hand_on_and_a_function_that_fails():
    seen = []
    assert generate(pa.table({"text": pa.array([], pa.string())}), output=seen.append).rows == 0
    assert seen == []

    def full(batch):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        generate(pa.table({"text": ["a"]}), output=full)
    with pytest.raises(OptionError, match="with a function as the output"):
        generate(pa.table({"text": ["a"]}), output=seen.append, resume=True)
    with pytest.raises(OutputError, match="of type int; wanted a path, a function"):
        generate(pa.table({"text": ["a"]}), output=3)
