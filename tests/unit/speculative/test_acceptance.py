import torch

from speculative.acceptance import accept, rows_of


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
        found = accept(sampled, verified, limits)
        lengths, last = slow(sampled, verified, limits)
        assert found.lengths.tolist() == lengths
        assert found.last.tolist() == last
        assert found.lengths.dtype == torch.int32
        seen |= set(lengths)
    assert len(seen) > 6


def test_the_token_before_the_draft_is_never_compared():
    found = accept(torch.tensor([[5, 6]]), torch.tensor([[6, 9]]), torch.tensor([1]))
    assert found.lengths.tolist() == [1]
    assert found.last.tolist() == [5]


def test_a_whole_draft():
    found = accept(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 5, 6]]), torch.tensor([2]))
    assert found.lengths.tolist() == [3]
    assert found.last.tolist() == [7]


def test_no_rows_and_width_one():
    assert accept(torch.empty(0, 4), torch.empty(0, 4), torch.empty(0)).lengths.tolist() == []
    found = accept(torch.tensor([[3], [4]]), torch.tensor([[1], [1]]), torch.tensor([0, 0]))
    assert found.lengths.tolist() == [1, 1]
    assert found.last.tolist() == [3, 4]


def test_rows_of_the_last_tokens():
    assert rows_of(torch.tensor([1, 3, 2], dtype=torch.int32), 4).tolist() == [0, 6, 9]
