import numpy as np
import pytest

from speculative.sglang_worker import memory
from speculative.sglang_worker.memory import Memory
from speculative.suffix import SuffixProposer, SuffixSettings


def proposer():
    return SuffixProposer(SuffixSettings(capacity_tokens=1000, active_tokens=1000))


def say(index, tokens):
    slot = index.start(np.array([1, 2], np.int32), np.zeros(0, np.int32))
    index.step(
        np.array([slot], np.int32),
        np.array(tokens, np.int32),
        np.array([0, len(tokens)], np.int32),
        np.zeros(1, np.int32),
    )
    index.stop(slot)


def draft(index, tokens):
    slot = index.start(np.array(tokens, np.int32), np.zeros(0, np.int32))
    none, offsets = np.zeros(0, np.int32), np.zeros(2, np.int32)
    return index.step(np.array([slot], np.int32), none, offsets, np.array([3], np.int32)).tokens[0].tolist()


def test_what_was_said_is_known_after_a_restart(tmp_path):
    path = tmp_path / "index"
    first = proposer()
    kept = Memory(first, str(path), "m", writes=True)
    say(first, [5, 6, 7, 8, 9, 10, 11, 12])
    kept.idle()
    again = proposer()
    Memory(again, str(path), "m", writes=True)
    assert draft(again, [5, 6, 7]) == [8, 9, 10]
    with pytest.raises(ValueError, match="model 'm'"):
        Memory(proposer(), str(path), "another", writes=True)


def test_ranks_begin_with_what_one_of_them_read(tmp_path):
    path, read = tmp_path / "index", []
    first = proposer()
    say(first, [5, 6, 7, 8, 9, 10, 11, 12])
    Memory(first, str(path), "m", writes=True).idle()

    def told(asked):
        read.append(asked())
        return read[0]

    one, other = proposer(), proposer()
    Memory(one, str(path), "m", writes=True, told=told)
    path.unlink()  # as on another host
    Memory(other, str(path), "m", writes=False, told=told)
    assert read[1] is None
    assert draft(one, [5, 6, 7]) == draft(other, [5, 6, 7]) == [8, 9, 10]


def test_only_one_rank_writes_and_not_all_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    path = tmp_path / "index"
    Memory(proposer(), str(path), "m", writes=False).idle()
    assert not path.exists()
    kept = Memory(proposer(), str(path), "m", writes=True)
    kept.idle()
    path.unlink()
    kept.idle()
    assert not path.exists()
    now[0] += memory.PAUSE_SECONDS
    kept.idle()
    assert path.exists()


def test_a_full_disk_is_a_warning(tmp_path, caplog):
    index = proposer()
    index.save = lambda path, model: (_ for _ in ()).throw(OSError("No space left on device"))
    Memory(index, str(tmp_path / "index"), "m", writes=True).idle()
    assert "No space left" in caplog.text
    Memory(index, None, "m", writes=True).idle()
