"""The configs of SwiftKV models, by the names of Snowflake's checkpoints. Import-light, no SGLang.

A config is its base's with two more numbers. They are classes of a module, not of a function, because a
server's arguments travel to its processes with them, pickled.
"""

from transformers import AutoConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config


class LlamaSwiftKVConfig(LlamaConfig):
    """Llama with SwiftKV.

    Attributes:
        num_key_value_layers: layers, from the first, that keep keys and values of their own; the cut.
        key_value_group_size: layers above the cut that share one pair of keys and values (AcrossKV).
    """

    model_type = "llama_swiftkv"
    num_key_value_layers: int | None = None
    key_value_group_size: int | None = 1


class Qwen2SwiftKVConfig(Qwen2Config):
    """Qwen2 and Qwen2.5 with SwiftKV; the fields of `LlamaSwiftKVConfig`."""

    model_type = "qwen2_swiftkv"
    num_key_value_layers: int | None = None
    key_value_group_size: int | None = 1


class Qwen3SwiftKVConfig(Qwen3Config):
    """Qwen3 (dense) with SwiftKV; the fields of `LlamaSwiftKVConfig`."""

    model_type = "qwen3_swiftkv"
    num_key_value_layers: int | None = None
    key_value_group_size: int | None = 1


CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaSwiftKVConfig,
    "qwen2": Qwen2SwiftKVConfig,
    "qwen3": Qwen3SwiftKVConfig,
}  # the base's model type: the config with SwiftKV


def register() -> None:
    """Makes transformers' AutoConfig know the model types. Idempotent."""
    for config in CONFIGS.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
