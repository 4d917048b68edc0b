import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftkv.data import Batch, Epoch, Order, Table, in_batches
from swiftkv.encoding import Encoder, Kind, Rows
from swiftkv.errors import SwiftKVError

CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)
# As templates of models that think do: an answer is written differently once another one follows.
REWRITES = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def with_template(tokenizer):
    """The tokenizer with another chat template."""
    before = tokenizer.chat_template

    def change(template):
        tokenizer.chat_template = template
        return tokenizer

    yield change
    tokenizer.chat_template = before


def messages(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def counted_texts(tokenizer, encoded) -> list[str]:
    """The stretches of tokens that count, as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.counted, [0]])))
    return [tokenizer.decode(encoded.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


class TestRows:
    def test_what_the_columns_say(self, write_rows):
        for columns, kind in [
            (["text"], Kind.TEXT), (["messages", "text"], Kind.CHAT), (["prompt", "response", "text"], Kind.PAIR),
        ]:  # fmt: skip
            assert Rows.open(write_rows([dict.fromkeys(columns, "x")])).kind is kind

    def test_another_column(self, write_rows):
        path = write_rows([{"text": "a", "body": "b"}, {"text": "a", "body": ""}])
        assert list(Rows.open(path, "body")) == ["b", None]

    def test_unknown_columns(self, write_rows):
        with pytest.raises(SwiftKVError, match="has the columns body; wanted messages"):
            Rows.open(write_rows([{"body": "b"}]))
        with pytest.raises(SwiftKVError, match="wanted title"):
            Rows.open(write_rows([{"text": "b"}]), "title")

    def test_files_folders_and_globs(self, tmp_path):
        for name in ("b", "a"):
            pq.write_table(pa.table({"text": [name]}), tmp_path / f"{name}.parquet")
        (tmp_path / "notes.txt").write_text("x")
        assert list(Rows.open(tmp_path)) == ["a", "b"]
        assert list(Rows.open(tmp_path / "*.parquet")) == ["a", "b"]
        assert list(Rows.open(tmp_path / "b.parquet")) == ["b"]
        for bad in ("notes.txt", "c.parquet", "*.jsonl"):
            with pytest.raises(SwiftKVError, match=r"no \.parquet or \.jsonl"):
                Rows.open(tmp_path / bad)

    def test_parquet_messages(self, tmp_path):
        pq.write_table(pa.table({"messages": [messages("q", "a")], "id": [1]}), tmp_path / "m.parquet")
        assert list(Rows.open(tmp_path / "m.parquet")) == [messages("q", "a")]

    @pytest.mark.parametrize("bad", [[{"role": "user"}], "hello", [{"role": "user", "content": ["a"]}]])
    def test_malformed_messages(self, write_rows, bad):
        with pytest.raises(SwiftKVError, match=r"row 1 \(from 0\): messages must be"):
            list(Rows.open(write_rows([{"messages": messages("q", "a")}, {"messages": bad}])))

    @pytest.mark.parametrize(
        "row",
        [{"text": "a\ud83d"}, {"prompt": "p", "response": "a\ud83d"}, {"messages": messages("q", "a\ud83d")}],
    )
    def test_half_a_character(self, write_rows, row):
        """A cut emoji, which JSON can write and no tokenizer takes."""
        fine = {name: "x" if isinstance(value, str) else messages("q", "a") for name, value in row.items()}
        with pytest.raises(SwiftKVError, match=r"row 1 \(from 0\): '\\ud83d' is half of a character"):
            list(Rows.open(write_rows([fine, row])))

    def test_another_encoding(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\r\n{"text": "caf\xe9"}\n')
        with pytest.raises(SwiftKVError, match=r"a\.jsonl, line 2: 'utf-8' codec can't decode"):
            list(Rows.open(tmp_path / "a.jsonl"))

    def test_malformed_files(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text')
        with pytest.raises(SwiftKVError, match="line 2"):
            list(Rows.open(tmp_path / "a.jsonl"))
        (tmp_path / "b.jsonl").write_text("")
        with pytest.raises(SwiftKVError, match="none"):
            Rows.open(tmp_path / "b.jsonl")
        (tmp_path / "c.parquet").write_text("x")
        with pytest.raises(SwiftKVError, match=r"c\.parquet"):
            Rows.open(tmp_path / "c.parquet")


class TestCounted:
    def test_all_of_a_text(self, tokenizer):
        (row,) = next(Encoder(tokenizer).encode(["one two"]))
        assert row.counted.all()
        assert tokenizer.decode(row.ids) == "one two"

    def test_the_answer_and_its_end(self, tokenizer):
        (row,) = next(Encoder(tokenizer).encode([messages("def f(): pass", "Do nothing.")]))
        assert counted_texts(tokenizer, row) == ["Do nothing.<|end|>"]
        assert tokenizer.decode(row.ids).startswith("<|user|>\ndef f(): pass\n<|assistant|>\n")

    def test_every_answer_of_a_conversation(self, with_template):
        tokenizer = with_template(CHATML)
        (row,) = next(Encoder(tokenizer).encode([messages("q", "One.", "and?", "Two.", "thanks")]))
        assert counted_texts(tokenizer, row) == ["One.<|end|>", "Two.<|end|>"]

    def test_a_template_that_rewrites_earlier_turns(self, with_template):
        tokenizer = with_template(REWRITES)
        rows = next(Encoder(tokenizer).encode([messages("q", "One.", "and?", "Two.")]))
        assert [counted_texts(tokenizer, row) for row in rows] == [
            ["<think></think>One.<|end|>"],
            ["<think></think>Two.<|end|>"],
        ]
        assert "<think></think>One." not in tokenizer.decode(rows[1].ids)

    def test_order_and_empty_rows(self, tokenizer):
        found = list(Encoder(tokenizer).encode(["a", None, messages("q", "r"), "b"]))
        assert [row and tokenizer.decode(row[0].ids[-1:]) for row in found] == ["a", None, "\n", "b"]

    def test_prompt(self, with_template):
        encoder = Encoder(with_template(CHATML))
        found = encoder.prompt(messages("q", "One.", "and?", "Two."))
        assert with_template(CHATML).decode(found).endswith("and?<|end|>\n<|user|>assistant\n")
        assert encoder.prompt(messages("q")) is None

    def test_no_template(self, with_template):
        with pytest.raises(SwiftKVError, match="no chat template"):
            list(Encoder(with_template(None)).encode([messages("q", "a")]))

    def test_a_template_that_refuses(self, with_template):
        tokenizer = with_template("{{ raise_exception('roles must alternate') }}")
        with pytest.raises(SwiftKVError, match="roles must alternate"):
            list(Encoder(tokenizer).encode([messages("q", "a")]))


class TestTable:
    def test_what_becomes_of_rows(self, write_rows, tokenizer, tmp_path):
        rows = [
            {"prompt": "x", "response": "Short."},
            {"prompt": "", "response": "y"},
            {"prompt": "x", "response": "a b c d e f g h i j k l m n o p"},
            {"prompt": "a b c d e f g h i j k l m n o p q r s t u v w", "response": "Lost."},
        ]
        table = Table.make(Rows.open(write_rows(rows)), tokenizer, 16, tmp_path / "t")
        report = table.report
        assert (report.rows, report.used, report.empty, report.cut, report.unused) == (4, 2, 1, 2, 1)
        assert table.lengths.max() == 16
        assert str(report) == "4 rows, 2 used, 1 empty, 2 cut, 1 unused"
        assert table.counts.sum() == table.counted.sum()

    def test_it_is_made_once(self, write_rows, tokenizer, tmp_path):
        path = write_rows([{"text": "one two"}])
        first = Table.make(Rows.open(path), tokenizer, 16, tmp_path / "t")

        def fail(items):
            raise AssertionError("tokenised again")

        again = Table.make(Rows.open(path), tokenizer, 16, tmp_path / "t", progress=fail)
        assert (again.report, again.fingerprint) == (first.report, first.fingerprint)
        write_rows([{"text": "something else"}])
        other = Table.make(Rows.open(path), tokenizer, 16, tmp_path / "t")
        assert other.fingerprint != first.fingerprint
        assert tokenizer.decode(np.asarray(other.ids)) == "something else"

    @pytest.mark.parametrize("rows", [[{"text": ""}], [{"text": None}]])
    def test_nothing_to_learn_from(self, write_rows, tokenizer, tmp_path, rows):
        with pytest.raises(SwiftKVError, match="no row has a token"):
            Table.make(Rows.open(write_rows(rows)), tokenizer, 16, tmp_path / "t")
        assert not (tmp_path / "t").exists()

    def test_an_empty_table(self, tokenizer, tmp_path):
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
        with pytest.raises(SwiftKVError, match="no row has a token"):
            Table.make(Rows.open(tmp_path / "e.parquet"), tokenizer, 16, tmp_path / "t")


LENGTHS = st.lists(st.integers(2, 32), min_size=1, max_size=200).map(np.asarray)


class TestOrder:
    @given(LENGTHS, st.integers(0, 3), st.integers(0, 2))
    def test_an_epoch_has_every_row_once(self, lengths, seed, number):
        epoch = Epoch.make(lengths, 32, seed, number)
        assert sorted(epoch.rows.tolist()) == list(range(len(lengths)))
        assert all(0 < lengths[epoch[i]].sum() <= 32 for i in range(len(epoch)))

    def test_little_room_is_lost(self):
        lengths = np.random.default_rng(0).integers(2, 300, 5000)
        assert len(Epoch.make(lengths, 1024, 0, 0)) < 1.03 * lengths.sum() / 1024

    def test_epochs_and_seeds_differ(self):
        lengths = np.full(50, 8)
        rows = [
            Epoch.make(lengths, 32, seed, number).rows.tolist() for seed, number in [(0, 0), (0, 1), (1, 0)]
        ]
        assert rows[0] != rows[1] != rows[2] != rows[0]

    @given(LENGTHS, st.integers(1, 7), st.integers(1, 3))
    def test_any_step_without_those_before_it(self, lengths, per_step, epochs):
        table = SimpleNamespace(lengths=lengths, counts=lengths - 1)
        steps = [list(map(list, step)) for step in Order(table, 32, per_step, epochs, 5)]
        order = Order(table, 32, per_step, epochs, 5)
        assert len(order) == len(steps)
        for step in reversed(range(len(order))):
            assert list(map(list, order[step])) == steps[step]
        seen = [row for step in steps for sequence in step for row in sequence]
        assert set(seen) == set(range(len(lengths)))
        assert all(len(step) == per_step for step in steps)
        with pytest.raises(IndexError):
            order[len(order)]

    def test_epochs_are_packed_when_they_are_needed(self, monkeypatch):
        packed, make = [], Epoch.make
        monkeypatch.setattr(Epoch, "make", lambda *args: packed.append(args[-1]) or make(*args))
        order = Order(SimpleNamespace(lengths=np.full(16, 8)), 32, 2, 10**9, 0)
        assert order.expected(0) == 2 * 10**9
        assert len(order[1]) == 2
        assert packed == [0]
        assert len(order[2]) == 2
        assert packed == [0, 1]

    @given(LENGTHS, st.integers(1, 5), st.integers(1, 4))
    def test_what_is_expected_ends_with_the_last_step(self, lengths, per_step, epochs):
        """And is the same for a step that is reached and for one that a resumed run begins with."""
        reached, step = Order(SimpleNamespace(lengths=lengths), 32, per_step, epochs, 1), 0
        while step < reached.expected(step):
            reached[step]
            fresh = Order(SimpleNamespace(lengths=lengths), 32, per_step, epochs, 1)
            assert fresh.expected(step) == reached.expected(step)
            step += 1
        fresh = Order(SimpleNamespace(lengths=lengths), 32, per_step, epochs, 1)
        assert step == len(fresh) == fresh.expected(step)

    def test_tokens(self):
        table = SimpleNamespace(lengths=np.array([4, 6, 8]), counts=np.array([1, 2, 3]))
        order = Order(table, 8, 1, 1, 0)
        assert order.tokens([np.array([0]), np.array([1, 2])]) == (18, 6)


class TestBatch:
    @pytest.fixture
    def table(self, write_rows, tokenizer, tmp_path):
        rows = [{"prompt": "x " * n, "response": f"Answer {n}."} for n in range(1, 9)]
        return Table.make(Rows.open(write_rows(rows)), tokenizer, 64, tmp_path / "t")

    def test_pack(self, table):
        batch = Batch.pack(table, [np.array([2, 0]), np.array([1])])
        assert batch.ids.shape == (2, 64)
        sizes = table.lengths
        real = batch.real.sum(1).tolist()
        assert real == [sizes[2] + sizes[0], sizes[1]]
        starts = np.flatnonzero(batch.positions[0] == 0).tolist()
        assert starts == [0, sizes[2], sizes[2] + sizes[0]]
        assert batch.predicts.sum(1).tolist() == [table.counts[2] + table.counts[0], table.counts[1]]
        following = batch.ids.roll(-1, 1)[batch.predicts]
        first = table.ids[table.starts[2] : table.starts[3]][table.counted[table.starts[2] : table.starts[3]]]
        assert following[: len(first)].tolist() == first.tolist()

    def test_no_row_predicts_the_next_ones_start(self, write_rows, tokenizer, tmp_path):
        table = Table.make(
            Rows.open(write_rows([{"text": "one two three"}] * 3)), tokenizer, 64, tmp_path / "all"
        )
        batch = Batch.pack(table, [np.arange(3)])
        ends = np.cumsum(table.lengths) - 1
        assert not batch.predicts[0, ends].any()
        assert batch.predicts.sum() == table.lengths.sum() - 3

    def test_in_batches(self, table):
        batches = list(in_batches(table, 64, 2))
        assert sum(int(batch.real.sum()) for batch in batches) == table.lengths.sum()


def test_rows_are_json_serialisable_reports(write_rows, tokenizer, tmp_path):
    Table.make(Rows.open(write_rows([{"text": "one two"}])), tokenizer, 16, tmp_path / "t")
    assert json.loads((tmp_path / "t" / "table.json").read_text())["report"]["used"] == 1
