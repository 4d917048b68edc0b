"""The flags of this plugin, and the frozen record of their values.

Every field of `ArcticConfig` is a flag: `embedding_pooling` is `--embedding-pooling` on a command line,
`embedding-pooling:` in SGLang's YAML `--config`, and `embedding_pooling=` for `sglang.Engine`. A later
feature adds a field here and a check in `__post_init__`, nothing else.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from arctic_sglang.shift.policy import AUTO, parse_threshold

Pooling = Literal["auto", "checkpoint", "stock", "cls", "mean", "last"]
# Fields of `ArcticConfig` that mean nothing without one of our speculative algorithms.
SPECULATION_FLAGS = (
    "enable_suffix_decoding", "speculative_disable_by_batch_size", "suffix_max_depth", "suffix_max_spec_factor",
    "suffix_max_spec_offset", "suffix_min_token_prob", "suffix_min_score", "suffix_cache_tokens", "suffix_cache_path",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcticConfig:
    """Values of this plugin's flags.

    Raises:
        ValueError: a value is not one of a flag's choices, or is out of range.
        TypeError: a value has the wrong type.
    """

    embedding_pooling: Pooling = field(
        default="auto",
        metadata={
            "help": "How token vectors become one embedding. 'auto': as the checkpoint's sentence-transformers "
            "files say, and SGLang's own choice where there are none; 'checkpoint': the same, but refuse to "
            "start without such files; 'stock': always SGLang's own; 'cls', 'mean', 'last': by force, normalised."
        },
    )
    enable_fast_embedding: bool = field(
        default=False,
        metadata={
            "help": "Embeddings take the vectorised road: a request of any number of texts travels as arrays, is "
            "packed into forward steps without padding, and comes back as one array. For models that embed text."
        },
    )
    embedding_step_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a forward step of the vectorised road. Default: 16384 on a GPU, 4096 on a CPU."
        },
    )
    embedding_replicas: int = field(
        default=1,
        metadata={
            "help": "Instances of the model behind one front door, for the vectorised road: spread over the GPUs that "
            "are visible, several on one where there are more instances than GPUs. One that dies is started again."
        },
    )
    cpu_threads_per_rank: int | None = field(
        default=None,
        metadata={
            "help": "Threads that each rank computes with on a machine without a GPU. "
            "Default: the cores of the machine shared out evenly."
        },
    )

    swiftkv_min_tokens: int | None = field(
        default=None,
        metadata={
            "help": "A prefill step of a SwiftKV model with fewer tokens than this goes through all layers for "
            "all its rows, in one graph; from this size on most rows stop at the cut. Default: 384, or 1024 where the "
            "rows that go up after it have no CUDA graphs."
        },
    )

    ulysses_sequence_parallel_size: int = field(
        default=1,
        metadata={
            "help": "Ranks that share out the tokens of a step, each with the weights of one rank of --tp-size; there "
            "are as many ranks as both multiplied. Alone: every step does so (Ulysses)."
        },
    )
    enable_shift_parallel: bool = field(
        default=False,
        metadata={
            "help": "With --ulysses-sequence-parallel-size: steps of few tokens run in tensor parallelism over all "
            "ranks instead, over the same KV cache and the same copy of the weights."
        },
    )
    shift_parallel_threshold: str = field(
        default="auto",
        metadata={
            "help": "With --enable-shift-parallel: tokens up to which a step is tensor parallel; auto: measured at the "
            "start, and kept in the user's cache folder."
        },
    )

    enable_suffix_decoding: bool = field(
        default=False,
        metadata={
            "help": "With --speculative-algorithm ARCTIC: drafts come from the suffix index too, wherever it expects "
            "more accepted tokens than the draft head. SUFFIX is the index alone."
        },
    )
    speculative_disable_by_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "ARCTIC, SUFFIX: steps of more requests than this draft nothing. Default: as measured at start-up, "
            "what a wider step costs against what drafts have lately been worth."
        },
    )
    suffix_max_depth: int = field(
        default=64, metadata={"help": "Suffix decoding: the longest text that is looked up, in tokens."}
    )
    suffix_max_spec_factor: float = field(
        default=1.0,
        metadata={"help": "Suffix decoding: tokens of a draft for each token of the text that was found."},
    )
    suffix_max_spec_offset: float = field(
        default=0.0,
        metadata={"help": "Suffix decoding: tokens of a draft besides those of --suffix-max-spec-factor."},
    )
    suffix_min_token_prob: float = field(
        default=0.1,
        metadata={
            "help": "Suffix decoding: a draft ends where the chance of its next token falls below this."
        },
    )
    suffix_min_score: float | None = field(
        default=None,
        metadata={
            "help": "ARCTIC with suffix decoding: accepted tokens that a suffix draft must promise to take the place "
            "of the draft head's. Default: as many as the head's, both scaled by what was accepted lately."
        },
    )
    suffix_cache_tokens: int = field(
        default=4_000_000,
        metadata={
            "help": "Suffix decoding: tokens of earlier responses that are remembered, about 40 bytes of host memory "
            "each; 0: none. The oldest are forgotten."
        },
    )
    suffix_cache_path: str | None = field(
        default=None,
        metadata={
            "help": "Suffix decoding: a file that remembered responses are read from at the start, if it is there, and "
            "written to whenever the server is idle."
        },
    )

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(ArcticConfig).items():
            _check_value(name, getattr(self, name), hint)
        if self.cpu_threads_per_rank is not None and self.cpu_threads_per_rank < 1:
            msg = f"{flag_name('cpu_threads_per_rank')} is {self.cpu_threads_per_rank}; it must be at least 1"
            raise ValueError(msg)
        for name in ("embedding_step_tokens", "embedding_replicas"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"{flag_name(name)} is {value}; it must be at least 1"
                raise ValueError(msg)
            if value not in (None, 1) and not self.enable_fast_embedding:
                msg = f"{flag_name(name)} {value} was given without {flag_name('enable_fast_embedding')}; add it"
                raise ValueError(msg)
        if self.swiftkv_min_tokens is not None and self.swiftkv_min_tokens < 0:
            msg = f"{flag_name('swiftkv_min_tokens')} is {self.swiftkv_min_tokens}; it must be at least 0"
            raise ValueError(msg)

        self._check_shift()
        self._check_speculation()

    def _check_shift(self) -> None:
        size, threshold = self.ulysses_sequence_parallel_size, self.shift_parallel_threshold
        if size < 1:
            msg = f"{flag_name('ulysses_sequence_parallel_size')} is {size}; it must be at least 1"
            raise ValueError(msg)
        if self.enable_shift_parallel and size == 1:
            msg = "--enable-shift-parallel was given without --ulysses-sequence-parallel-size of 2 or more; add it"
            raise ValueError(msg)
        if parse_threshold(threshold) != AUTO and not self.enable_shift_parallel:
            msg = f"--shift-parallel-threshold {threshold} was given without --enable-shift-parallel; add it"
            raise ValueError(msg)

    def _check_speculation(self) -> None:
        least = {
            "speculative_disable_by_batch_size": 0, "suffix_max_depth": 1, "suffix_max_spec_factor": 0,
            "suffix_min_score": 0, "suffix_cache_tokens": 0,
        }  # fmt: skip
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                msg = f"{flag_name(name)} is {value}; it must be at least {lowest}"
                raise ValueError(msg)
        if not 0 <= self.suffix_min_token_prob <= 1:
            msg = f"{flag_name('suffix_min_token_prob')} is {self.suffix_min_token_prob}; it must be from 0 to 1"
            raise ValueError(msg)

    @classmethod
    def from_args(cls, args: object) -> "ArcticConfig":
        """Reads the flags from an object that has them as attributes (SGLang's server arguments)."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls)})

    def given(self) -> dict[str, Any]:
        """The flags whose value is not the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def flag_name(field_name: str) -> str:
    """`embedding_pooling` -> `--embedding-pooling`."""
    return "--" + field_name.replace("_", "-")


def _check_value(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if value not in choices:
            msg = f"{flag_name(name)} is {value!r}; it must be one of {', '.join(map(repr, choices))}"
            raise ValueError(msg)
        return
    allowed = get_args(hint) or (hint,)
    if float in allowed and type(value) is int:
        return
    if type(value) not in allowed:  # bool is an int to isinstance, and True is no thread count
        names = " or ".join("not given" if t is type(None) else t.__name__ for t in allowed)
        msg = f"{flag_name(name)} is {value!r} ({type(value).__name__}); it must be {names}"
        raise TypeError(msg)
