"""The kernel that pushes blocks against its twin, on the CPU by Triton's interpreter (TRITON_INTERPRET=1).

All ranks of a group are in this process: each pushes in its turn, and what then lies in every memory is compared with
what the twin leaves there, and with the exchange over process groups that a layout describes.
"""

import itertools
from collections.abc import Callable

import torch

from arctic_sglang.shift import layout
from arctic_sglang.shift.push import (
    Blocks,
    Vocabulary,
    push,
    push_chosen,
    push_chosen_twin,
    push_embedded,
    push_embedded_twin,
    push_twin,
)  # fmt: skip
from arctic_sglang.shift.topology import Tokens


def exchanged(sources: list[torch.Tensor], make: Callable[[int], Blocks], size: int) -> list[torch.Tensor]:
    """What lies in each rank's memory after all have pushed; by the kernel and by the twin alike."""
    sp = len(sources)
    memories = [[torch.full((size,), 7.0, dtype=sources[0].dtype) for _ in range(sp)] for _ in range(2)]
    addresses = torch.tensor([memory.data_ptr() for memory in memories[0]])
    for position, source in enumerate(sources):
        push(source, addresses, position, make(position))
        push_twin(source, memories[1], make(position))
    for by_kernel, by_twin in zip(*memories, strict=True):
        assert torch.equal(by_kernel, by_twin)
    return memories[0]


def test_exchanges(sp: int, count: int, width: int, dtype: torch.dtype) -> None:
    """Rows to heads and back, scattered and gathered, are what process groups would make of them."""
    tokens = Tokens(count, sp)
    share = tokens.share
    rows = [torch.randn(share, sp * width).to(dtype) for _ in range(sp)]

    def to_heads(position: int) -> Blocks:
        return Blocks(width, share, sp * width, width, width, position * share * width)

    heads = exchanged(rows, to_heads, tokens.padded * width)
    sent = [layout.send_rows(row, sp) for row in rows]
    for part in range(sp):
        expected = layout.received_heads(torch.stack([parts[part] for parts in sent]), tokens)
        assert torch.equal(heads[part].view(-1, width)[:count], expected)

    def to_rows(position: int) -> Blocks:
        return Blocks(width, share, width, share * width, sp * width, position * width, count)

    owned = [torch.randn(count, width).to(dtype) for _ in range(sp)]
    back = exchanged(owned, to_rows, tokens.padded * width)
    sent = [layout.send_heads(own, tokens) for own in owned]
    for part in range(sp):
        expected = layout.received_rows(torch.stack([parts[part] for parts in sent]))
        assert torch.equal(back[part].view(share, sp * width), expected)

    def gathered(position: int) -> Blocks:
        return Blocks(width, share, width, 0, width, position * share * width)

    own = [torch.randn(share, width).to(dtype) for _ in range(sp)]
    for found in exchanged(own, gathered, tokens.padded * width):
        assert torch.equal(found.view(-1, width), torch.cat(own))


def test_rows(sp: int, share: int, width: int, dtype: torch.dtype) -> None:
    """Embeddings of a vocabulary that ranks share out, and some rows of all ranks' for all of them."""
    each, ids = 5, torch.randint(0, 5 * sp, (sp * share,))
    table = torch.randn(each * sp, width).to(dtype)
    parts = [slice(rank * each, (rank + 1) * each) for rank in range(sp)]
    own = [Vocabulary(table[part], part.start, len(table)) for part in parts]
    embedded = table[ids]
    for odd, token in zip((-1, each * sp, 1_000_000), torch.randperm(len(ids)).tolist(), strict=False):
        ids[token] = odd  # no rank has it
        embedded[token] = 0
    found, twins = ([torch.full((share, width), 7.0, dtype=dtype) for _ in range(sp)] for _ in range(2))
    addresses = torch.tensor([target.data_ptr() for target in found])
    for position, vocabulary in enumerate(own):
        push_embedded(ids, vocabulary, addresses, share, position)
        push_embedded_twin(ids, vocabulary, twins, share, position)
    assert torch.equal(torch.cat(found), embedded)
    assert torch.equal(torch.cat(twins), embedded)
    assert torch.equal(sum(vocabulary.rows(ids) for vocabulary in own), embedded)

    rows = [torch.randn(share, width).to(dtype) for _ in range(sp)]
    chosen = torch.randperm(sp * share)[: share + 1]
    found, twins = ([torch.full((sp * share, width), 7.0, dtype=dtype) for _ in range(sp)] for _ in range(2))
    addresses = torch.tensor([target.data_ptr() for target in found])
    for position, mine in enumerate(rows):
        push_chosen(mine, chosen, addresses, position)
        push_chosen_twin(mine, chosen, twins, position)
    wanted = torch.full((sp * share, width), 7.0, dtype=dtype)
    wanted[chosen] = torch.cat(rows)[chosen]
    assert all(torch.equal(got, wanted) for got in (*found, *twins))


if __name__ == "__main__":
    torch.manual_seed(0)
    for sp, count in itertools.product((1, 2, 3, 4), (0, 1, 2, 5, 33)):
        test_exchanges(sp, count, 24, torch.float32)
        test_exchanges(sp, count, 7, torch.float16)  # rows that do not begin at 16 bytes
    for sp, share in itertools.product((1, 2, 3), (0, 1, 4)):
        test_rows(sp, share, 24, torch.float32)
        test_rows(sp, share, 7, torch.float16)
    test_rows(2, 2, 4100, torch.float32)  # more than a block
    test_exchanges(2, 70, 1030, torch.float32)  # more than a tile, either way
