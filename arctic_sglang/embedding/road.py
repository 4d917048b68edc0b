"""What the vectorised road goes with, and its default sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A step of a GPU is long enough that its launches cost nothing, and short enough that a small request does not
# notice it; a CPU computes the same in a hundred times as long.
_GPU_STEP_TOKENS = 16384
_CPU_STEP_TOKENS = 4096

# Slots of the KV cache where none are asked for: this road needs none, and SGLang's own, which stays for what the
# road does not do, needs room for some requests, not for most of the GPU.
CACHE_TOKENS = 131072

# Setting -> (what it has to be, why).
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "tokenizer_worker_num": ((1,), "the front door stands in one process"),
    "pp_size": ((1,), "a step runs on all layers at once"),
    "dp_size": (
        (1,),
        "SGLang's data-parallel controller passes on its own requests alone; use --embedding-replicas",
    ),
    "disaggregation_mode": (("null", None), "there is no decode to hand over to"),
    "enable_dp_attention": ((False,), "its ranks compute batches of their own"),
    "nnodes": ((1,), "the front door and its instances share one machine"),
    "smg_grpc_mode": ((False,), "its server has no tokenizer manager, and so no front door"),
    "grpc_mode": ((False,), "its server has no tokenizer manager, and so no front door"),
    "max_queued_requests": (
        (None,),
        "the front door's queue has no end; a proxy in front can count requests",
    ),
    "pickled": ((True,), "its messages are pickled; unset SGLANG_USE_PICKLE_IPC"),
}


def refusals(settings: Mapping[str, Any]) -> list[str]:
    """Why this start cannot have the road: one line for each setting that it does not go with.

    Args:
        settings: SGLang's server arguments by name, and `pickled`: whether SGLang's processes exchange pickles.
    """
    found = []
    for name, (allowed, why) in _ONLY.items():
        if name in settings and settings[name] not in allowed:
            shown = name if name == "pickled" else f"--{name.replace('_', '-')} {settings[name]}"
            found.append(f"{shown}: {why}")
    return found


def step_tokens(accelerator: str | None) -> int:
    """Tokens of a forward step where none are given."""
    return _CPU_STEP_TOKENS if accelerator is None else _GPU_STEP_TOKENS
