"""What a start with some flags would be refused for, by the same functions that a start asks. Pure: reads a path."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from arctic_sglang.config import ArcticConfig
from arctic_sglang.embedding import placement, road
from arctic_sglang.features import Facts, Feature, requested, wants_swiftkv
from arctic_sglang.recommend.sizes import Model
from arctic_sglang.shift import limits as shift_limits
from arctic_sglang.shift.topology import Heads, Topology, check_divides
from speculative import settings as speculation
from swiftkv import limits as swiftkv_limits
from swiftkv.layout import Layout

# What these functions look for where no flag was given.
_DEFAULTS: dict[str, Any] = {
    "tp_size": 1, "dp_size": 1, "quantization": None, "is_embedding": False, "enable_memory_saver": False,
    "speculative_algorithm": None, "speculative_draft_model_path": None, "speculative_num_draft_tokens": None,
    "speculative_num_steps": None, "suffix_min_score": None, "enable_suffix_decoding": False,
    "speculative_disable_by_batch_size": None,
}  # fmt: skip
_OURS = frozenset(ArcticConfig.__dataclass_fields__)


def refusals(model: Model, flags: Mapping[str, Any]) -> list[str]:
    """Why a start on NVIDIA GPUs with these flags would be refused; empty: nothing that is known here is against it.

    Args:
        model: the checkpoint.
        flags: of SGLang and of this plugin, by their keywords; those that are not given keep their defaults.
    """
    settings = {**_DEFAULTS, **flags}
    found: list[str] = []
    features: frozenset[Feature] = frozenset()

    def ask(question: Callable[[], list[str] | None]) -> None:
        try:
            found.extend(question() or ())
        except ValueError as error:
            found.append(str(error))

    def read_flags() -> None:
        nonlocal features
        config = ArcticConfig(**{name: value for name, value in flags.items() if name in _OURS})
        features = requested(config, _facts(model, settings))
        wants_swiftkv(config, (model.architecture,))

    ask(read_flags)
    sp = settings.get("ulysses_sequence_parallel_size", 1)
    if Feature.SHIFT in features:
        ask(lambda: _shift(model, settings, Topology(settings["tp_size"], sp)))
    elif settings["tp_size"] > 1:
        ask(lambda: _tensor(model, settings["tp_size"]))
    if Feature.SPECULATION in features:
        ask(lambda: _speculation(model, settings))
    if Feature.EMBEDDING in features:
        ask(lambda: road.refusals(settings))
        if settings.get("embedding_replicas", 1) > 1:
            ask(lambda: placement.refusals(settings))
    if settings["is_embedding"] and model.known and not (model.embeds or model.swiftkv):
        found.append(f"--is-embedding: SGLang's {model.architecture} gives no embeddings")
    if model.swiftkv:
        ask(lambda: _swiftkv(model, settings))
    return found


def _facts(model: Model, settings: Mapping[str, Any]) -> Facts:
    return Facts(
        accelerator="cuda",
        device=None,
        own_cpu_engine=False,
        is_embedding=settings["is_embedding"],
        pooling=model.pooling,
        speculative_algorithm=settings["speculative_algorithm"],
    )


def _shift(model: Model, settings: Mapping[str, Any], topology: Topology) -> list[str]:
    road_device = "cuda" if settings.get("enable_fast_embedding") else None
    found = shift_limits.refusals({**settings, "fast_embedding_device": road_device})
    quantization = settings["quantization"] or model.quantized
    found += shift_limits.checkpoint_refusals(quantization, model.config.get("quantization_config"))
    shift_limits.heads_of(SimpleNamespace(**model.config), topology)
    return found


def _tensor(model: Model, ranks: int) -> None:
    """Sizes that plain tensor parallelism has to share out; SGLang finds them out while it loads the model."""
    topology = Topology(ranks, 1)
    query, kv = model.heads
    if "kv_lora_rank" in model.text:
        kv = query  # each rank has all of the one row that is cached
    Heads(topology, query, kv)
    block = (model.config.get("quantization_config") or {}).get("weight_block_size")
    for name in ("intermediate_size", "moe_intermediate_size"):
        size = model.text.get(name)
        if size is None:
            continue
        check_divides(name, size, topology)
        if block and size // ranks % block[0]:
            msg = f"{name} {size} over {ranks} ranks is not a multiple of the blocks of {block[0]} that have a scale"
            raise ValueError(msg)


def _speculation(model: Model, settings: Mapping[str, Any]) -> list[str]:
    speculation.SpeculationSettings.of(settings)
    speculation.check_head_path(settings["speculative_draft_model_path"])
    rope = model.text.get("rope_scaling") or model.text.get("rope_parameters") or {}
    about = SimpleNamespace(
        is_encoder_decoder=bool(model.config.get("is_encoder_decoder")),
        model_is_mrope="mrope_section" in rope,
    )
    found = speculation.refusals(settings) + speculation.model_refusals(about, recurrent=False)
    if not model.known:  # it may have recurrent layers, which config.json says in many ways
        found.append(f"{model.architecture}: speculation of this plugin was not tried with it")
    return found


def _swiftkv(model: Model, settings: Mapping[str, Any]) -> list[str]:
    Layout.of(model.config)
    return swiftkv_limits.refusals({**settings, "checkpoint_quantization": model.quantized})
