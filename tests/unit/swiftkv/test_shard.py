"""Which heads of a checkpoint's keys and values each rank takes."""

import pytest
import torch

from swiftkv.models.keys_values import UpperKeysValues


def of_rank(rank: int, ranks: int, heads: int) -> UpperKeysValues:
    """The module with its sizes and nothing else; its constructor wants a running SGLang."""
    module = UpperKeysValues.__new__(UpperKeysValues)
    torch.nn.Module.__init__(module)
    module.tp_rank, module.tp_size, module.total_kv_heads = rank, ranks, heads
    module.kv_heads = max(1, heads // ranks)
    return module


@pytest.mark.parametrize(
    ("ranks", "heads", "wanted"),
    [
        (1, 3, [[0, 1, 2]]),
        (2, 4, [[0, 1], [2, 3]]),
        (4, 4, [[0], [1], [2], [3]]),
        (4, 2, [[0], [0], [1], [1]]),  # fewer heads than ranks: each is on several
        (8, 1, [[0]] * 8),
    ],
)
@pytest.mark.parametrize("head_dim", [2, 5])
def test_heads_of_each_rank(ranks, heads, wanted, head_dim):
    weight = torch.arange(heads * head_dim)[:, None].expand(-1, 3)
    bias = weight[:, 0]
    for rank, mine in enumerate(wanted):
        rows = [head * head_dim + i for head in mine for i in range(head_dim)]
        assert of_rank(rank, ranks, heads).shard(weight)[:, 0].tolist() == rows
        assert of_rank(rank, ranks, heads).shard(bias).tolist() == rows


def test_what_has_no_heads_is_left_whole():
    assert of_rank(1, 2, 2).shard(torch.tensor(0.5)).item() == 0.5
