"""Policy and pace together on a played machine: whatever pays there is what they come to."""

import numpy as np
import pytest

from speculative.base import Drafts
from speculative.cost import CostTable
from speculative.pace import Circumstances, Kind, Pace
from speculative.policy import Picked, Policy, Source

WIDTHS = (1, 2, 4, 8, 16, 32)
# A small model: the device computes a fraction of a step, the host takes the rest.
TABLE = CostTable.linear(WIDTHS, 64, constant=3e-4, per_token=1e-6)
HEAD = 1e-4


class Machine:
    """Seconds of the three kinds of steps, and how often tokens of the two sources come true."""

    def __init__(self, seconds, index, head, found=0.4):
        self.seconds, self.index, self.head, self.found = seconds, index, head, found

    def run(self, rows, steps, *, suffix=True, head=3, seed=0):
        """Tokens a second of the second half of `steps`."""
        rng = np.random.default_rng(seed)
        policy, pace = Policy(TABLE, head=head, longest=31), Pace(5e-4)
        tokens, seconds = 0, 0.0
        for step in range(steps):
            now = Circumstances(rows)
            lengths = (suffix and rng.random(rows) < self.found) * rng.integers(1, 12, rows)
            drafts = Drafts(
                np.zeros((rows, 12), np.int32), lengths.astype(np.int32), 0.7 * lengths.astype(np.float32)
            )
            room = np.full(rows, 31, np.int32)
            kind, width, picked = Kind.PLAIN, 1, Picked.none(rows)
            if not pace.due(now):
                excess = pace.excess(now)
                choice = policy.choose(
                    drafts, room if head else None, excess._replace(head=excess.head + HEAD)
                )
                width = choice.width
                if width > 1:
                    kind = Kind.HEAD if choice.head else Kind.WIDE
                    alone = Picked.all_of(Source.SUFFIX, drafts.lengths, drafts.scores)
                    picked = policy.pick(drafts, room) if choice.head else alone
            pace.planned(now, kind)
            chance = np.where(picked.sources == Source.HEAD, self.head, self.index)
            right = (rng.random((rows, 31)) < chance[:, None]).cumprod(axis=1).sum(axis=1)
            accepted = np.minimum(right, np.minimum(picked.lengths, width - 1)).astype(np.int32)
            if width > 1:
                policy.observe(picked, width, accepted)
            took = self.seconds[kind] * rng.uniform(0.9, 1.1)
            pace.observe(now, kind, took, TABLE.cost(rows, width) + HEAD * (kind is Kind.HEAD))
            if step >= steps // 2:
                tokens, seconds = tokens + rows + int(accepted.sum()), seconds + took
        return tokens / seconds


@pytest.mark.parametrize("rows", [1, pytest.param(8, marks=pytest.mark.full), 32])
@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(Machine([1.9e-3, 2.7e-3, 3.6e-3], 0.8, 0.18), id="a head that does not pay"),
        pytest.param(Machine([1.9e-3, 2.1e-3, 2.4e-3], 0.8, 0.6), id="a head that pays"),
        pytest.param(Machine([1.9e-3, 6.0e-3, 7.0e-3], 0.5, 0.18), id="nothing pays"),
        pytest.param(Machine([1.9e-3, 2.5e-3, 2.6e-3], 0.1, 0.7), id="an index that does not pay"),
    ],
)
def test_both_sources_together_are_as_fast_as_the_best_of_one(machine, rows):
    plain = rows / machine.seconds[Kind.PLAIN]
    speeds = {
        "suffix": machine.run(rows, 1500, head=0),
        "head": machine.run(rows, 1500, suffix=False),
        "both": machine.run(rows, 1500),
    }
    print({name: round(speed / plain, 3) for name, speed in speeds.items()})
    assert min(speeds.values()) >= 0.97 * plain
    assert speeds["both"] >= 0.97 * max(speeds.values())
