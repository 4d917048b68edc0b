"""How tensors lie that travel."""

import pytest
import torch

from arctic_sglang.shift.layout import Apart

QUERY, REST = torch.arange(12).view(2, 6), torch.arange(12, 20).view(2, 4)


@pytest.mark.parametrize("dim", [-1, 1])
def test_blocks_split_as_the_tensor_of_both_would_and_queries_have_no_gaps(dim):
    found = Apart([QUERY, REST]).split([6, 2, 2], dim=dim)
    wanted = torch.cat((QUERY, REST), 1).split([6, 2, 2], dim=dim)
    assert [part.tolist() for part in found] == [part.tolist() for part in wanted]
    assert found[0].is_contiguous()
    assert found[0].data_ptr() == QUERY.data_ptr()


@pytest.mark.parametrize(
    ("sizes", "dim"),
    [([5, 3, 2], -1), ([6, 2], -1), ([6, 2, 2, 1], -1), ([6, 5], 1), ([6, 2, 2], 0), ([], -1)],
)
def test_other_sizes_are_refused(sizes, dim):
    with pytest.raises(ValueError, match="blocks of \\[6, 4\\] columns do not split"):
        Apart([QUERY, REST]).split(sizes, dim=dim)
