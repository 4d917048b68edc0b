"""Rows that share prefixes go together, rows that are the same go once; the output never shows it."""

import itertools
import random
import sys
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_sdk
from batch_sdk import cli, duplicates
from batch_sdk.duplicates import Duplicates
from batch_sdk.engines.base import GenerateRequest, GenerateResult
from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import OptionError
from batch_sdk.ordering import PrefixOrder, by_prefix, common_prefix


def requests(*texts, start=0):
    return [GenerateRequest(start + i, text, {}) for i, text in enumerate(texts)]


def positions(found):
    return [request.position for request in found]


@given(st.text("ab", max_size=40), st.text("ab", max_size=40))
def test_common_prefix(a, b):
    slow = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(a, b) == slow


def test_rows_of_a_prefix_stand_together_but_the_first_goes_a_group_ahead():
    shared = {name: name * 300 for name in "abcx"}
    texts = [shared[name] + str(i) for i, name in enumerate("abcabcabcx")]
    assert positions(by_prefix(requests(*texts))) == [0, 1, 3, 6, 2, 4, 7, 9, 5, 8]


def test_groups_within_groups():
    instruction, one, two = "i" * 500, "1" * 500, "2" * 500
    texts = [
        "other",
        instruction + two + "x",
        instruction + one + "x",
        instruction + two + "y",
        instruction + one + "y",
        instruction + two + "z",
    ]
    assert positions(by_prefix(requests(*texts))) == [0, 1, 2, 3, 5, 4]


def test_short_common_prefixes_are_none():
    assert positions(by_prefix(requests("Summarise: b", "Summarise: a", "Summarise: c"))) == [0, 1, 2]


def test_chats_have_prefixes_too():
    chats = [
        [{"role": "system", "content": name * 200}, {"role": "user", "content": str(i)}]
        for i, name in enumerate("ababa")
    ]
    assert positions(by_prefix(requests(*chats))) == [0, 1, 2, 4, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 300), st.text("xy", max_size=3)), max_size=40)
)
def test_every_row_once_and_the_oldest_first(rows):
    asked = requests(*(name * count + tail for name, count, tail in rows), start=5)
    found = by_prefix(asked)
    assert sorted(positions(found)) == positions(asked)
    if asked:
        assert found[0].position == 5
    assert by_prefix([]) == []


def test_prefixes_of_every_length_are_no_trouble():
    texts = ["a" * count for count in range(3000)]
    started = time.monotonic()
    assert len(by_prefix(requests(*texts))) == 3000
    assert time.monotonic() - started < 5


def test_a_quarter_is_in_flight():
    order = PrefixOrder(40)
    order.add(requests(*("ab"[i % 2] * 100 + str(i) for i in range(40))))
    first = order.take(0)
    assert positions(first) == [0, 1, *range(2, 18, 2)]
    assert order.take(10) == []
    second = order.take(4)
    assert positions(second) == list(range(18, 30, 2))
    rest = []
    while piece := order.take(0):
        rest += piece
    assert sorted(positions([*first, *second, *rest])) == list(range(40))


class Recorder(DummyEngine):
    def __init__(self, **options):
        super().__init__(model="m", task="generate", options=options)
        self.asked = []
        self.start()

    def submit(self, requests):
        self.asked += [request.prompt for request in requests]
        super().submit(requests)


def run(table, engine, **options):
    return batch_sdk.generate(table, prompt="{{ text }}", chat=False, model=engine, progress=False, **options)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 500])
