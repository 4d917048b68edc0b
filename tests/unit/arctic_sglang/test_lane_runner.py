"""The lane's turns with a core that sums, on the CPU: every block is answered once, with its own rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from arctic_sglang.embedding import scheduler
from arctic_sglang.embedding.lane import Lane
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.wire import DropBlocks, EmbedBlock


class SummingCore:
    """One vector per row: its sum of ids, its length, 1."""

    device = torch.device("cpu")
    normalize = False

    def __init__(self):
        self.steps = []

    def __call__(self, rows):
        self.steps.append(rows.rows)
        return torch.tensor([[sum(row), len(row), 1.0] for row in rows.to_lists()])


def make(step_tokens=64):
    answers = []
    runner = scheduler.LaneRunner(Lane(step_tokens), SummingCore(), answers.append, in_step=False)
    return runner, answers


def block(number, lists, **options):
    rows = TokenRows.from_lists(lists)
    return EmbedBlock(number, rows.ids, rows.lengths, **options)


def test_blocks_of_one_step_come_back_apart_and_in_order():
    runner, answers = make()
    lists = {7: [[1, 2, 3], [4]], 8: [[5], [6, 7], [8, 9, 10]], 9: [[11, 12]]}
    for number, rows in lists.items():
        runner.lane.add(block(number, rows))
    assert not runner.idle
    runner.turn()
    assert runner.core.steps == [6], "one step for all"
    assert runner.idle
    for answer in answers:
        expected = [[sum(row), len(row), 1] for row in lists[answer.number]]
        assert answer.vectors.tolist() == expected
        assert answer.vectors.dtype == np.float32
    assert [answer.number for answer in answers] == [7, 8, 9]


def test_who_wants_to_know_is_told_of_every_step_of_requests_and_of_no_other():
    told, answers = [], []
    runner = scheduler.LaneRunner(
        Lane(64), SummingCore(), answers.append, in_step=False, launched=lambda: told.append(len(answers))
    )
    runner.warm_up()
    runner.turn()
    assert told == []
    for number in (1, 2):
        runner.lane.add(block(number, [[1, 2]]))
        runner.turn()
    assert told == [0, 1]


def test_a_turn_without_blocks_does_nothing():
    runner, answers = make()
    runner.turn()
    assert runner.core.steps == answers == []


def test_dimensions_are_of_the_block_and_scaled_where_vectors_are():
    runner, answers = make()
    runner.lane.add(block(0, [[3], [4]], dimensions=2))
    runner.lane.add(block(1, [[3]]))
    runner.lane.add(block(2, [[3]], dimensions=99))
    runner.turn()
    assert [answer.vectors.shape for answer in answers] == [(2, 2), (1, 3), (1, 3)]
    runner.core.normalize = True
    runner.lane.add(block(3, [[3]], dimensions=2))
    runner.turn()
    np.testing.assert_allclose(answers[-1].vectors, [[0.9486833, 0.3162278]], rtol=1e-6)


def test_dropped_blocks_are_answered_at_once():
    runner, answers = make()
    for number in range(3):
        runner.lane.add(block(number, [[1]]))
    runner.drop(DropBlocks([0, 2, 5]))
    assert [(answer.number, answer.vectors) for answer in answers] == [(0, None), (2, None)]
    assert "cancelled" in answers[0].error
    runner.turn()
    assert [answer.number for answer in answers] == [0, 2, 1]


def test_a_step_without_memory_fails_its_blocks_alone(monkeypatch):
    runner, answers = make()
    runner.lane.add(block(0, [[1]]))
    runner.lane.add(block(1, [[2]]))

    def full(_core, _rows):
        raise torch.OutOfMemoryError("tried to allocate")

    with monkeypatch.context() as patched:
        patched.setattr(SummingCore, "__call__", full)
        runner.turn()
    assert [(answer.number, answer.vectors) for answer in answers] == [(0, None), (1, None)]
    assert "--embedding-step-tokens" in answers[0].error
    runner.lane.add(block(2, [[3]]))
    runner.turn()
    assert answers[2].vectors.tolist() == [[3, 1, 1]]


def test_ranks_that_must_keep_step_end_with_what_one_of_them_lacks(monkeypatch):
    runner = scheduler.LaneRunner(Lane(64), SummingCore(), [].append, in_step=True)
    runner.lane.add(block(0, [[1]]))

    def full(_core, _rows):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(SummingCore, "__call__", full)
    with pytest.raises(torch.OutOfMemoryError):
        runner.turn()


def test_a_paused_scheduler_takes_no_turn():
    runner, answers = make()
    runner.lane.add(block(0, [[1]]))
    stub = SimpleNamespace(_engine_paused=True, arctic_lane=runner)
    scheduler.after_input(None, stub, [])
    assert not answers
    stub._engine_paused = False
    assert not scheduler.after_idle(True, stub)
    scheduler.after_input(None, stub, [])
    assert len(answers) == 1
    assert scheduler.after_idle(True, stub)
    assert not scheduler.after_idle(False, stub)
