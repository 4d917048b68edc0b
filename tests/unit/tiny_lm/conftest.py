"""Loads the scripts of examples/tiny_lm, which is a folder of scripts and no package."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "tiny_lm"


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], ModuleType]:
    """Return a loader of one script by name; it leaves no trace in sys.path and sys.modules."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    loaded: dict[str, ModuleType] = {}

    def load(name: str) -> ModuleType:
        if name in loaded:
            return loaded[name]
        before = {n: sys.modules.pop(n) for n in names if n in sys.modules}
        path = list(sys.path)
        sys.path.insert(0, str(FOLDER))
        sys.modules.update(loaded)
        try:
            importlib.import_module(name)
            loaded.update({n: sys.modules[n] for n in names if n in sys.modules})
        finally:
            for n in names:
                sys.modules.pop(n, None)
            sys.path[:] = path
            sys.modules.update(before)
        return loaded[name]

    return load
