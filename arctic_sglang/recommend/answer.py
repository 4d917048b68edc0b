"""What is asked, and what is answered. Pure data."""

from dataclasses import dataclass
from typing import Any

from arctic_sglang.recommend.evidence import Figure
from arctic_sglang.recommend.sizes import Model


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes in.

    Attributes:
        kind: one of `KINDS`.
        requests: at once.
        tokens_in: of a prompt.
        tokens_out: of an answer; 0 for embeddings.
        measured: whether the numbers were given.
    """

    kind: str
    requests: int
    tokens_in: int
    tokens_out: int
    measured: bool = False

    @property
    def tokens(self) -> int:
        """Slots of the KV cache that all requests fill at once."""
        return self.requests * self.each

    @property
    def each(self) -> int:
        """Slots that one request fills."""
        return self.tokens_in + self.tokens_out


# The sizes are assumptions; those of mixed and bulk are the mix that benchmarks/shift_speed.py measures.
KINDS = {
    "interactive": Traffic("interactive", 64, 2000, 250),
    "agentic": Traffic("agentic", 16, 32000, 1000),
    "mixed": Traffic("mixed", 256, 2000, 250),
    "bulk": Traffic("bulk", 256, 2000, 250),
    "embeddings": Traffic("embeddings", 64, 512, 0),
}


def kind_of(requests: int, tokens_in: int, tokens_out: int) -> str:
    """The kind of traffic that measured numbers come nearest to; agentic cannot be told from them.

    Bulk is what was measured as no faster with Shift Parallelism than with data parallelism: 256 requests or more at
    once whose prompts are 8 times as long as their answers. Up to 64 at once is interactive: there tensor parallelism
    was measured as faster than data parallelism.
    """
    if requests >= 256 and tokens_in >= 8 * tokens_out:
        return "bulk"
    return "interactive" if requests <= 64 else "mixed"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        model: the checkpoint.
        gpus: of one host.
        gpu_gib: memory of each.
        traffic: what comes in.
        quantization: "fp8" or None.
        head: folder or name of a draft head, or None.
    """

    model: Model
    gpus: int
    gpu_gib: float
    traffic: Traffic
    quantization: str | None = None
    head: str | None = None


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, by its keyword, and why; `{}` in `why` stands for the figures, in order."""

    name: str
    value: Any
    why: str
    figures: tuple[Figure, ...] = ()

    @property
    def reason(self) -> str:
        """Why, with the figures in it."""
        return self.why.format(*self.figures)


@dataclass(frozen=True, slots=True)
class Alternative:
    """What was considered and not taken, and why; `{}` as in `Flag`. `refused`: a start with it would end."""

    what: str
    why: str
    figures: tuple[Figure, ...] = ()
    refused: bool = False

    @property
    def reason(self) -> str:
        """Why not, with the figures in it."""
        return self.why.format(*self.figures) if self.figures else self.why


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer.

    Attributes:
        question: what was asked.
        flags: for SGLang, without the model's path.
        gpus: that they use.
        weights_gib: on each GPU, estimated.
        kv_tokens: slots of all KV caches together, estimated; None: embeddings need none.
        alternatives: what was considered, and why not.
        unknown: what this answer does not know.
    """

    question: Question
    flags: tuple[Flag, ...]
    gpus: int
    weights_gib: float
    kv_tokens: int | None
    alternatives: tuple[Alternative, ...]
    unknown: tuple[str, ...]

    @property
    def keywords(self) -> dict[str, Any]:
        """The flags as keywords of `sglang.Engine`."""
        return {flag.name: flag.value for flag in self.flags}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to use the GPUs: `dp` copies of the model, each on `tp * sp` of them."""

    tp: int = 1
    sp: int = 1
    dp: int = 1

    @property
    def gpus(self) -> int:
        """That it uses."""
        return self.tp * self.sp * self.dp

    @property
    def title(self) -> str:
        """Its name among the alternatives."""
        if self.sp > 1:
            return "Shift Parallelism"
        return "data parallelism" if self.dp > 1 else "tensor parallelism" if self.tp > 1 else "one GPU"
