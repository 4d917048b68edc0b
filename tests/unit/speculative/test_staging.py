"""Drafts on their way to the device, as the kernels read them."""

import numpy as np
import pytest

from speculative.base import Drafts
from speculative.pace import Kind
from speculative.policy import Picked, Source

staging = pytest.importorskip("speculative.sglang_worker.staging")
drafting = pytest.importorskip("speculative.sglang_worker.drafting")


def plan(width, tokens, lengths, sources):
    lengths = np.array(lengths, np.int32)
    drafts = Drafts(np.array(tokens, np.int32), lengths, lengths.astype(np.float32))
    picked = Picked(np.array(sources, np.int8), lengths, lengths.astype(np.float32))
    return drafting.Plan(width, drafts, picked, Kind.WIDE)


def test_a_packed_draft_is_its_limit_its_source_and_its_tokens():
    buffers = staging.Staging(4, 8, "cpu")
    wide = plan(4, [[5, 6, 7, 8, 9], [3, 0, 0, 0, 0]], [5, 1], [Source.SUFFIX, Source.SUFFIX])
    assert buffers.put(wide).tolist() == [[5, 0, 5, 6, 7], [1, 0, 3, 0, 0]]
    # Narrower drafts than the step: what an earlier step left in the buffer is gone.
    for _ in range(staging.BUFFERS):
        few = plan(8, [[4], [0]], [1, 3], [Source.SUFFIX, Source.HEAD])
        assert buffers.put(few).tolist() == [[1, 0, 4, 0, 0, 0, 0, 0, 0], [3, 1, 0, 0, 0, 0, 0, 0, 0]]


def test_two_steps_later_a_draft_still_stands():
    """A copy to the device may be under way until then; on a CPU the buffer is what is handed out."""
    buffers = staging.Staging(1, 2, "cpu")
    sent = [buffers.put(plan(2, [[token]], [1], [Source.SUFFIX])) for token in (5, 6, 7)]
    assert [packed[0, 2].item() for packed in sent] == [5, 6, 7]
