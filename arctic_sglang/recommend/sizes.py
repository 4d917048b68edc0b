"""What a model takes of each GPU's memory, from its config.json. Pure: an estimate, in bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError
from arctic_sglang.shift.limits import ARCHITECTURES, checkpoint_refusals
from swiftkv.cost import Shape
from swiftkv.layout import Layout

GIB = 1024**3
ENCODERS = ("BertModel", "XLMRobertaModel")  # that embed by fused kernels
# What SGLang gives embeddings of, and the vectorised road takes; of others nothing is known here.
EMBEDDERS = (
    *ENCODERS, "LlamaForCausalLM", "MistralForCausalLM", "MistralModel", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
)  # fmt: skip
_ELEMENT = 2  # bytes of a weight, or of a key's or value's number, in bf16 and fp16

# What SGLang 0.5.17 by itself leaves free of a GPU for activations and CUDA graphs, GiB by the GPU's size: it follows
# the size of a prefill step, which follows the size of the GPU. Each rank costs an eighth of a GiB more.
_RESERVED = ((35.0, 4.0), (60.0, 7.25), (160.0, 14.0), (float("inf"), 26.5))


@dataclass(frozen=True)
class Model:
    """A checkpoint, as far as its small files tell.

    Attributes:
        path: folder or name on the hub, as it was given.
        config: of config.json.
        file_bytes: of all its weights' files; None: not known.
        pooling: what its sentence-transformers files say, None without any, or why they cannot be followed.
    """

    path: str
    config: Mapping[str, Any]
    file_bytes: int | None = None
    pooling: PoolingSpec | UnsupportedCheckpointError | None = None

    @property
    def architecture(self) -> str:
        """As config.json names it."""
        return (self.config.get("architectures") or ["?"])[0]

    @property
    def known(self) -> bool:
        """Whether Shift Parallelism knows its kind, and so its layers are counted here."""
        return self.architecture in ARCHITECTURES

    @property
    def embeds(self) -> bool:
        """Whether the vectorised road takes it."""
        return self.architecture in EMBEDDERS

    @property
    def generates(self) -> bool:
        """Whether it answers with text, as far as its name says."""
        return self.architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))

    @property
    def swiftkv(self) -> bool:
        """Whether it is a SwiftKV model, of a kind that is served or not."""
        return "swiftkv" in self.architecture.lower()

    @property
    def quantized(self) -> str | None:
        """How the checkpoint comes quantised, as config.json names it."""
        found = self.config.get("quantization_config")
        return found and found.get("quant_method", "unknown")

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the config that has the decoder's sizes."""
        return self.config.get("text_config") or self.config

    @cached_property
    def heads(self) -> tuple[int, int]:
        """Query heads, key/value heads."""
        query = self.text["num_attention_heads"]
        return query, self.text.get("num_key_value_heads") or query

    @property
    def window(self) -> int | None:
        """Tokens that it has positions for; None: not said."""
        return self.text.get("max_position_embeddings")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's parts.

    Attributes:
        shared: of layers but keys, values and experts, which the base tensor parallelism shares out.
        keys_values: of the projections to keys and values.
        experts: that all ranks share out in either mode.
        spread: of what lies once over all ranks: vocabulary, and above a SwiftKV cut keys and values.
        copied: of shared weights, a part of which Shift Parallelism may hold twice (fp8, `docs/shift.md`).
        kv_heads: key/value heads; None: the cache has one row for all heads (MLA), which every rank keeps.
        kv_row: bytes of one token's keys and values of one head in all layers of the cache; 0: there is no cache.
    """

    shared: float
    keys_values: float
    experts: float
    spread: float
    copied: float
    kv_heads: int | None
    kv_row: float

    @classmethod
    def of(cls, model: Model, fp8: bool) -> "Sizes":
        """Counts a model's weights.

        Args:
            model: of any kind.
            fp8: whether its linear layers are in fp8, by `--quantization` or in the checkpoint.

        Raises:
            ValueError: its kind is not counted here, and the size of its files is not known.
        """
        fp8 = fp8 or model.quantized in ("fp8", "compressed-tensors")
        countable = model.quantized is None or not checkpoint_refusals(model.quantized, _quantized(model))
        if model.known and countable:
            return cls._decoder(model, 1 if fp8 else _ELEMENT)
        if model.architecture in ENCODERS and countable:
            return cls._encoder(model, 1 if fp8 else _ELEMENT)
        return cls._files(model, fp8)

    @classmethod
    def _decoder(cls, model: Model, each: int) -> "Sizes":
        config, shape = model.config, Shape.of(model.config)
        mlp = 3 * shape.hidden * shape.intermediate
        attention = shape.others - mlp
        layout = Layout.of(config) if model.swiftkv else None
        cut = layout.cut if layout else shape.layers
        sparse = _sparse_layers(config)
        dense = shape.layers - sparse
        experts = 3 * shape.hidden * config.get("moe_intermediate_size", 0) * config.get("num_experts", 0)
        tables = 1 if config.get("tie_word_embeddings") else 2
        upper = layout.groups * shape.keys_values if layout else 0
        kept = layout.kv_layers if layout else shape.layers
        return cls(
            shared=each * (shape.layers * attention + dense * mlp),
            keys_values=each * cut * shape.keys_values,
            experts=each * sparse * experts,
            spread=_ELEMENT * tables * shape.head + each * upper,
            copied=(attention // 2 * shape.layers + mlp // 3 * dense) if each == 1 else 0,
            kv_heads=shape.kv_heads,
            kv_row=2 * _ELEMENT * kept * shape.head_dim,
        )

    @classmethod
    def _encoder(cls, model: Model, each: int) -> "Sizes":
        config = model.config
        hidden = config["hidden_size"]
        layer = 4 * hidden * hidden + 2 * hidden * config["intermediate_size"]
        rows = config["vocab_size"] + (model.window or 0)
        return cls(each * config["num_hidden_layers"] * layer, 0, 0, _ELEMENT * rows * hidden, 0, None, 0)

    @classmethod
    def _files(cls, model: Model, fp8: bool) -> "Sizes":
        if model.file_bytes is None:
            msg = (
                f"{model.path} is a {model.architecture}, whose weights are not counted here, and the size of its "
                "files is not known; give --weights GIB, the size of all its weights"
            )
            raise ValueError(msg)
        text, total = model.text, float(model.file_bytes)
        if model.quantized is None:
            if str(text.get("dtype") or text.get("torch_dtype")) == "float32":
                total /= 2  # SGLang loads it in fp16
            if fp8:
                total /= 2
        layers, query = text["num_hidden_layers"], model.heads[0]
        if "kv_lora_rank" in text:
            row = layers * (text["kv_lora_rank"] + text.get("qk_rope_head_dim", 0)) * _ELEMENT
            return cls(total, 0, 0, 0, 0, None, row)
        head = text.get("head_dim") or text["hidden_size"] // query
        return cls(total, 0, 0, 0, 0, model.heads[1], 2 * _ELEMENT * layers * head)

    def weights(self, tp: int, sp: int = 1) -> float:
        """Bytes of weights on each GPU.

        Args:
            tp: ranks of the base tensor parallelism.
            sp: ranks of a sequence group.
        """
        ranks = tp * sp
        repeated = max(1.0, ranks / self.kv_heads) if self.kv_heads else 1.0  # a head that several ranks have
        copies = self.copied / ranks if sp > 1 else 0
        return (
            self.shared / tp
            + self.keys_values * repeated / tp
            + (self.experts + self.spread) / ranks
            + copies
        )

    def kv_bytes(self, ranks: int) -> float:
        """Bytes of one token's keys and values on each GPU."""
        return self.kv_row * (1 if self.kv_heads is None else max(1.0, self.kv_heads / ranks))


def reserved(gpu_gib: float, ranks: int) -> float:
    """GiB of a GPU that SGLang's default leaves free for activations and CUDA graphs.

    Args:
        gpu_gib: memory of the GPU.
        ranks: of the model.
    """
    return next(free for most, free in _RESERVED if gpu_gib < most) + ranks / 8


def _quantized(model: Model) -> Mapping[str, Any] | None:
    return model.config.get("quantization_config")


def _sparse_layers(config: Mapping[str, Any]) -> int:
    """Layers with experts in place of an MLP."""
    if not config.get("num_experts"):
        return 0
    plain, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    return sum(layer not in plain and (layer + 1) % step == 0 for layer in range(config["num_hidden_layers"]))
