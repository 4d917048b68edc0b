"""Both ends of a verify step: the twins in torch against plain Python."""

import pytest
import torch

from speculative.chain import Drafted, Places, accept, chain


def slow(sampled, verified, limits):
    lengths, last = [], []
    for row, draft, limit in zip(sampled.tolist(), verified.tolist(), limits.tolist(), strict=True):
        count = 0
        while count < min(limit, len(row) - 1) and row[count] == draft[count + 1]:
            count += 1
        lengths.append(count + 1)
        last.append(row[count])
    return lengths, last


def test_the_longest_agreeing_part_is_accepted():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for width in (2, 3, 8, 33):
        sampled = torch.randint(0, 2, (500, width), generator=generator)
        verified = torch.randint(0, 2, (500, width), generator=generator)
        limits = torch.randint(0, width, (500,), generator=generator)
        found = accept(sampled, verified, packed_of(limits, width), 7 * limits)
        lengths, last = slow(sampled, verified, limits)
        assert found.lengths.tolist() == lengths
        assert found.last.tolist() == last
        assert found.lengths.dtype == torch.int32
        assert found.rows.tolist() == [row * width + n - 1 for row, n in enumerate(lengths)]
        assert found.cached.tolist() == [
            7 * limit + n for limit, n in zip(limits.tolist(), lengths, strict=True)
        ]
        seen |= set(lengths)
    assert len(seen) > 6


def packed_of(limits, width):
    packed = torch.full((len(limits), width + 1), 99)
    packed[:, 0] = limits
    return packed


def accepted(sampled, verified, limits):
    found = accept(torch.tensor(sampled), torch.tensor(verified), packed_of(torch.tensor(limits), len(sampled[0])),
                   torch.zeros(len(limits), dtype=torch.int64))  # fmt: skip
    return found.lengths.tolist(), found.last.tolist()


def test_the_token_before_the_draft_is_never_compared():
    assert accepted([[5, 6]], [[6, 9]], [1]) == ([1], [5])


def test_a_whole_draft():
    assert accepted([[5, 6, 7]], [[1, 5, 6]], [2]) == ([3], [7])


def test_no_rows_and_width_one():
    none = torch.empty((0, 4), dtype=torch.int64)
    assert accept(none, none, torch.empty((0, 5)), torch.empty(0)).lengths.tolist() == []
    assert accepted([[3], [4]], [[1], [1]], [0, 0]) == ([1, 1], [3, 4])


@pytest.mark.parametrize("head", [None, 1, 3, 9])
def test_the_model_is_shown_the_last_token_and_the_draft(head):
    """Of the index or the head; the head's is cut to the step's width, the last positions to the model's."""
    table = torch.arange(60, dtype=torch.int32).reshape(3, 20) + 100
    places = Places(torch.tensor([4, 9]), torch.tensor([2, 0]), table, last=10)
    packed = torch.tensor([[3, 0, 21, 22, 23], [2, 1, 31, 32, 0]])
    own = None if head is None else torch.arange(2 * head).reshape(2, head) + 500
    found = chain(torch.tensor([7, 8], dtype=torch.int32), Drafted(packed, own), places)
    second = [31, 32, 0] if own is None else [*own[1].tolist(), *[31, 32, 0][head:]][:3]
    assert found.tokens.tolist() == [[7, 21, 22, 23], [8, *second]]
    assert found.slots.tolist() == [[144, 145, 146, 147], [109, 110, 111, 112]]
    assert found.positions.tolist() == [[4, 5, 6, 7], [9, 10, 10, 10]]
    assert {part.dtype for part in found} == {torch.int64}


def test_padding_behind_a_requests_row_is_not_in_the_next_ones():
    table = torch.arange(60, dtype=torch.int32).reshape(3, 20) + 100
    places = Places(torch.tensor([18, 16]), torch.tensor([1, 0]), table, last=10)
    found = chain(
        torch.tensor([7, 8], dtype=torch.int32), Drafted(torch.zeros(2, 5, dtype=torch.int64), None), places
    )
    assert found.slots.tolist() == [[138, 139, 139, 139], [116, 117, 118, 119]]
