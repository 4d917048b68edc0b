"""Where the instances of an embedding server go, and how a further one differs from the first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Tokens in a further instance's KV cache, which the vectorised road does not use; SGLang cannot do without one.
REPLICA_CACHE_TOKENS = 4096
# The first instance's, where others share its GPU: SGLang would give its cache all the memory there is.
SHARED_CACHE_TOKENS = 131_072

# Half a lifetime: SGLang's watchdog ends the whole server, and our own looks after further instances.
_NO_WATCHDOG_SECONDS = 1e9


@dataclass(frozen=True, slots=True)
class Place:
    """Where one instance runs.

    Attributes:
        gpu: its number among the visible ones, or 0 on a CPU.
        sharing: instances on that GPU, this one included.
    """

    gpu: int
    sharing: int


def places(instances: int, gpus: Sequence[int]) -> list[Place]:
    """A place for each instance: one on each GPU first, then a second one on each.

    Args:
        instances: how many, at least 1. The first stays where SGLang puts it, on `gpus[0]`.
        gpus: numbers of the GPUs that may be used, at least one.
    """
    chosen = [gpus[number % len(gpus)] for number in range(instances)]
    return [Place(gpu, chosen.count(gpu)) for gpu in chosen]


def usable_gpus(visible: int, base: int, step: int) -> list[int]:
    """The GPUs from SGLang's `--base-gpu-id` on, in steps of `--gpu-id-step`; the base alone without any."""
    return list(range(base, visible, max(1, step))) or [base]


def refusals(settings: Mapping[str, Any]) -> list[str]:
    """Why replicas cannot be had with these server arguments, a line each; empty if they can."""
    found = []
    if settings["tp_size"] > 1:
        found.append(f"--tp-size {settings['tp_size']}: an instance is one process, on one GPU")
    if settings["enable_memory_saver"]:
        found.append("--enable-memory-saver: it releases the first instance's memory alone")
    return found


def replica_arguments() -> dict[str, Any]:
    """Server arguments of a further instance that differ from the first one's."""
    return {
        "max_total_tokens": REPLICA_CACHE_TOKENS,
        "max_running_requests": 8,
        # Fixed ones would be the first instance's.
        "nccl_port": None,
        "dist_init_addr": None,
        # What it would report goes to sockets that nobody reads.
        "enable_metrics": False,
        "kv_events_config": None,
        "watchdog_timeout": _NO_WATCHDOG_SECONDS,
        "soft_watchdog_timeout": None,
    }
