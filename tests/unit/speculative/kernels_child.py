"""The Triton kernels of draft heads against their twins, on the CPU by Triton's interpreter (TRITON_INTERPRET=1).

Products are of whole numbers, so that they are exact and ties are frequent. Triton's interpreter cannot multiply
bfloat16; that is left to the tests on a GPU.
"""

import itertools

import torch

from speculative import chain
from speculative.speculators import gates, products, screen
from speculative.speculators.products import FLOAT8, Weight
from speculative.speculators.tiling import Tiling


def test_products(batch: int, outputs: int, width: int, *, float8: bool, tiling: Tiling) -> None:
    """The kernel's products and argmaxes are the twin's."""
    x = torch.randint(-2, 3, (batch, width)).half()
    values = torch.randint(-3, 4, (outputs, width)).half()
    weight = Weight(values.to(FLOAT8), 2.0 ** torch.randint(-2, 3, (outputs,))) if float8 else Weight(values)
    assert torch.equal(products.product_kernel(x, weight, tiling), products.product(x, weight))
    parts = products.candidates_kernel(x, weight, 5, tiling)
    assert parts.shape == (batch, -(-outputs // tiling.outputs))
    expected = products.candidates(x, weight, 5)
    assert torch.equal(parts.amax(-1, keepdim=True), expected)
    drafted, best = torch.zeros(batch, 3, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64)
    products.settle_kernel(parts, drafted[:, 1])
    products.settle_kernel(parts, best, ids=False)
    assert torch.equal(drafted[:, 1], products.product(x.float(), weight).argmax(-1) + 5)
    assert torch.equal(best, expected[:, 0])
    products.settle_kernel(torch.stack([best, best - 1]).T, drafted[:, 2])
    assert torch.equal(drafted[:, 2], drafted[:, 1])


def test_settling_many() -> None:
    """More parts than a block of the kernel has."""
    parts = torch.randint(-(2**62), 2**62, (2, 5000))
    best = torch.zeros(2, dtype=torch.int64)
    products.settle_kernel(parts, best, ids=False)
    assert torch.equal(best, parts.amax(-1))


def test_screens(batch: int, tokens: int, width: int) -> None:
    """The nominees, and the check of them, are the twin's."""
    weight = torch.randint(-8, 8, (tokens, width)).half()
    codes = screen.screen_of(weight).codes
    held = screen.Screen(codes, 2.0 ** torch.randint(-1, 2, (tokens,)), weight)
    x = torch.randint(-2, 3, (batch, width)).half()
    nominees = screen.nominate_kernel(x, held, Tiling(64, 32, 4, 2), plain=True)
    assert torch.equal(nominees, screen.nominate_twin(x, held))
    assert torch.equal(nominees, screen.nominate_kernel(x, held, Tiling(128, 64, 4, 2), plain=True))
    checked = screen.check_kernel(x, held, nominees, 7)
    assert torch.equal(checked, screen.check_twin(x, held, nominees, 7))


def test_gates(batch: int, width: int, dtype: torch.dtype, *, own_embeddings: bool, first: bool) -> None:
    """The kernel's state and cell are the twin's, up to a rounding of their types."""
    parts = torch.randn(batch, 4 * width).to(dtype)
    tokens = torch.randint(11, (batch, 3))[:, 1]
    embedding = torch.randn(11, width * (4 if own_embeddings else 1)).to(dtype)
    cell = None if first else torch.randn(batch, width)
    norms = tuple(torch.randn(width).to(dtype) for _ in range(4))
    found = gates.lstm_cell_kernel(parts, tokens, embedding, 2.3, cell, norms, 1e-6)
    twin = gates.lstm_cell(parts, tokens, embedding, 2.3, cell, norms, 1e-6)
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found[0], twin[0], rtol=rounding, atol=rounding)
    torch.testing.assert_close(found[1], twin[1], rtol=1e-5, atol=1e-5)
    scaled = gates.scale_input_kernel(parts, 1e-6), gates.scale_input(parts, 1e-6)
    torch.testing.assert_close(*scaled, rtol=rounding, atol=rounding)


def test_chains(rows: int, width: int, *, head: int, dtype: torch.dtype) -> None:
    """What is shown and what is accepted are the twins'."""
    table = torch.randint(10**6, (rows + 3, 200), dtype=torch.int32)
    lengths = torch.randint(100, (rows,))
    places = chain.Places(lengths, torch.randperm(rows + 3)[:rows], table, 60)
    packed = torch.randint(3, (rows, width + 1))
    packed[:, chain.LIMIT] = torch.randint(width, (rows,))
    packed[:, chain.FROM_HEAD] = torch.randint(2, (rows,))
    own = torch.randint(3, (head + 2, rows))[:head].T if head else None
    bonus, drafted = torch.randint(3, (rows,)).to(dtype), chain.Drafted(packed, own)
    shown = chain.chain_kernel(bonus, drafted, places)
    for ours, twins in zip(shown, chain.chain_twin(bonus, drafted, places), strict=True):
        assert torch.equal(ours, twins)
        assert ours.dtype == twins.dtype
    sampled = torch.randint(3, (rows, width)).to(dtype)
    sampled[::2, :-1] = shown.tokens[::2, 1:].to(dtype)  # some whole drafts are accepted
    arguments = sampled, shown.tokens, packed, lengths
    for ours, twins in zip(chain.accept_kernel(*arguments), chain.accept_twin(*arguments), strict=True):
        assert torch.equal(ours, twins)
        assert ours.dtype == twins.dtype


if __name__ == "__main__":
    torch.manual_seed(0)
    for rows, width, head in ((1, 2, 0), (5, 4, 3), (3, 8, 3), (4, 33, 2), (2, 3, 5), (7, 32, 0)):
        test_chains(rows, width, head=head, dtype=torch.int64)
        test_chains(rows, width, head=head, dtype=torch.int32)
    for float8 in (False, True):
        test_products(3, 131, 64, float8=float8, tiling=Tiling(64, 32, 4, 2))
        test_products(17, 100, 72, float8=float8, tiling=Tiling(64, 32, 4, 2))
        test_products(1, 1, 16, float8=float8, tiling=Tiling(64, 64, 4, 2))
    test_settling_many()
    test_screens(3, 131, 64)
    test_screens(17, 300, 72)
    test_screens(1, 40, 256)
    for own, first in itertools.product((False, True), repeat=2):
        test_gates(3, 40, torch.float32, own_embeddings=own, first=first)
    test_gates(1, 64, torch.bfloat16, own_embeddings=False, first=False)
    test_gates(2, 24, torch.float16, own_embeddings=False, first=False)
