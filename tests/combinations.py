"""Which features were tried together: every pair of values is served by an engine of a test, or refused with a reason.

What a request may ask for (prompt log-probabilities, a grammar, a stream, to be aborted) is asked of every engine.
fp8 is refused as a whole on machines without a GPU (`arctic_sglang.cpu.defaults`); on GPUs `tests/gpu` has it. Pure:
`tests/engine/test_combinations.py` runs the engines, `tests/unit/test_combinations.py` looks for gaps.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

PARALLEL = {
    "one": {},
    "tp": {"tp_size": 2},
    "ulysses": {"ulysses_sequence_parallel_size": 2},
    "shift": {
        "ulysses_sequence_parallel_size": 2,
        "enable_shift_parallel": True,
        "shift_parallel_threshold": "24",
    },
    "shift on tp": {
        "tp_size": 2,
        "ulysses_sequence_parallel_size": 2,
        "enable_shift_parallel": True,
        "shift_parallel_threshold": "8",
    },
}
SPECULATION = ("none", "suffix", "head", "both")
MODELS = ("base", "swiftkv")


@dataclass(frozen=True, slots=True)
class Combination:
    """One engine.

    Attributes:
        parallel: ranks, a key of `PARALLEL`.
        model: the tiny model or its SwiftKV model.
        speculation: who drafts.
        radix: whether prefixes are cached.
        chunked: whether prompts come in chunks.
        overlap: whether the host prepares a step while the one before runs.
        mixed: whether a prefill takes decode steps along.
    """

    parallel: str
    model: str
    speculation: str
    radix: bool
    chunked: bool
    overlap: bool
    mixed: bool

    def __str__(self) -> str:
        switches = [name for name in ("radix", "chunked", "overlap", "mixed") if getattr(self, name)]
        return "-".join([self.parallel.replace(" ", "_"), self.model, self.speculation, *switches])

    def pairs(self) -> Iterator[frozenset[tuple[str, Any]]]:
        """Its values, two by two."""
        yield from map(
            frozenset, itertools.combinations(((f.name, getattr(self, f.name)) for f in fields(self)), 2)
        )


# Other tests of `make test` compare these with transformers too; each asks `made_of` whether it is what stands here.
ELSEWHERE = {
    "test_cpu_engine": [
        Combination("one", "base", "none", radix=True, chunked=True, overlap=True, mixed=False),
    ],
    "test_swiftkv": [
        Combination("tp", "swiftkv", "none", radix=True, chunked=True, overlap=True, mixed=True),
        Combination("one", "swiftkv", "none", radix=True, chunked=True, overlap=True, mixed=True),
    ],
    "test_shift": [
        Combination("shift on tp", "base", "none", radix=True, chunked=True, overlap=True, mixed=True),
        Combination("shift", "base", "none", radix=True, chunked=True, overlap=True, mixed=True),
    ],
}
# In CI, with those: every pair but those of `ulysses`, `shift on tp`, `suffix` and `head`, which are parts of the
# others. No four engines would do.
OFTEN = [
    Combination("shift", "swiftkv", "both", radix=False, chunked=False, overlap=False, mixed=False),
    Combination("one", "swiftkv", "none", radix=True, chunked=False, overlap=False, mixed=False),
    Combination("tp", "base", "none", radix=False, chunked=True, overlap=False, mixed=True),
    Combination("tp", "base", "both", radix=True, chunked=False, overlap=True, mixed=False),
    Combination("one", "swiftkv", "both", radix=False, chunked=True, overlap=True, mixed=False),
]
OTHERS = [
    Combination("shift", "swiftkv", "both", radix=True, chunked=True, overlap=True, mixed=False),
    Combination("tp", "base", "none", radix=False, chunked=True, overlap=True, mixed=True),
    Combination("shift", "base", "both", radix=False, chunked=False, overlap=False, mixed=False),
    Combination("one", "base", "none", radix=True, chunked=True, overlap=False, mixed=True),
    Combination("tp", "swiftkv", "both", radix=True, chunked=False, overlap=False, mixed=False),
    Combination("one", "swiftkv", "both", radix=False, chunked=False, overlap=True, mixed=False),
    Combination("shift", "swiftkv", "none", radix=False, chunked=True, overlap=False, mixed=True),
    Combination("ulysses", "base", "head", radix=True, chunked=False, overlap=True, mixed=False),
    Combination("shift on tp", "base", "suffix", radix=True, chunked=True, overlap=True, mixed=False),
    Combination("shift on tp", "swiftkv", "head", radix=False, chunked=False, overlap=False, mixed=False),
    Combination("ulysses", "swiftkv", "suffix", radix=False, chunked=True, overlap=False, mixed=False),
    Combination("shift", "base", "suffix", radix=True, chunked=False, overlap=True, mixed=False),
    Combination("shift", "base", "head", radix=False, chunked=True, overlap=True, mixed=False),
    Combination("ulysses", "base", "none", radix=False, chunked=True, overlap=False, mixed=True),
    Combination("shift on tp", "base", "none", radix=False, chunked=True, overlap=True, mixed=True),
    Combination("one", "swiftkv", "head", radix=True, chunked=False, overlap=True, mixed=False),
    Combination("tp", "swiftkv", "head", radix=True, chunked=False, overlap=True, mixed=False),
    Combination("shift on tp", "swiftkv", "both", radix=True, chunked=True, overlap=False, mixed=False),
    Combination("ulysses", "swiftkv", "both", radix=False, chunked=False, overlap=False, mixed=False),
    Combination("one", "swiftkv", "suffix", radix=True, chunked=True, overlap=True, mixed=False),
    Combination("tp", "swiftkv", "suffix", radix=False, chunked=True, overlap=False, mixed=False),
]
# What stops the start: whose limits say so, of which of SGLang's arguments, and a part of the reason.
_MIXED = (
    "speculation",
    {"enable_mixed_chunk": True},
    "a step that verifies drafts has no room for a chunk of a prompt",
)
REFUSED = {
    **{frozenset({("mixed", True), ("speculation", kind)}): _MIXED for kind in SPECULATION[1:]},
    **{
        frozenset({("parallel", kind), ("speculation", other)}): (
            "shift", {"speculative_algorithm": other}, "ARCTIC and SUFFIX alone"
        )
        for kind in ("ulysses", "shift", "shift on tp") for other in ("NGRAM", "EAGLE", "EAGLE3", "STANDALONE")
    },
    **{
        frozenset({("model", "swiftkv"), ("speculation", other)}): (
            "swiftkv", {"speculative_algorithm": other}, "served with NGRAM, SUFFIX, ARCTIC or without"
        )
        for other in ("EAGLE", "EAGLE3", "STANDALONE")
    },
}  # fmt: skip
# Mixed steps are those of a chunk.
EMPTY = {frozenset({("mixed", True), ("chunked", False)})}


def made_of(arguments: Any, model: str) -> Combination:
    """What an engine is.

    Args:
        arguments: the engine's `server_args`; `tp_size` in them is over all ranks.
        model: one of `MODELS`.
    """
    groups = arguments.ulysses_sequence_parallel_size
    size = {
        "tp_size": arguments.tp_size // groups,
        "ulysses_sequence_parallel_size": groups,
        "enable_shift_parallel": arguments.enable_shift_parallel,
    }
    plain = {"tp_size": 1, "ulysses_sequence_parallel_size": 1, "enable_shift_parallel": False}
    (parallel,) = (
        name
        for name, given in PARALLEL.items()
        if {**plain, **{key: value for key, value in given.items() if key in plain}} == size
    )
    speculation = {None: "none", "SUFFIX": "suffix", "ARCTIC": "head"}[arguments.speculative_algorithm]
    if speculation == "head" and arguments.enable_suffix_decoding:
        speculation = "both"
    return Combination(
        parallel, model, speculation, radix=not arguments.disable_radix_cache,
        chunked=arguments.chunked_prefill_size > 0, overlap=not arguments.disable_overlap_schedule,
        mixed=arguments.enable_mixed_chunk,
    )  # fmt: skip


def every_pair() -> set[frozenset[tuple[str, Any]]]:
    """All that there are."""
    values = {"parallel": PARALLEL, "model": MODELS, "speculation": SPECULATION}
    values |= dict.fromkeys(("radix", "chunked", "overlap", "mixed"), (True, False))
    return {
        frozenset({(a, one), (b, other)})
        for a, b in itertools.combinations(values, 2)
        for one, other in itertools.product(values[a], values[b])
    }
