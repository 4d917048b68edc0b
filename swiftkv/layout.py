"""Which layers of a SwiftKV model own keys and values, and where they lie. Pure.

The model is cut at layer `cut`. The layers below it are a plain decoder. The layers from it on, the upper
ones, take the keys and values of every token from one hidden state, the one that enters layer `cut`
(SwiftKV, https://arxiv.org/abs/2410.03960, section 3.2); `group_size` consecutive upper layers share one
pair of them (AcrossKV, section 3.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = {
    "llama": "LlamaSwiftKVForCausalLM",
    "qwen2": "Qwen2SwiftKVForCausalLM",
    "qwen3": "Qwen3SwiftKVForCausalLM",
}  # the base's model type: what config.json calls the model
_MEANING = {"num_key_value_layers": ": how many layers, from the first, keep their own"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The layers of one model.

    Attributes:
        layers: decoder layers.
        cut: the first upper layer.
        group_size: upper layers that share one pair of keys and values.

    Raises:
        ValueError: the numbers do not describe a model with an upper half.
    """

    layers: int
    cut: int
    group_size: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.cut < self.layers:
            msg = (
                f"num_key_value_layers is {self.cut} in a model of {self.layers} layers; "
                f"it must be between 1 and {self.layers - 1}"
            )
            raise ValueError(msg)
        if self.group_size < 1 or (self.layers - self.cut) % self.group_size:
            msg = (
                f"key_value_group_size is {self.group_size}; it must divide the "
                f"{self.layers - self.cut} layers above the cut (layer {self.cut} of {self.layers})"
            )
            raise ValueError(msg)

    @classmethod
    def of(cls, config: Any) -> "Layout":
        """Reads `num_hidden_layers`, `num_key_value_layers` and `key_value_group_size` of a config.

        Args:
            config: a transformers config, or the mapping of a config.json.

        Raises:
            ValueError: a number is missing, is none or does not fit.
        """
        get = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
        group = get("key_value_group_size")
        numbers = {
            "num_hidden_layers": get("num_hidden_layers"),
            "num_key_value_layers": get("num_key_value_layers"),
            "key_value_group_size": 1 if group is None else group,
        }
        for name, number in numbers.items():
            if number is None:
                raise ValueError(f"the config has no {name}{_MEANING.get(name, '')}")
            if type(number) is not int:
                raise ValueError(f"{name} is {number!r} in the config; it must be a whole number")
        return cls(*numbers.values())

    @property
    def upper(self) -> range:
        """The layers that take their keys and values from the cut."""
        return range(self.cut, self.layers)

    @property
    def groups(self) -> int:
        """Pairs of keys and values above the cut."""
        return (self.layers - self.cut) // self.group_size

    @property
    def owners(self) -> range:
        """The upper layers that hold `k_proj_swiftkv` and `v_proj_swiftkv`: the first of each group."""
        return self.upper[:: self.group_size]

    @property
    def kv_layers(self) -> int:
        """Layers that the KV cache needs."""
        return self.cut + self.groups

    def kv_layer(self, layer: int) -> int:
        """The layer of the KV cache that a decoder layer reads."""
        if not 0 <= layer < self.layers:
            msg = f"layer {layer} is not one of {self.layers}"
            raise IndexError(msg)
        return layer if layer < self.cut else self.cut + (layer - self.cut) // self.group_size

    def owner(self, layer: int) -> int:
        """The layer whose projections make the keys and values that an upper layer reads."""
        if layer not in self.upper:
            msg = f"layer {layer} is below the cut at {self.cut}"
            raise IndexError(msg)
        return layer - (layer - self.cut) % self.group_size
