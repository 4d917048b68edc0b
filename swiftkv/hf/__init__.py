"""SwiftKV models in transformers: the slow twin that served models are compared with, and what is trained.

Importing this package makes `AutoConfig` and `AutoModelForCausalLM` know the models:

    import swiftkv.hf
    model = transformers.AutoModelForCausalLM.from_pretrained("Snowflake/Llama-3.1-SwiftKV-8B-Instruct")
"""

from transformers import AutoModelForCausalLM

from swiftkv.config import CONFIGS, register
from swiftkv.hf.modeling import (
    LlamaSwiftKVForCausalLM,
    Qwen2SwiftKVForCausalLM,
    Qwen3SwiftKVForCausalLM,
    SwiftKVForCausalLM,
)

__all__ = [
    "MODELS",
    "LlamaSwiftKVForCausalLM",
    "Qwen2SwiftKVForCausalLM",
    "Qwen3SwiftKVForCausalLM",
    "SwiftKVForCausalLM",
]

MODELS: dict[str, type[SwiftKVForCausalLM]] = {
    "llama": LlamaSwiftKVForCausalLM,
    "qwen2": Qwen2SwiftKVForCausalLM,
    "qwen3": Qwen3SwiftKVForCausalLM,
}  # the base's model type: its twin

register()
for _base, _model in MODELS.items():
    AutoModelForCausalLM.register(CONFIGS[_base], _model, exist_ok=True)
