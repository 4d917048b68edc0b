"""What a job on a cluster is told of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from batch_sdk.errors import OptionError, check_names


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Options of the executor "ray".

    Attributes:
        replicas: engines, one a worker.
        address: of the cluster, `host:port`; None is the one that this process, `RAY_ADDRESS` or this machine has
            already, else a new one on this machine for this job.
        gpus_per_replica: GPUs that Ray sets aside for each; may be a fraction. Has to be said for the engine
            "sglang" on a cluster that has GPUs; None is none.
        cpus_per_replica: the same for CPUs.
        wait_seconds: how long to wait for the cluster to have room for all replicas.
    """

    replicas: int = 1
    address: str | None = None
    gpus_per_replica: float | None = None
    cpus_per_replica: float = 1
    wait_seconds: float = 60.0

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Check the options. Raises `OptionError` for one that is unknown or makes no sense."""
        check_names(options, [field.name for field in fields(cls)], "option of the executor 'ray'")
        found = cls(**options)
        if type(found.replicas) is not int or found.replicas < 1:
            raise OptionError(f"replicas={found.replicas!r}", "a whole number from 1")
        for name in ("gpus_per_replica", "cpus_per_replica", "wait_seconds"):
            value = getattr(found, name)
            if value is None and name == "gpus_per_replica":
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value < float("inf")
            ):
                raise OptionError(f"{name}={value!r}", "a number from 0")
        if not found.gpus_per_replica and not found.cpus_per_replica:
            raise OptionError("gpus_per_replica=0 with cpus_per_replica=0", "one of them above 0")
        if found.address is not None and (not isinstance(found.address, str) or "://" in found.address):
            raise OptionError(
                f"address={found.address!r}", "host:port of a cluster whose disks are this machine's"
            )
        return found

    @property
    def resources(self) -> dict[str, float]:
        """What one replica takes, by Ray's names."""
        wanted = {"CPU": float(self.cpus_per_replica), "GPU": float(self.gpus_per_replica or 0)}
        return {name: amount for name, amount in wanted.items() if amount}
