"""What a user can ask for, and what a given start asks for. Pure: no SGLang, no device."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from arctic_sglang.config import SPECULATION_FLAGS, ArcticConfig, flag_name
from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError
from speculative.settings import ALGORITHMS
from swiftkv.layout import ARCHITECTURES


class Feature(StrEnum):
    """A feature of this plugin; a seam belongs to exactly one."""

    FLAGS = "flags"  # the command line, YAML and Engine keywords: always wanted
    CPU = "cpu"  # the runtime for machines without a GPU
    EMBEDDING = "embedding"  # the vectorised road from texts to vectors
    POOLING = "pooling"  # embeddings pooled as the checkpoint says
    BATCH = "batch"  # batch_sdk over an engine in the same process
    SWIFTKV = "swiftkv"  # models that skip half of the prefill
    SHIFT = "shift"  # tensor and sequence parallelism over one KV cache
    SPECULATION = "speculation"  # suffix decoding and draft heads


@dataclass(frozen=True, slots=True)
class Facts:
    """What a start depends on besides the flags.

    Attributes:
        accelerator: name of the accelerator that torch sees ("cuda"), or None.
        device: SGLang's `--device`, or None if not given.
        own_cpu_engine: whether the user chose SGLang's own CPU engine.
        is_embedding: SGLang's `--is-embedding`.
        pooling: what the checkpoint says, None without sentence-transformers files, or the reason why
            it cannot be followed.
        speculative_algorithm: SGLang's `--speculative-algorithm`, or None if not given.
    """

    accelerator: str | None
    device: str | None
    own_cpu_engine: bool
    is_embedding: bool
    pooling: PoolingSpec | UnsupportedCheckpointError | None
    speculative_algorithm: str | None = None


def wants_cpu(facts: Facts) -> bool:
    """Whether this start runs on our CPU runtime.

    Raises:
        ValueError: the CPU was asked for on a machine whose accelerator SGLang has already chosen.
    """
    if facts.own_cpu_engine:
        return False
    if facts.accelerator is not None:
        if facts.device == "cpu":
            msg = (
                f"--device cpu was given on a machine with an accelerator ({facts.accelerator}). SGLang picks "
                "its kernels at import; hide it first: CUDA_VISIBLE_DEVICES='' (empty)"
            )
            raise ValueError(msg)
        return False
    return facts.device in (None, "cpu")


def wanted_pooling(config: ArcticConfig, facts: Facts) -> PoolingSpec | None:
    """How embeddings are pooled, or None where SGLang's own pooling stays.

    Raises:
        ValueError: a pooling was asked for by name and cannot be had.
    """
    choice = config.embedding_pooling
    if not facts.is_embedding:
        if choice not in ("auto", "stock"):
            msg = f"--embedding-pooling {choice} needs an embedding server; add --is-embedding"
            raise ValueError(msg)
        return None
    if choice == "stock":
        return None
    if choice in ("cls", "mean", "last"):
        return PoolingSpec(mode=choice, normalize=True)
    if isinstance(facts.pooling, UnsupportedCheckpointError):
        msg = f"{facts.pooling}; start with --embedding-pooling stock to keep SGLang's own pooling"
        raise ValueError(msg)
    if facts.pooling is None and choice == "checkpoint":
        msg = (
            "--embedding-pooling checkpoint was given, and the checkpoint has no modules.json; "
            "name the pooling (cls, mean, last) or leave the flag out"
        )
        raise ValueError(msg)
    return facts.pooling


def requested(config: ArcticConfig, facts: Facts) -> frozenset[Feature]:
    """The features that this start asks for. FLAGS counts only when a flag was given."""
    features = set()
    if config.given():
        features.add(Feature.FLAGS)
    if wants_cpu(facts):
        features.add(Feature.CPU)
    if wanted_pooling(config, facts) is not None:
        features.add(Feature.POOLING)
    if config.enable_fast_embedding:
        if not facts.is_embedding:
            msg = "--enable-fast-embedding needs an embedding server; add --is-embedding"
            raise ValueError(msg)
        features.add(Feature.EMBEDDING)
    if config.ulysses_sequence_parallel_size > 1:
        features.add(Feature.SHIFT)
    if wants_speculation(config, facts):
        features.add(Feature.SPECULATION)
    return frozenset(features)


def wants_speculation(config: ArcticConfig, facts: Facts) -> bool:
    """Whether this start decodes with one of our speculative algorithms.

    Raises:
        ValueError: a flag of theirs was given with another algorithm, or with none.
    """
    name = (facts.speculative_algorithm or "").upper()
    if name in ALGORITHMS:
        return True
    given = [flag_name(flag) for flag in config.given() if flag in SPECULATION_FLAGS]
    if given:
        has = f"with --speculative-algorithm {name}" if name else "without --speculative-algorithm"
        msg = f"{', '.join(given)} was given {has}; it belongs to {' and '.join(ALGORITHMS)}"
        raise ValueError(msg)
    return False


def wants_swiftkv(config: ArcticConfig, architectures: Sequence[str]) -> bool:
    """Whether the model that SGLang found is a SwiftKV model.

    Args:
        config: the flags.
        architectures: as the checkpoint's config.json names them.

    Raises:
        ValueError: a SwiftKV flag was given with another model, or this SwiftKV model is not supported.
    """
    unknown = [n for n in architectures if "swiftkv" in n.lower() and n not in ARCHITECTURES.values()]
    if unknown:
        msg = (
            f"{unknown[0]} is not supported; SwiftKV models are served as {', '.join(ARCHITECTURES.values())}"
        )
        raise ValueError(msg)
    found = any(name in ARCHITECTURES.values() for name in architectures)
    if not found and config.swiftkv_min_tokens is not None:
        msg = (
            f"--swiftkv-min-tokens was given, and the model ({', '.join(architectures)}) is no SwiftKV model; "
            "`python -m swiftkv.convert` makes one of a Llama, Qwen2 or Qwen3"
        )
        raise ValueError(msg)
    return found
