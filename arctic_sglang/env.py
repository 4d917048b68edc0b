"""The only reader and writer of this package's environment variables.

| variable | meaning |
|---|---|
| `ARCTIC_SGLANG_REPORT_DIR` | a folder: every process of a server writes `<role>-<pid>.json` there |
| `SGLANG_PLUGINS`, `SGLANG_PLATFORM` | SGLang's own: which plugins it loads; shown by the doctor |
| `SGLANG_CPU_OMP_THREADS_BIND` | SGLang's own: the cores of each rank; set for child processes if unset |
"""

import os
from pathlib import Path

REPORT_DIR = "ARCTIC_SGLANG_REPORT_DIR"
CPU_THREADS_BIND = "SGLANG_CPU_OMP_THREADS_BIND"
CPU_ENGINE = "SGLANG_USE_CPU_ENGINE"


def report_dir() -> Path | None:
    """Folder for process reports, or None. A value that is no folder is an error."""
    value = os.environ.get(REPORT_DIR, "")
    if not value:
        return None
    path = Path(value)
    if not path.is_dir():
        msg = f"{REPORT_DIR}={value!r} is not a folder; create it, or unset the variable"
        raise ValueError(msg)
    return path


def plugin_filters() -> dict[str, str]:
    """SGLang's variables that can keep this plugin from loading, those that are set."""
    return {name: os.environ[name] for name in ("SGLANG_PLUGINS", "SGLANG_PLATFORM") if os.environ.get(name)}


def cpu_engine_requested() -> bool:
    """Whether the user chose SGLang's own CPU engine, which needs a source build of its kernels."""
    return os.environ.get(CPU_ENGINE, "0") == "1"


def set_threads_bind(cores: str) -> None:
    """Give the child processes their cores ("0-3|4-7"), unless the user did."""
    global _threads_bind_set
    current = os.environ.get(CPU_THREADS_BIND)
    if current is None or current == _threads_bind_set:  # a second engine may have another number of ranks
        os.environ[CPU_THREADS_BIND] = _threads_bind_set = cores


_threads_bind_set: str | None = None
