"""The seam checker against fakes of SGLang: each kind of drift must be found, and only that."""

import pytest

from arctic_sglang.compat.seams import Kind, Seam
from arctic_sglang.compat.verify import SeamError, judge, sglang_version, verify
from arctic_sglang.features import Feature

VERSION = "__version__ = version = '0.5.17'\n"
MODULE = """
    from sglang.srt.base import Base, helper as assist

    if True:
        def plain(first, second, *, third=None, **rest): ...

    async def coroutine(first): ...

    class Runner(Base):
        limit: int = 3

        def __init__(self, size): ...
        def load(self, path, strict=True):
            self.loaded, self.count = True, 1
"""
BASE = """
    class Base:
        def inherited(self, value): ...

    def helper(x): ...
"""


def seam(target, kind=Kind.BEFORE, **more):
    return Seam(id="x.y", target=f"sglang.srt.mod.{target}", kind=kind, feature=Feature.CPU, why="", **more)


@pytest.fixture
def fake(write_tree):
    def make(module=MODULE, version=VERSION):
        files = {"_version.py": version, "srt/mod.py": module, "srt/base.py": BASE}
        return write_tree(files, name="sglang")

    return make


def texts(seams, root):
    return [problem.text for problem in verify(seams, root)]


@pytest.mark.parametrize(
    "row",
    [
        seam("plain", params=("first", "third")),
        seam("plain", params=("second", "**rest")),
        seam("Runner.load", params=("self", "strict")),
        seam("Runner.inherited", params=("value",)),
        seam("assist", params=("x",)),
        seam("Base", kind=Kind.SUBCLASS, members=("inherited",)),
        seam("Runner", kind=Kind.SUBCLASS, members=("load", "limit", "inherited"), params=("size",)),
        seam("Runner", kind=Kind.CALL, members=("loaded", "count")),
        seam("coroutine", kind=Kind.AROUND, params=("first",)),
    ],
)
def test_what_is_there_has_no_problem(fake, row):
    assert texts([row], fake()) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (seam("plane"), "sglang.srt.mod has no plane"),
        (seam("Runner.lode"), "sglang.srt.mod.Runner has no lode"),
        (seam("plain.load"), "is not a class"),
        (seam("plain", params=("fourth",)), "has no parameter fourth (it has first, second, third, **rest)"),
        (seam("plain", params=("second", "first")), "the order second, first is relied on"),
        (seam("Runner", kind=Kind.SUBCLASS, members=("save",)), "Runner has no save"),
        (seam("plain", kind=Kind.SUBCLASS, members=("load",)), "no longer a class"),
        (seam("coroutine"), "became async"),
        (seam("plain", versions=">=0.6,<0.7"), "tested with SGLang >=0.6,<0.7, and 0.5.17 is installed"),
    ],
)
def test_drift_is_found_and_named(fake, row, said):
    (text,) = texts([row], fake())
    assert said in text


def test_renamed_target(fake):
    root = fake(MODULE.replace("def load(", "def load_weights("))
    assert "Runner has no load" in texts([seam("Runner.load")], root)[0]


def test_changed_parameter(fake):
    root = fake(MODULE.replace("path, strict=True", "location, strict=True"))
    assert "no parameter path" in texts([seam("Runner.load", params=("path",))], root)[0]


def test_missing_module(fake):
    row = Seam(id="x.y", target="sglang.gone.Name", kind=Kind.CALL, feature=Feature.CPU, why="")
    assert "sglang.gone.Name is gone" in texts([row], fake())[0] or "has no gone" in texts([row], fake())[0]


def test_wrong_version(fake):
    root = fake(version="__version__ = version = '0.5.23'\n")
    assert sglang_version(root) == "0.5.23"
    assert "0.5.23 is installed" in texts([seam("plain")], root)[0]


def test_no_sglang():
    (text,) = texts([seam("plain")], None)
    assert text == "SGLang is not installed; install sglang==0.5.17"


def test_requested_stops_and_says_what_to_do(fake):
    problems = verify([seam("gone")], fake())
    with pytest.raises(
        SeamError, match=r"(?s)\(cpu\).*mod has no gone.*pip install sglang==0.5.17.*arctic-doctor"
    ):
        judge(problems, frozenset({Feature.CPU}))


def test_unrequested_warns(fake, caplog):
    judge(verify([seam("gone")], fake()), frozenset({Feature.POOLING}))
    assert "cpu is not available" in caplog.text
    assert "mod has no gone" in caplog.text


def test_no_problem_no_word(caplog):
    judge([], frozenset(Feature))
    assert caplog.text == ""
