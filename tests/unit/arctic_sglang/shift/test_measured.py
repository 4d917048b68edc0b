"""What was measured at a start is found again at the next, and by nobody else."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from arctic_sglang.shift import measured
from arctic_sglang.shift.measured import Situation
from arctic_sglang.shift.policy import Policy, Timing

SITUATION = Situation({"hidden_size": 64}, "torch.bfloat16 None", "a GPU", 1, 4, {"torch": "2"})
TIMINGS = [Timing(64, 0.1, 0.2), Timing(128, 0.3, 0.25)]


def test_it_comes_back(tmp_path):
    folder = tmp_path / "not" / "there yet"
    assert measured.load(folder, SITUATION) is None
    measured.store(folder, SITUATION, TIMINGS)
    assert measured.load(folder, SITUATION) == TIMINGS
    assert [path.name for path in folder.iterdir()] == [f"{SITUATION.key}.json"]
    for change in (
        {"model": {"hidden_size": 65}},
        {"dtype": "x"},
        {"device": "x"},
        {"tp": 2},
        {"sp": 2},
        {"versions": {}},
    ):
        assert measured.load(folder, dataclasses.replace(SITUATION, **change)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"situation": 3}', None])
def test_a_broken_file_is_measured_again(tmp_path, content):
    measured.store(tmp_path, SITUATION, TIMINGS)
    (path,) = tmp_path.iterdir()
    if content is None:
        content = json.dumps(json.loads(path.read_text()) | {"timings": [{"tokens": 1}]})
    path.write_text(content)
    assert measured.load(tmp_path, SITUATION) is None


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    measured.store(tmp_path / "file", SITUATION, TIMINGS)
    assert measured.load(tmp_path / "file", SITUATION) is None


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (63, [63]), (64, [64]), (200, [64, 128]), (8192, [64 * 2**k for k in range(8)]),
     (100_000, [64 * 2**k for k in range(8)])],
)  # fmt: skip
def test_sizes(most, sizes):
    assert measured.sizes(most) == sizes


@pytest.mark.parametrize("steady", [True, False])
def test_times_that_are_not_steady_are_not_kept(tmp_path, monkeypatch, caplog, steady):
    start = pytest.importorskip("arctic_sglang.shift.start")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shift = SimpleNamespace(timings=TIMINGS, policy=Policy(77))
    start._keep(SITUATION, shift, steady=steady)
    assert measured.load(tmp_path / "arctic_sglang" / "shift", SITUATION) == (TIMINGS if steady else None)
    assert ("77 tokens" in caplog.text) == (not steady)
