"""Draft heads on a GPU: kernels against their twins on the CPU, graphs against eager drafts, float8 against float32."""

import pytest
import torch
from torch import distributed

from speculative.speculators import SpeculatorConfig, VocabShard, build, gates, load, products, save
from speculative.speculators.drafter import Drafter, gather_over
from speculative.speculators.products import DEFAULT_TILING, FLOAT8, TILINGS, Tiling, Weight

pytestmark = pytest.mark.gpu

ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHORT = [torch.float16, torch.bfloat16]


def on_gpu(weight):
    return Weight(weight.values.cuda(), None if weight.scales is None else weight.scales.cuda())


def whole_numbers(batch, outputs, width, dtype):
    """A product that is exact in any order, with frequent ties."""
    torch.manual_seed(batch + outputs + width)
    x, values = torch.randint(-2, 3, (batch, width)), torch.randint(-3, 4, (outputs, width))
    if dtype == FLOAT8:
        return x.half(), Weight(values.half().to(FLOAT8), 2.0 ** torch.randint(-2, 3, (outputs,)))
    return x.to(dtype), Weight(values.to(dtype))


@pytest.mark.parametrize("dtype", [FLOAT8, *SHORT], ids=str)
@pytest.mark.parametrize(
    ("batch", "outputs", "width"),
    [
        *((batch, 1037, 320) for batch in (1, 2, 7, 16, 17, 33, 64, 100, 128)),
        *(
            (batch, outputs, width)
            for batch in (7, 33)
            for outputs, width in ((4096, 512), (65, 72), (300, 100))
        ),
    ],
)
def test_products_are_the_twins(dtype, batch, outputs, width):
    x, weight = whole_numbers(batch, outputs, width, dtype)
    twin = products.product(x, weight)
    assert torch.equal(products.product(x.cuda(), on_gpu(weight)).cpu(), twin)
    parts = products.candidates(x.cuda(), on_gpu(weight), 11)
    expected = products.candidates(x, weight, 11)[:, 0]
    assert torch.equal(parts.amax(-1).cpu(), expected)
    drafted = torch.zeros(batch, 4, dtype=torch.int64, device="cuda")
    products.settle(parts, drafted[:, 2])
    assert torch.equal(drafted[:, 2].cpu(), products.unpack(expected))
    assert not drafted[:, [0, 1, 3]].any()


