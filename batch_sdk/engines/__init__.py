"""The engines' door: names to engines, each imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from batch_sdk.engines.base import Engine, Task
from batch_sdk.errors import check_names

__all__ = ["ENGINES", "Engine", "create_engine", "engine_name"]

ENGINES: dict[str, str] = {
    "sglang": "batch_sdk.engines.sglang:SGLangEngine",
    "http": "batch_sdk.engines.http:HttpEngine",
    "dummy": "batch_sdk.engines.dummy:DummyEngine",
}
"""Name -> `module:class`. The class takes `model`, `task` and the user's `options` as keywords."""


def create_engine(name: str, *, model: str, task: Task, options: dict[str, Any] | None = None) -> Engine:
    """Make an engine that is not started yet.

    Args:
        name: a key of `ENGINES`.
        model: path or hub name.
        task: "generate" or "embed".
        options: the engine's own options, e.g. any argument of `sglang.Engine`, or http's `url`.

    Raises:
        OptionError: the name or an option is unknown.
    """
    check_names([name], ENGINES, "engine")
    module_name, class_name = ENGINES[name].split(":")
    engine_class = getattr(importlib.import_module(module_name), class_name)
    engine: Engine = engine_class(model=model, task=task, options=dict(options or {}))
    engine.engine_options = dict(options or {})  # whether its class remembers them or not
    return engine


def engine_name(engine: Engine) -> str:
    """Return the key of `ENGINES` that makes such an engine, or the name of its class."""
    path = f"{type(engine).__module__}:{type(engine).__qualname__}"
    return next((name for name, known in ENGINES.items() if known == path), path)
