"""What the batch SDK's tests share: an engine that records, and a way to run one job on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batch_sdk
from batch_sdk.engines.dummy import DummyEngine


class Jobs:
    """Runs jobs on dummy engines; the last engine stays readable as `engine`."""

    engine: DummyEngine

    def start(self, task: str, **options: Any) -> DummyEngine:
        engine = DummyEngine(model="dummy-model", task=task, options=options)
        engine.start()
        self.engine = engine
        return engine

    def generate(
        self, data: Any, prompt: str = "say {{ text }}", *, options: dict | None = None, **kw: Any
    ) -> Any:
        engine = self.start("generate", **(options or {}))
        return batch_sdk.generate(data, prompt=prompt, model=engine, progress=False, **kw)

    def embed(self, data: Any, column: str = "text", *, options: dict | None = None, **kw: Any) -> Any:
        engine = self.start("embed", **(options or {}))
        return batch_sdk.embed(data, column=column, model=engine, progress=False, **kw)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with two CPUs each, all on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(
            "PYTHONPATH", str(Path(__file__).parents[3])
        )  # workers run this code, wherever jobs begin
        node = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(**node)
        yield cluster.address
        cluster.shutdown()
