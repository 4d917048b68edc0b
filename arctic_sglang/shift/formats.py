"""How a layer's weights lie and how a product with them is computed: one format for each way to store them. Pure torch.

Weights as they were made are [out, in]; SGLang keeps those in fp8 transposed, [in, out], with a scale for the whole
weight or one for each output. What `Switched` does with a layer - put its rows in order, cut out a part - is the same
for all of them once it is known which dimension of which tensor runs along the rows and which along the columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

# Rows of the products that a part is tried with: kernels are chosen by that number.
_TRIED = (1, 17, 130, 520, 1100)
# Products of the same numbers differ by rounding, those of the wrong numbers by as much as they are large.
_ROUNDING = 2**-5

# (layer, x [rows, in], bias [out] or None) -> [rows, out]. Of the layer it uses the tensors that its format names.
Product = Callable[[Any, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Axes:
    """Which dimension of a tensor runs along a layer's rows (outputs), and which along its columns (inputs).

    Attributes:
        rows: a dimension; None: the tensor is the same for all rows.
        columns: a dimension; None: the tensor is the same for all columns.
    """

    rows: int | None = None
    columns: int | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A way of storing the weights of a linear layer.

    Attributes:
        axes: of its tensors by name, `weight` among them; what a layer does not have, or has as None, is left out.
        product: with those tensors.
        quantized: the weights are no longer what was loaded, so they cannot be loaded again; and the product is a
            kernel's that may have demands on how a part of them lies.
        dtype: of the rows in and out; None: the weight's.
        into: (layer, found [rows, out], x [rows, in], bias [out] or None) sets `found` to the product; None: its
            kernel cannot.
    """

    axes: Mapping[str, Axes]
    product: Product
    quantized: bool = False
    dtype: torch.dtype | None = None
    into: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor | None], None] | None = None

    def write(self, layer: Any, found: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Sets `found` to the product.

        Args:
            layer: with the tensors.
            found: [rows, out].
            x: [rows, in].
            bias: [out] or None.
        """
        if self.into is None:
            found.copy_(self.product(layer, x, bias))
        else:
            self.into(layer, found, x, bias)


class Seen:
    """A layer with other tensors in the place of some of its own.

    Args:
        layer: everything that is not in `tensors` is its.
        tensors: by name.
    """

    def __init__(self, layer: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self._layer, self._tensors = layer, tensors

    def __getattr__(self, name: str) -> Any:
        """A tensor, or what the layer has."""
        found = self._tensors.get(name)
        return getattr(self._layer, name) if found is None else found


def _linear(layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return linear(x, layer.weight, bias)


def _linear_into(layer: Any, found: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
    if bias is None:
        torch.mm(x, layer.weight.t(), out=found)
    else:
        torch.addmm(bias, x, layer.weight.t(), out=found)


PLAIN = Format({"weight": Axes(0, 1), "bias": Axes(0)}, _linear, into=_linear_into)


def fp8(layer: Any, dtype: torch.dtype, product: Product) -> Format:
    """The format of weights in fp8 with a scale for all of them or one for each row.

    Args:
        layer: `weight` float8 [in, out] with stride 1 along `in`; `weight_scale` float32 of 1 or `out` numbers;
            `input_scale` of 1 number, None or missing.
        dtype: of the rows in and out.
        product: with those.

    Raises:
        ValueError: the layer has something else.
    """
    weight, axes = layer.weight, {"weight": Axes(1, 0), "bias": Axes(0)}
    if weight.dtype != torch.float8_e4m3fn or weight.dim() != 2 or weight.stride(0) != 1:
        msg = (
            f"an fp8 weight is {weight.dtype} {list(weight.shape)} with strides {weight.stride()}; float8_e4m3fn "
            "[in, out] with a stride of 1 along `in` is wanted"
        )
        raise ValueError(msg)
    for name in ("weight_scale", "input_scale"):
        scale = getattr(layer, name, None)
        if scale is None:
            continue
        if scale.numel() == 1:
            axes[name] = Axes()
        elif name == "weight_scale" and scale.numel() == weight.shape[1]:
            axes[name] = Axes(rows=list(scale.shape).index(weight.shape[1]))
        else:
            msg = (
                f"{name} is {list(scale.shape)} for a weight of {weight.shape[1]} rows and {weight.shape[0]} columns; "
                "one scale for all of it, or one for each row, is wanted"
            )
            raise ValueError(msg)
    return Format(axes, product, quantized=True, dtype=dtype)


def packed(tensor: torch.Tensor, axes: Axes) -> torch.Tensor:
    """A copy without gaps, in the same order: each row after the one before.

    Args:
        tensor: with rows.
        axes: its own.
    """
    assert axes.rows is not None
    rows_first = tensor.movedim(axes.rows, 0)
    return rows_first.clone(memory_format=torch.contiguous_format).movedim(0, axes.rows)


def takes_part(
    form: Format, layer: Any, whole: torch.Tensor, part: Callable[[torch.Tensor], torch.Tensor]
) -> bool:
    """Whether a kernel computes with a part of a weight where it lies: some take the gaps between its rows for weights.

    That is no error anywhere, so it is tried, with random weights and scales of 1.

    Args:
        form: of the weight.
        layer: of which the rest is taken.
        whole: the weight.
        part: of a tensor that lies like `whole`, as a view.

    Returns:
        False: the kernel needs a `packed` one.

    Raises:
        RuntimeError: it does not compute with that either, for instance because its sizes are odd.
    """
    axes, device = form.axes["weight"], whole.device
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.empty_like(whole, dtype=form.dtype).normal_(generator=generator).to(whole.dtype)
    view = part(noise)
    tensors = {"weight": view}
    for name, along in form.axes.items():
        if name.endswith("_scale"):
            size = [
                view.shape[axes.rows] if d == along.rows else 1 for d in range(getattr(layer, name).dim())
            ]
            tensors[name] = torch.ones(size, device=device)
    seen = Seen(layer, tensors)
    filled = Seen(layer, tensors | {"weight": packed(view, axes)})
    for rows in _TRIED:
        x = torch.empty(rows, view.shape[axes.columns], dtype=form.dtype, device=device).normal_(
            generator=generator
        )
        wanted = form.product(filled, x, None)
        try:
            found = form.product(seen, x, None)
        except (RuntimeError, AssertionError):
            return False
        if not (found - wanted).abs().max() <= _ROUNDING * wanted.abs().max():
            return False
    return True
