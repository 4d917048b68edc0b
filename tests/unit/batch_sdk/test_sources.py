"""Files of every kind in: the same rows whatever the format, bounded blocks, and errors that say where."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_sdk.errors import SourceError
from batch_sdk.executors.ray import _rows
from batch_sdk.kinds import Format, format_of
from batch_sdk.sources import csv as csv_source
from batch_sdk.sources import jsonl, open_source
from batch_sdk.sources.files import File

TEXTS = ["plain", "zwei\nZeilen", 'a "quoted", one', "日本 🎌", "\u2028", "2024-01-01", "", "NA", "x" * 5000]
TABLE = pa.table({"id": list(range(9)), "text": TEXTS, "score": [0.5, None, *([1.25] * 7)]})
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def to_jsonl(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()


def to_csv(table: pa.Table, delimiter: str = ",") -> bytes:
    out = pa.BufferOutputStream()
    pc.write_csv(table, out, pc.WriteOptions(delimiter=delimiter))
    return out.getvalue().to_pybytes()


def to_ipc(table: pa.Table, make=pa.ipc.new_file) -> bytes:
    out = pa.BufferOutputStream()
    with make(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return out.getvalue().to_pybytes()


def to_feather(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pyarrow.feather.write_feather(table, out, compression="zstd", chunksize=4)
    return out.getvalue().to_pybytes()


def to_parquet(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=4)
    return out.getvalue().to_pybytes()


PLAIN = {
    "t.parquet": to_parquet,
    "t.arrow": to_ipc,
    "t.feather": to_feather,
    "t.ipc": to_ipc,
    "t.arrows": lambda table: to_ipc(table, pa.ipc.new_stream),
    "stream.arrow": lambda table: to_ipc(table, pa.ipc.new_stream),
    "t.jsonl": to_jsonl,
    "t.ndjson": to_jsonl,
    "T.CSV": to_csv,
    "t.tsv": lambda table: to_csv(table, "\t"),
}
KINDS = {f"{name}{end}": (make, end) for name, make in PLAIN.items() for end in COMPRESS if not end} | {
    f"{name}{end}": (PLAIN[name], end) for name in ("t.jsonl", "T.CSV", "t.tsv") for end in COMPRESS
}


def read(spec, columns=None, max_rows: int = 4) -> pa.Table:
    source = open_source(spec)
    columns = columns or source.schema.names
    batches = list(source.batches(columns, max_rows))
    schema = pa.schema([source.schema.field(name) for name in columns])
    return pa.Table.from_batches(batches, schema=schema)


def put(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_rows(tmp_path, name):
    make, end = KINDS[name]
    path = put(tmp_path / name, COMPRESS[end](make(TABLE)))
    source = open_source(path)
    assert source.paths == (path,)
    assert read(path).to_pydict() == TABLE.to_pydict()
    assert source.num_rows in (9, None)
    assert (source.num_rows == 9) == name.endswith(("parquet", "t.arrow", "feather", "ipc"))
    # Projection, in an order that is not the file's, and again from the same source.
    for columns in (["text"], ["score", "id"]):
        for _ in range(2):
            got = pa.Table.from_batches(source.batches(columns, 2))
            assert got.to_pydict() == {c: TABLE.column(c).to_pylist() for c in columns}
    memory = f"memory://kinds/{name}"
    with fsspec.open(memory, "wb") as file:
        file.write(path.read_bytes())
    source = open_source(memory)
    assert (source.paths, source.urls) == ((), (f"memory:///kinds/{name}",))
    assert read(memory).to_pydict() == TABLE.to_pydict()
    assert read(f"file://{path}").to_pydict() == TABLE.to_pydict()
    assert open_source(f"file://{path}").paths == (path,)


@pytest.mark.parametrize("name", PLAIN)
def test_only_wanted_columns_are_made(tmp_path, name):
    source = open_source(put(tmp_path / name, PLAIN[name](TABLE)))
    (file,) = source._files
    for wanted in (["text"], ["score", "id"]):
        for batch in source._read(file, wanted, 4):
            assert sorted(batch.schema.names) == sorted(wanted)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_blocks_cut_anywhere(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", max(block, 40))
    count = 50
    table = pa.table({"id": list(range(count)), "text": [f"näme\n{i}" for i in range(count)]})
    for ending in (b"\n", b"\r\n"):
        data = PLAIN[name](table) if name in PLAIN else to_csv(table)
        if name == "t.jsonl":
            data = data.replace(b"\n", ending + b"  " + ending + ending)
        path = put(tmp_path / name, b"\xef\xbb\xbf" + data.rstrip(b"\r\n"))
        assert read(path).to_pydict() == table.to_pydict()


def test_a_long_file_is_read_block_by_block(tmp_path):
    rows = 40_000
    line = json.dumps({"text": "word " * 60, "other": "y" * 300}) + "\n"
    path = put(tmp_path / "long.jsonl.gz", gzip.compress((line * rows).encode(), 1))
    before = pa.total_allocated_bytes()
    peak, seen = 0, 0
    for batch in open_source(path).batches(["text"], 1024):
        seen += batch.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert seen == rows
    assert peak < 16 << 20, "the file holds 26 MB of text"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text()), min_size=1, max_size=20),
    block=st.integers(1, 300),
    data=st.data(),
)
def test_any_text_survives_any_block(rows, block, data):
    ascii_only = data.draw(st.booleans())
    text = "\n".join(json.dumps({"n": n, "t": t}, ensure_ascii=ascii_only) for n, t in rows)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(jsonl, "_BLOCK_BYTES", block)
        path = put(Path(folder) / "t.jsonl", text.encode())
        assert read(path).to_pydict() == {"n": [n for n, _ in rows], "t": [t for _, t in rows]}


def test_strings_stay_strings(tmp_path):
    rows = ['{"when": "2024-01-01", "in": {"t": ["2024-01-01T00:00:00"]}}', '{"when": "soon", "in": null}']
    got = read(put(tmp_path / "t.jsonl", "\n".join(rows).encode()))
    assert got.to_pydict() == {"when": ["2024-01-01", "soon"], "in": [{"t": ["2024-01-01T00:00:00"]}, None]}


def lines(*rows: str) -> bytes:
    return "".join(row + "\n" for row in rows).encode()


LONG = 9007199254740993  # 2**53 + 1
GOOD = ['{"id": 1, "text": "a"}'] * 3
BAD_LINES = {
    '{"id": "x", "text": "a"}': "number to string",
    '{"id": 1.5, "text": "a"}': "1.5",
    '{"id": 2, "text": 7}': "string to number",
    '{"id": 2, "text": "a", "new": 1}': "unexpected field 'new'.*keep",
    '{"id": 2, "text": "a", "new": nonsense}': "unexpected field|Invalid value",
    '{"id": 2, "id": 3}': "twice",
    '{"id": 2, "text": "cut': "quotation",
    "null": "not a JSON object",
    "[1]": "not a JSON object",
    "hello": "not a JSON object",
    '{"id": 2} {"id": 3}': "exactly one",
    '{"id": 2} null {"id": 3}': "exactly one",
}


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_jsonl_that_does_not_fit_names_file_and_line(tmp_path, monkeypatch, bad, block):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    put(tmp_path / "a.jsonl", lines(*GOOD, *GOOD))
    put(tmp_path / "b.jsonl", lines(*GOOD, "", bad, *GOOD))
    with pytest.raises(SourceError, match=BAD_LINES[bad]) as caught:
        read(str(tmp_path / "*.jsonl"))
    assert "b.jsonl', line 5:" in str(caught.value)


def test_columns_that_nobody_reads_may_come_later(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 16)
    path = put(tmp_path / "t.jsonl", lines(*GOOD, '{"new": {"x": 1}, "text": "b", "id": "odd"}'))
    assert read(path, ["text"]).to_pydict() == {"text": ["a", "a", "a", "b"]}


def test_lists_of_nothing_but_nulls(tmp_path):
    rows = [{"x": [None, None]}, {"x": [None]}, {"x": None}, {"x": []}]
    path = put(tmp_path / "t.jsonl", lines(*map(json.dumps, rows)))
    assert read(path).to_pylist() == rows
    path = put(tmp_path / "t.jsonl", lines(*map(json.dumps, rows), '{"x": [7]}'))
    assert read(path)["x"].to_pylist()[-1] == [7]


def test_named_columns_let_others_come_and_go(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 16)
    path = put(tmp_path / "t.jsonl", lines(*GOOD, '{"new": {"x": 1}, "text": "b", "id": 4}'))
    assert jobs.generate(path, keep=["id"])["id"].to_pylist() == [1, 1, 1, 4], "id and text are all there is"
    assert jobs.generate(path, keep=[]).num_rows == 4
    with pytest.raises(SourceError, match="line 4: unexpected field 'new'"):
        jobs.generate(path)


@pytest.mark.parametrize("columns", [["m"], ["m", "id"], ["list"], ["e"]])
@pytest.mark.parametrize("block", [16, 110])
def test_fields_inside_a_column_that_is_read_are_not_dropped(tmp_path, monkeypatch, columns, block):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    row = {"id": 1, "m": {"a": 1, "n": {"x": None}}, "list": [{"a": 1}], "e": {}}
    late = [
        row | {"m": {"a": 1, "b": 2}, "list": [None, {"a": 1, "b": 2}], "e": {"b": 2}, "new": 3},
        {"id": 2},
    ]
    some, all_ = [json.dumps(row | {"odd": 3})] * 3, [json.dumps(row)] * 3
    path = put(tmp_path / "t.jsonl", lines(*some, *all_))
    assert read(path, columns).to_pylist() == [{name: row[name] for name in columns}] * 6
    path = put(tmp_path / "t.jsonl", lines(*all_, *map(json.dumps, late)))
    with pytest.raises(SourceError, match=rf"line 4: unexpected field '{columns[0]}\.b'"):
        read(path, columns)
    assert read(path, ["id"]).num_rows == 5


@pytest.mark.parametrize(
    "late", ['{"m": {"a": 1, "b": 2}, "id": 2}', f'{{"m": null, "id": 7e300, "x": {LONG}}}']
)
def test_rows_are_counted_whatever_is_in_their_columns(tmp_path, monkeypatch, late):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 16)
    rows = ['{"m": {"a": 1}, "x": 0.5}', "", '{"x": 1.5}', late]
    path = put(tmp_path / "t.jsonl", lines(*rows))
    source = open_source([path, path])
    assert source.count() == 6
    assert _rows(source, SimpleNamespace(limit_rows=None)) == 6
    with pytest.raises(SourceError, match="line 5: a line that is not exactly one"):
        open_source(put(tmp_path / "t.jsonl", lines(*rows, '{"m": 1} {}'))).count()
    texts = lines("x,text", *["0.5,a"] * 30, f"{LONG},b")
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 99)
    assert open_source(put(tmp_path / "t.csv", texts)).count() == 31


@pytest.mark.parametrize("keep", [None, ["id"], []])
def test_what_to_do_about_a_new_field(jobs, tmp_path, monkeypatch, keep):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 16)
    rows = [{"id": 1, "m": {"a": 1}}, {"id": 2, "m": {"a": 2, "b": 3}}]
    path = put(tmp_path / "t.jsonl", lines(*map(json.dumps, rows)))
    with pytest.raises(SourceError, match=r"line 2: unexpected field 'm\.b'") as caught:
        jobs.generate(path, "{{ m.a }}", keep=keep)
    assert "use Parquet, or give the first line" in str(caught.value)
    assert "keep=" not in str(caught.value)
    assert jobs.generate(path, "{{ id }}", keep=["id"]).num_rows == 2
    path = put(tmp_path / "t.jsonl", lines('{"id": 1}', '{"id": 2, "x": 1}'))
    with pytest.raises(SourceError, match=r"unexpected field 'x'.* name the columns to keep"):
        jobs.generate(path, "{{ id }}")


def test_a_type_that_changes_in_the_first_block_names_its_line(tmp_path):
    path = put(tmp_path / "t.jsonl", lines(*['{"id": 1}'] * 99, "", '{"id": "x"}', '{"id": 2}'))
    with pytest.raises(SourceError, match=r"line 101: .* number to string;"):
        read(path)


IDS = [1234567890123456789, 17293822569102704641, None, 0]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_numbers_of_64_bits_keep_their_digits(jobs, tmp_path, monkeypatch, name):
    table = pa.table({"id": pa.array(IDS, pa.uint64()), "text": list("abcd")})
    path = put(tmp_path / name, PLAIN.get(name, to_csv)(table))
    assert read(path).schema.field("id").type == pa.uint64()
    assert read(path).to_pydict() == table.to_pydict()
    out = jobs.generate(path, "{{ id or 0 }}", output=tmp_path / "o.jsonl").output
    assert read(out)["id"].to_pylist() == IDS


@pytest.mark.parametrize("block", [16, 1 << 20])
@pytest.mark.parametrize("wrap", ["%s", '{"x": [%s]}'])
def test_a_double_does_not_round_whole_numbers(tmp_path, monkeypatch, wrap, block):
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    fine = [wrap % number for number in ("1.5", "1e300", "9007199254740992", "12345678901234567.5")]
    rows = [f'{{"id": {number}, "text": "{LONG}, {LONG}"}}' for number in [*fine, wrap % LONG, "null"]]
    path = put(tmp_path / "t.jsonl", lines(*rows[:4]))
    assert read(path).num_rows == 4
    path = put(tmp_path / "t.jsonl", lines(*rows))
    with pytest.raises(SourceError, match=rf"line 5: column 'id' .* round {LONG}; .*strings"):
        read(path)
    assert read(path, ["text"]).num_rows == 6


@pytest.mark.parametrize("block", [24, 1 << 20])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_doubles_as_javascript_writes_them(tmp_path, monkeypatch, kind, block):
    """Below 1e21 without a point: the fewest digits that tell them from others, then zeros."""
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", block)
    written = ["0.5", "1152921504606847000", "123456789012345680000", "-9007199254740994"]
    rows = written if kind == "csv" else [f'{{"energy": {number}}}' for number in written]
    path = put(tmp_path / f"t.{kind}", lines(*["energy"] * (kind == "csv"), *rows))
    assert read(path)["energy"].to_pylist() == [0.5, 2.0**60, 123456789012345680000.0, -(2.0**53 + 2)]


def test_csv_that_does_not_fit_names_file_and_row(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 64)
    head, good = "id,text", ["1,a"] * 30
    for bad, says in {"x,a": "Row #3[12].*int64", "1,a,b": "Row #3[12].*Expected 2"}.items():
        path = put(tmp_path / "t.csv", lines(head, *good, bad))
        with pytest.raises(SourceError, match=says) as caught:
            read(path)
        assert "t.csv" in str(caught.value)
    path = put(tmp_path / "t.csv", lines(head, *good, "1," + "y" * 500))
    with pytest.raises(SourceError, match=r"t\.csv' has a row of more than"):
        read(path)
    put(tmp_path / "u.csv", lines("id,text,more", "1,a,b"))
    put(tmp_path / "t.csv", lines(head, *good))
    with pytest.raises(SourceError, match=r"u\.csv' has column 'more'"):
        read([tmp_path / "t.csv", tmp_path / "u.csv"], ["text"])


@pytest.mark.parametrize("first", [1, 200])
def test_csv_does_not_round_whole_numbers(tmp_path, monkeypatch, first):
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 99)
    rows = [*["0.5,a,1e300"] * first, f"1e300,b,{LONG - 1}", f" {LONG} ,c,7", ",d,8"]
    path = put(tmp_path / "t.csv", lines("id,text,x", *rows))
    if first == 1:
        assert read(path)["id"].to_pylist() == ["0.5", "1e300", f" {LONG} ", ""]
        return
    with pytest.raises(SourceError, match=rf"t\.csv', row 203: column 'id' .* round *{LONG}"):
        read(path)
    assert read(path, ["x"])["x"].to_pylist() == [1e300] * 200 + [LONG - 1, 7, 8]


def test_wide_csv_is_opened_twice_to_know_its_types(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(File, "_raw", lambda file, raw=File._raw: opened.append(file) or raw(file))
    wide = {
        "float": ["1e19", "1.5"],
        "id": [str(2**64 - 1), "NA"],
        "big": [str(2**64), ""],
        "mixed": ["0.5", str(LONG)],
    }
    rows = [",".join(f"{name}{i}" for i in range(9) for name in wide)]
    rows += [",".join(cells[row] for _ in range(9) for cells in wide.values()) for row in range(2)]
    schema = open_source(put(tmp_path / "t.csv", lines(*rows))).schema
    assert [str(kind) for kind in schema.types] == ["double", "uint64", "double", "string"] * 9
    assert len(opened) == 2


@pytest.mark.parametrize("data", [b"id,body\n1,plain\n2,caf\xe9\n", b"id,b\xf6dy\n1,plain\n"])
def test_csv_that_is_not_utf8_is_refused(tmp_path, data):
    with pytest.raises(SourceError, match=r"t\.csv.*(UTF-8|utf-8)"):
        open_source(put(tmp_path / "t.csv", data))


def test_two_csv_columns_of_one_name(jobs, tmp_path):
    with pytest.raises(SourceError, match="two columns named 'a'"):
        jobs.generate(put(tmp_path / "t.csv", f"a,a\n1.5,{LONG}\n".encode()))


def test_csv_details(tmp_path):
    path = put(tmp_path / "t.csv", b'\xef\xbb\xbfid,text,none\r\n1,"a\r\nb",\r\n\r\n2,NA,\r\n')
    assert read(path).to_pydict() == {"id": [1, 2], "text": ["a\r\nb", "NA"], "none": ["", ""]}
    numbers = read(put(tmp_path / "n.csv", b"a,b\n00123,NaN\nNA,0.5\n,null\n")).to_pydict()
    assert numbers == {"a": [123, None, None], "b": [None, 0.5, None]}
    put(tmp_path / "head.csv", b"id,text,none\n")
    both = read([tmp_path / "head.csv", path])
    assert both.column("id").to_pylist() == [1, 2], "types come from the first file with rows"
    only = read(tmp_path / "head.csv")
    assert (only.num_rows, only.schema.field("text").type) == (0, pa.string())


def test_files_without_rows(tmp_path):
    put(tmp_path / "a.jsonl", b"")
    put(tmp_path / "b.jsonl", lines(*GOOD))
    put(tmp_path / "c.jsonl", b"\n \n")
    assert read(tmp_path).num_rows == 3
    with pytest.raises(SourceError, match=r"a\.jsonl' holds no rows"):
        open_source([tmp_path / "a.jsonl", tmp_path / "c.jsonl"])
    with pytest.raises(SourceError, match=r"z\.csv' cannot be read: Empty CSV"):
        open_source(put(tmp_path / "z.csv", b""))
    for name in ("e.arrow", "e.arrows", "e.parquet"):
        assert read(put(tmp_path / name, PLAIN[f"t.{name[2:]}"](TABLE.slice(0, 0)))).num_rows == 0


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999)[:-9], "Truncated"),
        ("t.jsonl.xz", lzma.compress(random.Random(0).randbytes(9999))[:-90], "ended before"),
        ("t.jsonl.zst", b"not compressed", "gzip|ZSTD|zstd|frame"),
        ("t.csv.xz", b"not compressed", "not supported"),
        ("t.arrow", b"not arrow at all", "arrow"),
        ("t.feather", b"FEA1" + b"\0" * 30, "feather"),
        ("t.arrow", to_ipc(TABLE)[:-40], "arrow"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, says):
    path = put(tmp_path / name, data)
    with pytest.raises(SourceError, match=says) as caught:
        read(path)
    assert name in str(caught.value)


def test_unknown_and_mixed_kinds(tmp_path):
    for name in ("t.json", "t.txt", "t", "t.parquet.gz", "t.gz", "t.jsonl.lz4"):
        with pytest.raises(SourceError, match=r"no known kind.*\.jsonl") as caught:
            open_source(put(tmp_path / "odd" / name, b"{}"))
        assert name in str(caught.value)
    with pytest.raises(SourceError, match="no table in directory"):
        open_source(tmp_path / "odd")
    put(tmp_path / "mix" / "a.jsonl", lines(*GOOD))
    put(tmp_path / "mix" / "b.csv", b"id,text\n1,a\n")
    with pytest.raises(SourceError, match=r"a\.jsonl' is jsonl and .*b\.csv' is csv"):
        open_source(tmp_path / "mix")
    assert format_of("https://host/a/b.jsonl.gz?sig=x.csv") == Format("jsonl", "gzip")


def hive(root, name: str = "p.parquet"):
    ids = iter(range(99))
    for year, lang in ((2024, "en"), (2023, "d%2Fe"), (2023, "__HIVE_DEFAULT_PARTITION__")):
        table = pa.table({"id": [next(ids), next(ids)], "text": ["x", "y"]})
        put(root / f"year={year}" / f"lang={lang}" / name, PLAIN[f"t.{name.split('.')[1]}"](table))
    put(root / "_metadata" / "year=1" / name, b"bookkeeping")


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl", "p.arrow", "p.csv"])
def test_partitions_become_columns(tmp_path, monkeypatch, name):
    monkeypatch.setitem(PLAIN, "t.csv", to_csv)
    hive(tmp_path, name)
    want = {
        "id": [4, 5, 2, 3, 0, 1],
        "text": ["x", "y"] * 3,
        "year": [2023] * 4 + [2024] * 2,
        "lang": [None, None, "d/e", "d/e", "en", "en"],
    }
    got = read(tmp_path)
    assert got.to_pydict() == want
    assert got.schema.field("year").type == pa.int64()
    assert read(tmp_path, ["year"]).to_pydict() == {"year": want["year"]}
    assert read(tmp_path, ["lang", "id"]).to_pydict() == {"lang": want["lang"], "id": want["id"]}
    # Only folders below what was named count.
    assert read(str(tmp_path / "year=2023" / "*" / name)).schema.names == ["id", "text", "lang"]
    assert read(tmp_path / "year=2024" / "lang=en" / name).schema.names == ["id", "text"]
    assert open_source(str(tmp_path / "year=*" / "*" / name)).schema.names == list(want)
    fsspec.filesystem("memory").put(str(tmp_path), f"/hive-{name}", recursive=True)
    assert read(f"memory://hive-{name}").to_pydict() == want
    assert read(f"memory://hive-{name}/year=*/**/{name}").to_pydict() == want


def test_the_order_is_that_of_paths_everywhere(tmp_path):
    names = ["b.jsonl", "a-b/x.jsonl", "a/z.jsonl", "a/y.jsonl", "a.jsonl", "a/.hidden.jsonl", "a/readme.md"]
    for name in names:
        put(tmp_path / name, lines(json.dumps({"name": name})))
    fsspec.filesystem("memory").put(str(tmp_path), "/order", recursive=True)
    want = ["a/y.jsonl", "a/z.jsonl", "a-b/x.jsonl", "a.jsonl", "b.jsonl"]
    for spec in (tmp_path, "memory://order"):
        assert read(spec)["name"].to_pylist() == want
        assert read(f"{spec}/**/*.jsonl")["name"].to_pylist() == want


def test_partitions_agree_with_polars(tmp_path):
    hive(tmp_path)
    frame = pl.read_parquet(tmp_path / "year=*" / "**" / "*.parquet", hive_partitioning=True)
    assert frame.sort("id").to_dict(as_series=False) == read(tmp_path).sort_by("id").to_pydict()


def test_partitions_that_contradict(tmp_path):
    put(tmp_path / "a" / "id=1" / "p.parquet", to_parquet(TABLE))
    with pytest.raises(SourceError, match="'id' is both"):
        open_source(tmp_path / "a")
    put(tmp_path / "b" / "x=1" / "p.parquet", to_parquet(TABLE))
    put(tmp_path / "b" / "y=1" / "p.parquet", to_parquet(TABLE))
    with pytest.raises(SourceError, match=r"partitions \['y'\].*\['x'\]"):
        open_source(tmp_path / "b")


def test_a_job_over_partitions_passes_them_through(jobs, tmp_path):
    hive(tmp_path)
    out = jobs.generate(tmp_path, "{{ lang or '-' }} {{ year }}", keep=["year"], batch_rows=4)
    assert out["year"].to_pylist() == [2023] * 4 + [2024] * 2
    assert out["response"][0] == out["response"][1] != out["response"][2]


def test_urls_that_cannot_be_opened(monkeypatch):
    for url, says in {
        "nonsense://x/a.jsonl": "protocol",
        "memory://nothing/a.jsonl": "no file matches",
        "memory://nothing/*.jsonl": "no file matches",
        "s3://bucket/x.parquet": "s3fs",
    }.items():
        with pytest.raises(SourceError, match=says):
            open_source(url)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SourceError, match="pip install fsspec"):
        open_source("memory://nothing/a.jsonl")


def test_a_storage_that_fails_half_way(monkeypatch):
    class Lost(Exception):
        pass

    with fsspec.open("memory://lost/t.jsonl", "wb") as file:
        file.write(to_jsonl(TABLE))
    source = open_source("memory://lost/t.jsonl")

    def fail(*args, **kwargs):
        raise Lost("connection reset")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "_open", fail)
    with pytest.raises(SourceError, match=r"lost/t\.jsonl.*Lost: connection reset"):
        list(source.batches(["text"], 4))
