"""Rotation of keys in plain torch, against transformers' and against the definition."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from swiftkv.kv_write import Rotation, rotate


def table(positions: int, rotary_dim: int) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2).float() / rotary_dim)
    angles = torch.arange(positions).float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)


def test_equals_transformers():
    heads = torch.randn(7, 3, 2, 16)  # tokens, groups, heads, head_dim
    positions = torch.tensor([0, 5, 1, 30, 2, 2, 9])
    found = rotate(heads, positions, Rotation(table(40, 16), True, 16))
    cos, sin = (part.repeat(1, 2)[positions][None] for part in table(40, 16).chunk(2, -1))
    plain = heads.flatten(1, 2).transpose(0, 1)[None]
    wanted, _ = apply_rotary_pos_emb(plain, plain, cos, sin)
    torch.testing.assert_close(found, wanted[0].transpose(0, 1).unflatten(1, (3, 2)))


def test_neighbours_are_pairs_in_gpt_j():
    heads = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    found = rotate(heads, torch.tensor([3]), Rotation(table(8, 4), False, 4))
    small = 3 * 10000.0**-0.5
    wanted = [math.cos(3), math.sin(3), -math.sin(small), math.cos(small)]
    torch.testing.assert_close(found[0], torch.tensor(wanted))


@pytest.mark.parametrize("neox", [True, False])
def test_what_is_beyond_the_rotary_part_stays(neox):
    heads = torch.randn(4, 2, 10)
    positions = torch.arange(4)
    found = rotate(heads, positions, Rotation(table(8, 6), neox, 10))
    assert torch.equal(found[..., 6:], heads[..., 6:])
    assert torch.equal(found[0], heads[0])
    torch.testing.assert_close(found.norm(dim=-1), heads.norm(dim=-1))


def test_no_tokens():
    heads = torch.randn(0, 2, 8)
    assert rotate(heads, torch.zeros(0, dtype=torch.long), Rotation(table(4, 8), True, 8)).shape == (0, 2, 8)
