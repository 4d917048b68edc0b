"""What the batch SDK's tests share: an engine that records, and a way to run one job on it."""

from __future__ import annotations

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