@pytest.mark.parametrize("dtype", [FLOAT8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("batch", [3, 64])
def test_every_tiling(dtype, tiling, batch):
    x, weight = whole_numbers(batch, 2051, 4096, dtype)
    try:
        parts = products.candidates_kernel(x.cuda(), on_gpu(weight), 0, tiling)
    except products.OutOfResources:
        assert tiling != DEFAULT_TILING
        pytest.skip("does not fit into this GPU")
    assert torch.equal(parts.amax(-1).cpu(), products.candidates(x, weight)[:, 0])


def test_shards_and_the_whole_choose_the_same():
    x, weight = whole_numbers(9, 1037, 256, FLOAT8)
    x, weight = x.cuda(), on_gpu(weight)
    whole = products.candidates(x, weight).amax(-1)
    packed = []
    for rank in (2, 0, 1):
        rows = VocabShard(rank, 3).tokens(1037)
        part = Weight(weight.values[rows.start : rows.stop], weight.scales[rows.start : rows.stop])
        best = torch.empty(9, dtype=torch.int64, device="cuda")
        products.settle(products.candidates(x, part, rows.start), best, ids=False)
        packed.append(best)
    out = torch.empty(9, dtype=torch.int64, device="cuda")
    products.settle(torch.cat(packed).view(3, 9).T, out)
    assert torch.equal(out, products.unpack(whole))


def test_zeros_of_both_signs_and_infinities_are_ordered():
    x = torch.tensor([[1.0] + [0.0] * 15, [-1.0] + [0.0] * 15], dtype=torch.float16)
    values = torch.zeros(70, 16, dtype=torch.float16)
    values[:, 0] = torch.tensor([-3.0] * 35 + [-0.0] * 5 + [0.0] * 30)
    found = products.unpack(products.candidates(x.cuda(), Weight(values.cuda())).amax(-1))
    assert found.tolist() == [35, 0]


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT], ids=str)
@pytest.mark.parametrize("width", [40, 1000, 4096, 6144, 8192])
@pytest.mark.parametrize("own_embeddings", [False, True])
@pytest.mark.parametrize("first", [False, True])
@torch.no_grad()
def test_gates_are_the_twins(dtype, width, own_embeddings, first):
    torch.manual_seed(width)
    parts, tokens = torch.randn(5, 4 * width).to(dtype) * 2, torch.randint(31, (5, 3))
    embedding = torch.randn(31, width * (4 if own_embeddings else 1)).to(dtype)
    cell = None if first else torch.randn(5, width)
    norms = tuple(torch.randn(width).to(dtype) for _ in range(4))
    twin = gates.lstm_cell(parts, tokens[:, 1], embedding, 2.3, cell, norms, 1e-6)
    found = gates.lstm_cell(
        parts.cuda(), tokens.cuda()[:, 1], embedding.cuda(), 2.3, None if first else cell.cuda(),
        tuple(norm.cuda() for norm in norms), 1e-6,
    )  # fmt: skip
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0].cpu(), twin[0], rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    torch.testing.assert_close(found[1].cpu(), twin[1], rtol=1e-4, atol=1e-4)
    scaled = gates.scale_input(parts.cuda(), 1e-6).cpu(), gates.scale_input(parts, 1e-6)
    torch.testing.assert_close(*scaled, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def head(kind="lstm", *, dtype=torch.bfloat16, hidden=384, inner=256, vocab=5003, shard=None):
    torch.manual_seed(1)
    if kind == "lstm":
        config = SpeculatorConfig.lstm(hidden, inner, vocab, scale_input=True)
    else:
        config = SpeculatorConfig(kind, hidden, (inner,), (inner,), (inner,), 3, vocab)
    speculator = build(config)
    speculator.reset_parameters()
    return speculator.to(dtype).eval().requires_grad_(False)


def inputs(batch, hidden=384, vocab=5003, dtype=torch.bfloat16):
    torch.manual_seed(batch)
    return torch.randn(batch, hidden).to(dtype).cuda(), torch.randint(vocab, (batch,)).cuda()


def loss(speculator, hidden, tokens, drafted):
    """How far each drafted token's logit is below the best, in deviations of the logits, computed in float32."""
    exact = speculator.float().cpu()
    known = torch.cat([tokens.cpu()[:, None], drafted.cpu()], dim=1)
    losses = []
    for step in range(drafted.shape[1]):
        state = exact.start(hidden.float().cpu())
        for index in range(step + 1):
            state = exact.step(index, state, known[:, index])
        logits = torch.nn.functional.linear(state.output, exact.head_weight(step))
        picked = logits.gather(1, known[:, step + 1 : step + 2])[:, 0]
        losses.append((logits.amax(-1) - picked) / logits.std(-1))
    return torch.stack(losses).max().item()


@pytest.mark.parametrize("kind", ["lstm", "rnn", "mlp"])
@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("way", ["matmul", "fused", "float8"])
def test_a_graph_drafts_as_without(kind, dtype, way):
    speculator = head(kind, dtype=dtype).cuda()
    drafter = Drafter(speculator, max_batch=14)
    drafter._ways = [way]
    drafter.capture()
    for batch in (14, 1, 5, 12, 3, 14):
        hidden, tokens = inputs(batch, dtype=dtype)
        found = drafter.draft(hidden, tokens).clone()
        assert drafter.way(batch) == way
        plain = torch.empty(batch, 3, dtype=torch.int64, device="cuda")
        # The graph's rows are padded, and products of other sizes may be summed in another order.
        size = next(size for size in drafter._sizes if size >= batch)
        padded = torch.zeros(size, 3, dtype=torch.int64, device="cuda")
        wide = torch.cat([hidden, hidden[:1].expand(size - batch, -1)]).to(drafter._weights[way].dtype)
        drafter._body(way, wide, torch.cat([tokens, tokens[:1].expand(size - batch)]), padded)
        assert torch.equal(found, padded[:batch])
        drafter._body(way, hidden.to(drafter._weights[way].dtype), tokens, plain)
        assert (found == plain).float().mean() > 0.9
        assert torch.equal(drafter.draft(hidden, tokens), found)
    hidden, tokens = inputs(13, dtype=dtype)
    found = drafter.draft(hidden, tokens)
    assert loss(head(kind, dtype=dtype), hidden, tokens, found) < (0.3 if way == "float8" else 0.1)


def test_what_is_measured_is_kept_and_right():
    drafter = Drafter(head().cuda(), max_batch=8)
    assert drafter.way(3) == "matmul"
    hidden, tokens = inputs(3)
    found = drafter.draft(hidden, tokens).clone()
    assert drafter.way(3) in ("matmul", "fused", "float8")
    assert set(drafter.measure(3)) == {"matmul", "fused", "float8"}
    assert torch.equal(drafter.draft(hidden, tokens), found)
    assert drafter.draft(hidden, tokens, 5).shape == (3, 5)
    assert torch.equal(drafter.draft(hidden, tokens, 3), found)
    large = inputs(40)
    assert drafter.draft(*large).shape == (40, 3)
    assert drafter.draft(hidden[:0], tokens[:0]).shape == (0, 3)


def test_inputs_of_other_types_and_strides():
    drafter = Drafter(head().cuda(), max_batch=8, float8="on")
    hidden, tokens = inputs(6)
    found = drafter.draft(hidden, tokens).clone()
    assert drafter.way(6) == "float8"
    wide = torch.stack([hidden, -hidden], dim=1)
    assert torch.equal(drafter.draft(wide[:, 0], tokens.int()), found)
    assert torch.equal(drafter.draft(hidden.float(), torch.stack([tokens, tokens], 1)[:, 0]), found)
    beyond = drafter.draft(hidden, torch.full_like(tokens, 2**40)).clone()
    assert torch.equal(beyond, drafter.draft(hidden, torch.full_like(tokens, 5002)))


def test_only_float8_and_none():
    on, off = Drafter(head().cuda(), float8="on"), Drafter(head().cuda(), float8="off")
    hidden, tokens = inputs(4)
    on.draft(hidden, tokens)
    off.draft(hidden, tokens)
    assert on.way(4) == "float8"
    assert off.way(4) in ("matmul", "fused")
    assert on.float8_bytes > 5003 * 256
    assert off.float8_bytes == 0
    assert on.way(200) == "matmul"


@pytest.mark.parametrize("way", ["matmul", "fused", "float8"])
def test_gathering_within_a_graph(tmp_path, way):
    """NCCL over one rank: that the gather is captured, and that candidates of ranks are compared as those of blocks."""
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        speculator = head().cuda()
        alone, gathering = (
            Drafter(speculator),
            Drafter(speculator, gather=gather_over(distributed.group.WORLD)),
        )
        for drafter in (alone, gathering):
            drafter._ways = [way]
        hidden, tokens = inputs(5)
        before = gathering.draft(hidden, tokens).clone()
        assert gathering.way(5) == "matmul"
        gathering.capture([5, 12], stream=torch.cuda.Stream())
        assert gathering.way(5) == way
        assert torch.equal(gathering.draft(hidden, tokens), alone.draft(hidden, tokens))
        assert (before == gathering.draft(hidden, tokens)).float().mean() > 0.8
    finally:
        distributed.destroy_process_group()


def test_loading_onto_the_gpu(tmp_path):
    speculator = head()
    save(speculator, tmp_path)
    loaded = load(tmp_path, device="cuda", shard=VocabShard(1, 3))
    assert loaded.head_weight(0).is_cuda
    assert torch.equal(loaded.head_weight(0).cpu(), speculator.head_weight(0)[5003 // 3 : 2 * 5003 // 3])


def test_positions_of_a_sequence_without_gradients():
    speculator = head(dtype=torch.float32).cuda()
    hidden, _ = inputs(12, dtype=torch.float32)
    rows = torch.randint(5003, (3, 4 + 2), device="cuda")
    with torch.no_grad():
        quiet = speculator.states(hidden.view(3, 4, 384), rows)
    speculator.requires_grad_(True)
    loud = speculator.states(hidden.view(3, 4, 384), rows)
    assert all(torch.equal(a, b.detach()) for a, b in zip(quiet, loud, strict=True))
    loud[-1].sum().backward()
    assert all(
        p.grad is not None for name, p in speculator.named_parameters() if not name.startswith("head.")
    )


def test_the_shape_of_llama_8b():
    """128,256 tokens, width 4096: the float8 head against the same weights multiplied by torch in float32."""
    torch.manual_seed(0)
    weight = torch.randn(128256, 4096, dtype=torch.bfloat16, device="cuda") / 64
    held = products.quantise(weight)
    x = torch.randn(16, 4096, device="cuda").half()
    parts = zip(held.values.split(8192), held.scales.split(8192), strict=True)
    logits = torch.cat([x.float() @ (values.float() * s[:, None]).T for values, s in parts], dim=1)
    torch.testing.assert_close(products.product(x, held).float(), logits, rtol=4e-3, atol=4e-3)
    best = products.candidates(x, held).amax(-1)
    assert (logits.amax(-1) - logits.gather(1, products.unpack(best)[:, None])[:, 0]).max() < 1e-3
    fast = products.tune(x, held)
    again = products.candidates_kernel(x, held, 0, fast).amax(-1)
    assert (products.unpack(again) == products.unpack(best)).float().mean() > 0.9
    plain = products.candidates(x.bfloat16(), Weight(weight)).amax(-1)
    assert (products.unpack(plain) == logits.argmax(-1)).float().mean() > 0.5


def test_rows_and_tilings_that_do_not_fit():
    x, weight = whole_numbers(3, 70, 64, FLOAT8)
    with pytest.raises(ValueError, match="the kernel takes up to 128"):
        products.product(x.cuda().bfloat16(), on_gpu(weight))
    with pytest.raises(products.OutOfResources):
        products.candidates_kernel(x.cuda(), on_gpu(weight), 0, Tiling(256, 256, 8, 6))
