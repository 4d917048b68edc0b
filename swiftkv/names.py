"""The names of a SwiftKV checkpoint's tensors. Pure.

They are those of Snowflake's checkpoints: the base's, plus `model.norm_swiftkv` and, in each upper layer,
`self_attn.{q,k,v}_proj_swiftkv`. The base's own q, k and v of the upper layers stay in such checkpoints and
are never used.
"""

import re
from collections.abc import Collection, Container
from dataclasses import dataclass
from enum import StrEnum

from swiftkv.layout import Layout

_ATTENTION = re.compile(
    r"(?P<stem>(?:.*\.)?layers\.(?P<layer>\d+)\.self_attn\.)"
    r"(?P<module>[qkv]_(?:proj|norm))(?P<swiftkv>_swiftkv)?(?P<suffix>\..+)"
)


class Use(StrEnum):
    """What a tensor is for."""

    BASE = "base"  # of the base, and used as it is
    UNUSED = "unused"  # of the base, and replaced by a SwiftKV projection
    QUERY = "query"  # q_proj_swiftkv or q_norm_swiftkv of an upper layer
    KEY = "key"  # k_proj_swiftkv or k_norm_swiftkv of a group
    VALUE = "value"  # v_proj_swiftkv of a group


_USES = {"q": Use.QUERY, "k": Use.KEY, "v": Use.VALUE}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One name of a checkpoint, read.

    Attributes:
        use: what it is for.
        layer: its decoder layer, or -1 where that does not matter.
        module: "q_proj", "k_norm" and so on, without `_swiftkv`; empty for BASE.
        suffix: what follows the module: "weight", "bias", "weight_scale".
    """

    use: Use
    layer: int = -1
    module: str = ""
    suffix: str = ""


def read(name: str, layout: Layout) -> Tensor:
    """What the tensor of this name is for in a model of this layout.

    Raises:
        ValueError: a SwiftKV projection stands in a layer that has none in this layout.
    """
    match = _ATTENTION.fullmatch(name)
    if match is None:
        return Tensor(Use.BASE)
    layer, module, suffix = int(match["layer"]), match["module"], match["suffix"][1:]
    if not match["swiftkv"]:
        return Tensor(Use.UNUSED if layer in layout.upper else Use.BASE, layer, module, suffix)
    use = _USES[module[0]]
    if layer not in (layout.upper if use is Use.QUERY else layout.owners):
        msg = (
            f"the checkpoint has {name}, and layer {layer} has no {module}_swiftkv in a model of {layout.layers} "
            f"layers cut at {layout.cut} in groups of {layout.group_size}; config.json does not fit the weights"
        )
        raise ValueError(msg)
    return Tensor(use, layer, module, suffix)


def added(layout: Layout, *, bias: bool, head_norm: bool) -> list[str]:
    """The tensors that SwiftKV adds to a base.

    Args:
        layout: the model's layers.
        bias: whether the projections have a bias (Qwen2).
        head_norm: whether queries and keys are normalised for each head (Qwen3).
    """
    names = ["model.norm_swiftkv.weight"]
    for layer in layout.upper:
        kinds = "qkv" if layer in layout.owners else "q"
        for kind in kinds:
            stem = f"model.layers.{layer}.self_attn.{kind}"
            names.append(f"{stem}_proj_swiftkv.weight")
            if bias:
                names.append(f"{stem}_proj_swiftkv.bias")
            if head_norm and kind != "v":
                names.append(f"{stem}_norm_swiftkv.weight")
    return names


def lacking(wanted: Collection[str], there: Container[str]) -> str:
    """What is wrong with a checkpoint that has not all the tensors that SwiftKV adds; empty if it has.

    Args:
        wanted: their names, of `added`.
        there: the names that the checkpoint has.
    """
    missing = [name for name in wanted if name not in there]
    if not missing:
        return ""
    return (
        f"the checkpoint lacks {len(missing)} of the {len(wanted)} tensors that SwiftKV adds, the first is "
        f"{missing[0]}; `python -m swiftkv.convert` makes a complete checkpoint of a base model"
    )