@pytest.mark.parametrize(
    "options", [{"order": "prefix"}, {"dedupe": True}, {"order": "prefix", "dedupe": True}]
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_output_is_the_same(rows, options, shuffle):
    draw = random.Random(rows)
    texts = [
        None if draw.random() < 0.1 else draw.choice("abcde") * 200 + draw.choice("xyz") for _ in range(rows)
    ]
    table = pa.table({"id": range(rows), "text": pa.array(texts, pa.string())})
    plain = run(table, Recorder())
    engine = Recorder(shuffle=shuffle)
    pace = {"window_rows": 33, "batch_rows": 10}
    assert run(table, engine, **pace, **options).equals(plain)
    if "dedupe" in options:
        assert len(engine.asked) == len(set(engine.asked)) <= 15
    else:
        assert len(engine.asked) == sum(text is not None for text in texts)


def test_fewer_changes_of_prefix():
    draw = random.Random(0)
    prefixes = [f"{i} " * 300 for i in range(20)]
    texts = [draw.choice(prefixes) + str(i) for i in range(2000)]
    table = pa.table({"text": texts})

    def changes(engine):
        starts = [text.split(" ", 1)[0] for text in engine.asked]
        return sum(a != b for a, b in itertools.pairwise(starts))

    plain, ordered = Recorder(), Recorder()
    run(table, plain, window_rows=1000)
    run(table, ordered, window_rows=1000, order="prefix")
    assert changes(plain) > 1800
    assert changes(ordered) < 3 * 120  # to the next group's first row, back, and to that group
    assert ordered.peak_rows_in_flight <= 250


def test_other_sampling_is_another_row():
    table = pa.table({"text": ["a b"] * 6, "budget": [1, 2, 1, None, 2, 1]})
    engine = Recorder()
    out = run(table, engine, dedupe=True, sampling_columns={"max_new_tokens": "budget"}, max_new_tokens=2)
    assert len(engine.asked) == 2
    assert out.column("completion_tokens").to_pylist() == [1, 2, 1, 2, 2, 1]


def test_an_error_is_the_others_too_and_not_remembered():
    table = pa.table({"text": ["poison"] * 4})
    engine = Recorder(fail_on="poison")
    out = run(table, engine, dedupe=True, window_rows=2, batch_rows=1)
    assert [error["kind"] for error in out.column("error").to_pylist()] == ["rejected"] * 4
    assert 1 < len(engine.asked) < 4


@pytest.mark.parametrize("samples", [1, 3])
def test_what_is_remembered_is_bounded_in_bytes(monkeypatch, samples):
    monkeypatch.setattr(duplicates, "_REMEMBERED_BYTES", 1 << 20)
    found = Duplicates()

    def answer(position):
        text, logprobs, ids = "x" * 10_000, [-0.5 - i for i in range(2000)], [1000 + i for i in range(2000)]
        one = GenerateResult(position, text, 1, 2000, "stop", None, logprobs, ids)
        if samples == 1:
            return one
        return one._replace(text=[text] * samples, logprobs=[logprobs] * samples, token_ids=[ids] * samples)

    for position in range(100):
        (request,) = found.first_of([GenerateRequest(position, f"row {position}", {})])
        list(found.all_of([answer(request.position)]))
    each = samples * (10_000 + 4000 * 32)
    assert 0 < len(found._done) <= (1 << 20) / each
    again = [GenerateRequest(100 + position, f"row {position}", {}) for position in (99, 0)]
    assert [request.prompt for request in found.first_of(again)] == ["row 0"], (
        "the newest is known, not the oldest"
    )
    assert [result.position for result in found.answers()] == [199]
    # One answer larger than all that may be remembered is not.
    (request,) = found.first_of([GenerateRequest(300, "large", {})])
    list(found.all_of([GenerateResult(300, "x" * (2 << 20), 1, 1, "stop")]))
    assert (len(found._done), found._done_bytes) == (0, 0)


@pytest.mark.parametrize("samples", [1, 3])
def test_text_that_is_not_ascii_is_bounded_too(monkeypatch, samples):
    monkeypatch.setattr(duplicates, "_REMEMBERED_BYTES", 1 << 20)
    found = Duplicates()
    for position in range(100):
        list(found.first_of([GenerateRequest(position, f"row {position}", {})]))
        texts = ["漢" * 10_000 + f"{position} {sample}" for sample in range(samples)]
        answer = GenerateResult(position, texts[0] if samples == 1 else texts, 1, 1, "stop")
        list(found.all_of([answer]))
        pa.array(texts)  # Arrow makes Python keep their UTF-8
    kept = [result.text if samples > 1 else [result.text] for result, _ in found._done.values()]
    assert len(kept) >= 6
    assert sum(sys.getsizeof(text) for texts in kept for text in texts) <= found._done_bytes <= 1 << 20


def test_nonsense_and_the_command_line(tmp_path):
    table = pa.table({"text": ["a", "a", "b"]})
    with pytest.raises(OptionError, match="order='random'"):
        run(table, Recorder(), order="random")
    with pytest.raises(OptionError, match="dedupe=1"):
        run(table, Recorder(), dedupe=1)
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "t.parquet")
    where = [
        str(tmp_path / "t.parquet"),
        "-o",
        str(tmp_path / "o.parquet"),
        "--model",
        "m",
        "--engine",
        "dummy",
    ]
    assert cli.main(["generate", *where, "--prompt", "{{ text }}", "--order", "prefix", "--dedupe"]) == 0
    assert len(pq.read_table(tmp_path / "o.parquet")) == 3
