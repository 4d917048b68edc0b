"""All ranks of an engine on the first GPU, for tests that need several where there is one: correct, and slow.

Ranks are processes that take turns on the GPU, a few milliseconds each, also while a kernel of one waits for another.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def register() -> None:
    """Ranks that start get GPU 0, and their all-reduce in shared memory takes that for GPUs with NVLink."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for name, theirs in {
        "utils.common.maybe_reindex_device_id": first_gpu,
        "distributed.device_communicators.custom_all_reduce_utils.can_use_custom_all_reduce_with_nvlink": in_reach,
    }.items():
        HookRegistry.register(f"sglang.srt.{name}", theirs, HookType.REPLACE)


@contextmanager
def first_gpu(gpu_id: int) -> Iterator[int]:
    """While rank `gpu_id` starts, which inherits what it says of its host: NCCL refuses one GPU twice in a host."""
    os.environ["NCCL_HOSTID"] = f"rank-{gpu_id}"
    yield 0
    del os.environ["NCCL_HOSTID"]


def in_reach(group, **_) -> bool | None:
    """Whether ranks can write to each other's memory; None for a rank alone."""
    import torch

    return True if torch.distributed.get_world_size(group) > 1 else None
