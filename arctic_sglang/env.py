"""The only reader and writer of this package's environment variables.

| variable | meaning |
|---|---|
| `ARCTIC_SGLANG_REPORT_DIR` | a folder: every process of a server writes `<role>-<pid>.json` there |
| `ARCTIC_SGLANG_UNTIMED` | 1: speculation's choices go by its cost table, not by what steps took: repeatable |
| `SGLANG_PLUGINS`, `SGLANG_PLATFORM` | SGLang's own: which plugins it loads; shown by the doctor |
| `SGLANG_CPU_OMP_THREADS_BIND` | SGLang's own: the cores of each rank; set in a rank's process if unset |
| `SGLANG_USE_MODELSCOPE` | SGLang's own: names of models are ModelScope's; nothing is looked up on the hub then |
| `CUDA_MPS_PIPE_DIRECTORY` | NVIDIA's own: where a CUDA MPS daemon has its pipes; looked at for a log line |
| `XDG_CACHE_HOME` | where the user's caches are, by default `~/.cache`: `arctic_sglang/shift` there is ours |
| what `api_key_env` names | the http engine's API key |
"""

import os
from pathlib import Path

REPORT_DIR = "ARCTIC_SGLANG_REPORT_DIR"
UNTIMED = "ARCTIC_SGLANG_UNTIMED"
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


def untimed() -> bool:
    """Whether speculation is to choose without a clock, so that it drafts the same on a busy machine."""
    value = os.environ.get(UNTIMED, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{UNTIMED}={value!r}: set it to 1 for choices that go by no clock, or to 0")
    return value == "1"


def cache_folder() -> Path:
    """Where times that were measured at a start are kept for the next one."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "arctic_sglang" / "shift"


def plugin_filters() -> dict[str, str]:
    """SGLang's variables that can keep this plugin from loading, those that are set."""
    return {name: os.environ[name] for name in ("SGLANG_PLUGINS", "SGLANG_PLATFORM") if os.environ.get(name)}


def pickled_messages() -> bool:
    """Whether SGLang's processes exchange pickles, as they do by default."""
    return os.environ.get("SGLANG_USE_PICKLE_IPC", "1").lower() in ("1", "true", "yes", "y", "on")


def modelscope() -> bool:
    """Whether names of models are ModelScope's, so that the hub knows nothing of them."""
    return os.environ.get("SGLANG_USE_MODELSCOPE", "0").lower() in ("1", "true", "yes", "y", "on")


def cpu_engine_requested() -> bool:
    """Whether the user chose SGLang's own CPU engine, which needs a source build of its kernels."""
    return os.environ.get(CPU_ENGINE, "0") == "1"


def mps_pipes() -> Path | None:
    """Folder of a running CUDA MPS daemon's pipes, which processes use that find it; None without one."""
    # NVIDIA's default: https://docs.nvidia.com/deploy/mps/
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return folder if (folder / "control").exists() else None


def set_threads_bind(cores: str) -> None:
    """Give this process, a rank, its cores ("0-3|4-7": one list for each rank), unless the user did."""
    os.environ.setdefault(CPU_THREADS_BIND, cores)


def secret(name: str) -> str | None:
    """The value of a variable that the user named as the place of a key; None if it is not set."""
    return os.environ.get(name)
