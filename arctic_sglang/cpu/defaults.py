"""Server arguments for a machine without a GPU. Pure: values in, values out.

Each entry is what makes the wheels on PyPI start and run there; a value that the user gave always stays.
"""

from collections.abc import Mapping
from typing import Any

MAX_TOTAL_TOKENS = 32_768
MEM_FRACTION_STATIC = 0.3
MAX_RUNNING_REQUESTS = 64


def cpu_defaults(args: Mapping[str, Any]) -> dict[str, Any]:
    """Values for those of SGLang's arguments that `args` leaves at their defaults.

    Args:
        args: SGLang's server arguments by name, as the user gave them.
    """
    wanted: dict[str, Any] = {
        "device": "cpu",
        # The wheels carry no AMX kernels, and everything else needs CUDA.
        "attention_backend": "torch_native",
        # SGLang computes a negative fraction from a GPU's size that is not there.
        "mem_fraction_static": MEM_FRACTION_STATIC,
        # The fraction alone would give a small model millions of slots.
        "max_total_tokens": max(MAX_TOTAL_TOKENS, args.get("context_length") or 0),
        "max_running_requests": MAX_RUNNING_REQUESTS,
    }
    changed = {name: value for name, value in wanted.items() if args.get(name) is None}
    if args.get("dtype") in (None, "auto"):
        # Half precision is emulated on most CPUs: slower than float32, and "auto" makes it of float32 weights.
        changed["dtype"] = "float32"
    # Two pools of KV slots, for models with sliding windows, exist for CUDA only.
    changed["disable_hybrid_swa_memory"] = True
    # An idle scheduler otherwise spins, on the very cores that others compute with.
    changed["sleep_on_idle"] = True
    return changed


def cpu_refusal(quantization: str | None) -> str | None:
    """Why a model's weights cannot be computed with, or None.

    Args:
        quantization: SGLang's name of how they are quantised, by the flag or by the checkpoint; None: not at all.
    """
    if quantization != "fp8":
        return None
    return (
        "quantization fp8 on a machine without a GPU: SGLang's kernels for it are Triton's and CUDA's alone; leave "
        "--quantization out, or serve a checkpoint in bf16 or float32"
    )


def threads_per_rank(cores: int, ranks: int, given: int | None) -> int:
    """Threads of each rank: what was given, else an even share, at least 1."""
    return given if given is not None else max(1, cores // ranks)


def cores_of_ranks(cores: int, ranks: int, threads: int) -> str:
    """Core lists in SGLang's notation, one per rank: 4 cores, 2 ranks, 2 threads -> "0-1|2-3".

    More ranks than fit are laid over the same cores again.
    """
    lists = []
    for rank in range(ranks):
        width = min(threads, cores)
        start = rank * width if (rank + 1) * width <= cores else (rank * width) % max(1, cores - width + 1)
        lists.append(f"{start}-{start + width - 1}" if width > 1 else str(start))
    return "|".join(lists)
