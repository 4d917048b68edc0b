"""What a prefill costs with SwiftKV and without it, counted in operations. Pure.

A multiplication and an addition are two operations. Counted are the matrix products: the projections, the
MLP, attention's two products, and the head for the last row. Norms, rotary embeddings, softmax and the
look-up of the embedding are left out: they are under one percent together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swiftkv.layout import Layout


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense decoder with a gated MLP (Llama, Qwen2, Qwen3).

    Attributes:
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: width of one head.
        vocab: rows of the head.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """Reads the mapping of a config.json."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab=config["vocab_size"],
        )

    @property
    def keys_values(self) -> int:
        """Weights of one layer's k and v projections."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def others(self) -> int:
        """Weights of one layer but k and v: the q and o projections and the MLP."""
        return 2 * self.hidden * self.heads * self.head_dim + 3 * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        """Weights of the language model's head."""
        return self.hidden * self.vocab


def prefill_flops(shape: Shape, tokens: int, layout: Layout | None = None, floor: int = 0) -> int:
    """Operations of the prefill of one prompt, in one piece and with nothing cached.

    A product with `w` weights costs `2 * w` for each row. Attention costs `4 * heads * head_dim` for each pair
    of a token and one it sees, half of all pairs. Without SwiftKV every layer has every token for a row.
    With it the layers below the cut do, each group of the upper layers makes keys and values for every token,
    and the rest of the upper layers has one row, the last token's.

    Args:
        shape: the model's sizes.
        tokens: length of the prompt.
        layout: the layers of the SwiftKV model; None for the plain model.
        floor: rows that a matrix product is counted for if it has fewer. With 0 the result is the count of
            operations. With the number of rows whose computation takes a GPU as long as reading the weights,
            it is proportional to the least time that the GPU can take: a product with one row then
            costs what its weights cost to read. Attention's reading of the cache is left out.

    Raises:
        ValueError: there is no token, or the layout has another number of layers than the shape.
    """
    if tokens < 1:
        msg = f"a prompt of {tokens} tokens has no last row"
        raise ValueError(msg)
    if layout is not None and layout.layers != shape.layers:
        msg = f"a layout of {layout.layers} layers does not fit a model of {shape.layers}"
        raise ValueError(msg)
    lower = shape.layers if layout is None else layout.cut
    all_rows, one_row = 2 * max(tokens, floor), 2 * max(1, floor)
    pair = 4 * shape.heads * shape.head_dim

    whole_layer = all_rows * (shape.others + shape.keys_values) + pair * tokens * (tokens + 1) // 2
    total = lower * whole_layer + one_row * shape.head
    if layout is not None:
        total += layout.groups * all_rows * shape.keys_values
        total += (shape.layers - lower) * (one_row * shape.others + pair * tokens)
    return total


def prefill_limit(shape: Shape, tokens: int, layout: Layout, floor: int = 0) -> float:
    """How many times faster SwiftKV's prefill can be than the plain model's, at the same operations a second.

    Args:
        shape: the model's sizes.
        tokens: length of the prompt.
        layout: the layers of the SwiftKV model.
        floor: as for `prefill_flops`.
    """
    return prefill_flops(shape, tokens, floor=floor) / prefill_flops(shape, tokens, layout, floor)


def prefill_saved(shape: Shape, tokens: int, layout: Layout, floor: int = 0) -> float:
    """The share of the plain model's prefill that SwiftKV leaves out, 0 to 1; arguments of `prefill_limit`."""
    return 1 - 1 / prefill_limit(shape, tokens, layout, floor)
