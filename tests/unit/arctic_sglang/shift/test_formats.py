"""Parts of fp8 weights against the whole, with kernels that take gaps between rows, that know none, and that refuse."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arctic_sglang.shift import formats, layers, weights
from arctic_sglang.shift.formats import Axes
from arctic_sglang.shift.layers import Shift
from arctic_sglang.shift.policy import Policy
from arctic_sglang.shift.topology import Heads, Tokens, Topology

SCALES = (
    "tensor",
    "number",
    "row",
    "column",
)  # one, of no or one dimension; one for each row, [1, out] or [out, 1]


def by_hand(layer, x, bias):
    """The slow twin: weights in float32."""
    product = x.float() @ (layer.weight.float() * layer.weight_scale.reshape(1, -1))
    return (product if bias is None else product + bias).to(x.dtype)


def by_torch(layer, x, bias):
    """With rows in fp8, a scale for each."""
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-6) / 448
    one = torch.ones(1)
    product = torch._scaled_mm(
        (x / scale).to(layer.weight.dtype), layer.weight, scale_a=one, scale_b=one, out_dtype=torch.float32
    )
    product = product * scale * layer.weight_scale.reshape(1, -1)
    return (product if bias is None else product + bias).to(x.dtype)


def without_gaps(layer, x, bias):
    """A kernel that goes from row to row by their length."""
    weight = layer.weight.as_strided(layer.weight.shape, (1, len(layer.weight)))
    return by_hand(formats.Seen(layer, {"weight": weight}), x, bias)


def refusing_gaps(layer, x, bias):
    if not layer.weight.t().is_contiguous():
        raise RuntimeError("mat2 must be contiguous")
    return by_hand(layer, x, bias)


def only_sixteens(layer, x, bias):
    if len(layer.weight) % 16:
        raise RuntimeError("mat2 must be divisible by 16")
    return by_hand(layer, x, bias)


class Fp8(nn.Module):
    """As SGLang leaves a layer."""

    def __init__(self, rows, columns, scales, kernel, bias=True):
        super().__init__()
        generator = torch.Generator().manual_seed(rows * 1000 + columns)
        made = torch.randn(rows, columns, generator=generator) * torch.linspace(0.5, 3, rows)[:, None]
        of_rows = scales in ("row", "column")
        scale = (made.abs().amax(1, keepdim=True) if of_rows else made.abs().max()) / 448
        self.weight = nn.Parameter((made / scale).to(torch.float8_e4m3fn).t(), requires_grad=False)
        shape = {"tensor": (), "number": (1,), "row": (1, rows), "column": (rows, 1)}[scales]
        self.weight_scale = nn.Parameter(scale.reshape(shape))
        self.input_scale = None
        self.bias = nn.Parameter(torch.randn(rows, generator=generator)) if bias else None
        self.kernel = kernel

    def format(self):
        return formats.fp8(self, torch.float32, self.kernel)

    def forward(self, x):
        return self.kernel(self, x, self.bias), None


def shift_of(sp, position):
    return Shift(Topology(1, sp), position, Policy(None), exchange=None)


def rows_in(count, columns):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(SCALES), st.sampled_from([by_hand, by_torch]), st.integers(1, 4),
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 5]),
)  # fmt: skip
def test_parts_of_rows_together_are_the_whole(scales, kernel, sp, inner, columns, count):
    sizes, x = [inner * sp, 2 * inner * sp], rows_in(count, 16 * columns)
    order = weights.merged_order(sizes, sp)
    wanted = Fp8(sum(sizes), 16 * columns, scales, kernel)(x)[0][:, order]
    found = []
    for position in range(sp):
        layer = Fp8(sum(sizes), 16 * columns, scales, kernel)
        switched = layers.SwitchedGateUp(layer, shift_of(sp, position), order, layer.format())
        found.append(layer(x)[0])
        whole = switched.whole["weight"]
        assert switched.copied is None
        assert whole.stride(0) == 1
        assert layer.weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert layer.weight.shape == (16 * columns, 3 * inner)
        assert layer.weight_scale.numel() == (3 * inner if scales in ("row", "column") else 1)
        together = switched.sequence_parallel(x, Tokens(count * sp, sp))
        torch.testing.assert_close(together.view(count, -1), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(SCALES), st.sampled_from([by_hand, without_gaps, refusing_gaps]), st.integers(1, 4),
    st.integers(2, 9), st.integers(1, 9), st.sampled_from([1, 2, 5]),
)  # fmt: skip
def test_the_sum_of_parts_of_columns_is_the_whole_whatever_the_kernel_does(
    scales, kernel, sp, rows, columns, count
):
    x = rows_in(count, columns * sp)
    wanted = by_hand(Fp8(rows, columns * sp, scales, kernel, bias=False), x, None)
    total = torch.zeros_like(wanted)
    for position in range(sp):
        layer = Fp8(rows, columns * sp, scales, kernel, bias=False)
        switched = layers.SwitchedRow(layer, shift_of(sp, position), form=layer.format())
        assert (switched.copied is not None) == (kernel is not by_hand and sp > 1)
        total += layer(x[:, position * columns : (position + 1) * columns].contiguous())[0]
        torch.testing.assert_close(switched.product(x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-4)


def test_the_kernel_of_the_copies_would_be_wrong_without_them():
    layer = Fp8(8, 32, "row", without_gaps, bias=False)
    view, x = layer.weight.data[16:], rows_in(3, 16)
    wanted = by_hand(formats.Seen(layer, {"weight": view}), x, None)
    assert (without_gaps(formats.Seen(layer, {"weight": view}), x, None) - wanted).abs().max() > 1


@pytest.mark.parametrize("scales", SCALES)
def test_query_key_and_value_with_heads_stored_twice(scales):
    heads = Heads(Topology(1, 4), 8, 2)
    order, x = weights.qkv_order(heads, 0, 3), rows_in(3, 16)
    made = Fp8((8 + 2 + 2) * 3, 16, scales, by_hand)
    wanted = made(x)[0][:, order].view(3, 4, -1)
    for position in range(4):
        layer = Fp8((8 + 2 + 2) * 3, 16, scales, by_hand)
        layers.SwitchedQkv(layer, shift_of(4, position), order, layer.format())
        torch.testing.assert_close(layer(x)[0], wanted[:, position], rtol=1e-5, atol=1e-5)


def test_a_part_that_no_kernel_takes_stops_the_start():
    layer = Fp8(16, 24, "row", only_sixteens, bias=False)
    with pytest.raises(
        ValueError, match=r"no product with a part \[12, 16\].*divisible by 16; take fewer ranks"
    ):
        layers.SwitchedRow(layer, shift_of(2, 0), form=layer.format())


def test_a_kernel_that_goes_wrong_with_many_rows_alone_is_found_out():
    def sloppy(layer, x, bias):
        return (without_gaps if len(x) > 1024 else by_hand)(layer, x, bias)

    layer = Fp8(16, 32, "row", sloppy, bias=False)
    assert layers.SwitchedRow(layer, shift_of(2, 1), form=layer.format()).copied is not None


def test_a_static_scale_of_rows_in_stays_as_it_is():
    layer = Fp8(8, 16, "tensor", by_hand)
    layer.input_scale = nn.Parameter(torch.tensor(0.25))
    form = layer.format()
    assert form.axes["input_scale"] == Axes()
    layers.SwitchedRow(layer, shift_of(2, 1), form=form)
    assert layer.input_scale.item() == 0.25


def test_what_is_no_such_weight_is_refused():
    def made(weight, scale, **more):
        return SimpleNamespace(weight=weight, weight_scale=scale, **more)

    weight = torch.zeros(6, 4).to(torch.float8_e4m3fn)
    for wrong in (torch.zeros(6, 4).t(), weight):  # no fp8; not transposed
        with pytest.raises(ValueError, match=r"float8_e4m3fn \[in, out\] with a stride of 1"):
            formats.fp8(made(wrong, torch.ones(1)), torch.float32, by_hand)
    for scale in (torch.ones(2, 2), torch.ones(4)):  # of blocks; of columns
        with pytest.raises(ValueError, match=r"weight_scale is .* for a weight of 6 rows and 4 columns"):
            formats.fp8(made(weight.t(), scale), torch.float32, by_hand)
    with pytest.raises(ValueError, match="input_scale is"):
        formats.fp8(made(weight.t(), torch.ones(6), input_scale=torch.ones(6)), torch.float32, by_hand)


def test_order_and_copies_keep_a_transposed_weight_transposed():
    weight = torch.arange(24.0).view(6, 4).t()  # 6 rows, 4 columns
    ordered = weights.in_order(weight, weights.merged_order([2, 4], 2), dim=1)
    assert ordered.stride() == (1, 4)
    assert ordered[0].tolist() == [0, 8, 12, 4, 16, 20]
    copied = formats.packed(weight[2:], Axes(1, 0))
    assert copied.stride() == (1, 2)
    assert torch.equal(copied, weight[2:])
    assert copied.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
