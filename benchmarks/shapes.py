"""The sizes of the models that are measured with dummy weights, each plain and cut for SwiftKV."""

from dataclasses import dataclass
from typing import Any

from plugin_overhead import LLAMA_8B

from swiftkv.cost import Shape
from swiftkv.layout import ARCHITECTURES, Layout

LLAMA_70B = {
    **LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
TOY = {
    **LLAMA_8B, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1024, "max_position_embeddings": 4096,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A model's sizes and where SwiftKV cuts it.

    Attributes:
        title: its name in tables.
        config: its config.json, plain.
        cut: the first upper layer.
    """

    title: str
    config: dict[str, Any]
    cut: int

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return Shape.of(self.config)

    def layout(self, cut: int | None = None, group_size: int = 1) -> Layout:
        """Its layers with SwiftKV; at another cut, or with AcrossKV, if asked."""
        return Layout(self.config["num_hidden_layers"], cut or self.cut, group_size)

    def swiftkv_config(self, layout: Layout) -> dict[str, Any]:
        """The config.json of the SwiftKV model."""
        base = self.config["model_type"]
        return {
            **self.config, "architectures": [ARCHITECTURES[base]], "model_type": f"{base}_swiftkv",
            "num_key_value_layers": layout.cut, "key_value_group_size": layout.group_size,
        }  # fmt: skip


MODELS = {
    "llama-3.1-8b": Model("Llama-3.1-8B", LLAMA_8B, 16),
    "llama-3.1-70b": Model("Llama-3.1-70B", LLAMA_70B, 40),
    "llama-3.3-70b": Model("Llama-3.3-70B", LLAMA_70B, 40),
    "qwen2.5-7b": Model("Qwen2.5-7B", QWEN_7B, 21),
    "toy": Model("toy", TOY, 3),
}
