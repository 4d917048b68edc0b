"""The pooler against its slow twin."""

import pytest
import torch

from arctic_sglang.embedding.pool import pool, pool_slow

MODES = ["cls", "mean", "last"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [[1], [3, 1, 7], [5] * 33, [1, 512, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_slow_twin(mode, lengths, dtype):
    torch.manual_seed(len(lengths))
    hidden = torch.randn(sum(lengths), 24).to(dtype)
    fast, slow = pool(mode, hidden, torch.tensor(lengths)), pool_slow(mode, hidden, torch.tensor(lengths))
    assert fast.shape == (len(lengths), 24)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max().item() < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_neighbours_do_not_matter(mode):
    torch.manual_seed(0)
    text, big = torch.randn(9, 16), 1e4 * torch.randn(4000, 16)
    alone = pool(mode, text, torch.tensor([9]))
    beside = pool(mode, torch.cat([big, text, big]), torch.tensor([4000, 9, 4000]))[1:2]
    assert torch.equal(alone, beside)
