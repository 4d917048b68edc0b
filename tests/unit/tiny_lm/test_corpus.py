from email.message import Message

import pytest

SOURCE = '''
import os

def read_all(path):
    """Reads the whole file at ``path``.  Slow on large files.

    Args:
        path: where it is.
    """
    with open(path) as handle:
        return handle.read()


class Box:
    @property
    def size(self):
        """Return the :class:`Size` of the box."""
        return self._size

    def abstract(self):
        """Return whatever the subclass box wants."""
        raise NotImplementedError

    def undocumented(self):
        first = self.a
        second = self.b
        third = self.c
        return first + second + third
'''


@pytest.fixture
def extract(tiny):
    return tiny("extract")


@pytest.fixture
def corpus(tiny):
    return tiny("corpus")


def test_pairs_have_code_without_docstring_and_a_one_line_summary(extract):
    found = {pair.name: pair for pair in extract.pairs(SOURCE)}
    assert found["read_all"].doc == "Read the whole file at path."
    assert (
        found["read_all"].code
        == "def read_all(path):\n    with open(path) as handle:\n        return handle.read()"
    )
    assert found["size"].code.startswith("@property\ndef size(self):")
    assert found["size"].doc == "Return the Size of the box."


def test_stubs_are_left_out_and_undocumented_functions_come_without_summary(extract):
    found = {pair.name: pair.doc for pair in extract.pairs(SOURCE)}
    assert "abstract" not in found
    assert found["undocumented"] == ""


def test_source_that_does_not_parse_gives_nothing(extract):
    assert list(extract.pairs("def broken(:\n")) == []


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("Returns the sum.", "Return the sum."),
        ("compute e.g. a mean of values", "Compute e.g. a mean of values."),
        ("Applies a filter to rows. Then more.", "Apply a filter to rows."),
        ("Fetches `name` from **here**.", "Fetch name from here."),
        ("str: the name of it", "The name of it."),
        ("See base class for details.", ""),
        ("Too short.", ""),
        ("TODO write this text later.", ""),
        ("Look at https://example.com for more.", ""),
        (":param x: something of note", ""),
        ("Возвращает сумму двух чисел.", ""),
        ("word " * 60, ""),
    ],
)
def test_summary(extract, doc, expected):
    assert extract.summary(doc) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Returns", "Return"),
        ("Processes", "Process"),
        ("Copies", "Copy"),
        ("Class", "Class"),
        ("This", "This"),
    ],
)
def test_imperative(extract, word, expected):
    assert extract.imperative(word) == expected


def test_a_summary_that_shares_no_word_with_the_code_is_not_grounded(extract):
    assert extract.is_grounded("def read_rows(path): ...", "Read the rows of a file.")
    assert not extract.is_grounded("def go(x):\n    return x", "Launch the rocket towards orbit.")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.py", True),
        ("a/tests/b.py", False),
        ("a/_vendor/b.py", False),
        ("a/test_b.py", False),
        ("a/x_pb2.py", False),
    ],
)
def test_source_paths(extract, path, expected):
    assert extract.is_source_path(path) is expected


def test_duplicates_are_refused(extract, corpus):
    seen = corpus.Deduplicator()
    assert seen.admits(extract.Pair("f", "def f(x):\n    return x  # one", "Return the x."))
    assert not seen.admits(extract.Pair("f", "def f(x):\n\n    return x", "Return the x again."))
    admitted = sum(
        seen.admits(extract.Pair("g", f"def g():\n    return {n}", "Give a number.")) for n in range(9)
    )
    assert admitted == corpus.MAX_SAME_NAME_DOC


def test_only_held_out_packages_give_held_out_examples(extract, corpus):
    pairs = [extract.Pair("f", f"def f():\n    return {n}", "Return a number.") for n in range(5)]
    rows = corpus.sample_heldout({"funcy": pairs}, total=3)
    assert len(rows) == 3
    assert {row["package"] for row in rows} == {"funcy"}
    assert corpus.split_of("funcy") == "held-out"
    assert corpus.split_of("numpy") == "train"


def metadata(**fields: str) -> Message:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT"}, "MIT"),
        ({"License_Expression": "Apache-2.0 OR GPL-2.0-or-later"}, "Apache-2.0"),
        ({"License_Expression": "BSD-3-Clause AND Zlib"}, "BSD-3-Clause"),
        ({"License_Expression": "MIT AND GPL-3.0-only"}, None),
        ({"License_Expression": "MPL-2.0"}, None),
        ({"License": "BSD 3-Clause License"}, "BSD-3-Clause"),
        ({"Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache-2.0"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License (GPL)"}, None),
        (
            {"License": "MIT", "Classifier": "License :: OSI Approved :: GNU Affero General Public License"},
            None,
        ),
        ({}, None),
    ],
)
def test_licences(tiny, fields, expected):
    assert tiny("licences").licence_of(metadata(**fields)) == expected


def test_card_names_every_package_and_the_loss(tiny):
    card = tiny("card")
    training = {"parameters": 8917248, "steps": 9, "tokens": 5_000_000, "seconds": 60.0, "device": "X"}
    config = {
        "num_hidden_layers": 8,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "head_dim": 64,
        "vocab_size": 8192,
    }
    row = {"version": "1.2", "licence": "MIT", "functions": 7, "tokens": 900}
    packages = [{"name": "alpha", "split": "train", **row}, {"name": "beta", "split": "held-out", **row}]
    text = card.card({**training, "heldout_loss": 2.34567}, config, packages)
    assert "**2.3457**" in text
    assert "| alpha | 1.2 | MIT | 7 | 900 | train |" in text
    assert "| beta | 1.2 | MIT | 7 | 900 | held-out |" in text
