"""Which process of a server this is, and its report.

With `ARCTIC_SGLANG_REPORT_DIR` set, every process that arctic-sglang reaches writes one JSON file there:
its role, its features and the seams applied. That is how one sees that a hook is where it is needed.
"""

import json
import multiprocessing
import os
import sys

from arctic_sglang import __version__, env
from arctic_sglang.compat import apply
from arctic_sglang.compat.seams import Role
from arctic_sglang.features import Feature

# A child of SGLang unpickles its entry function first, which imports that function's module, and its
# arguments (our server arguments among them) after. So the modules tell the process. A tokenizer worker
# imports the whole server and the controller the scheduler, hence the order.
_SIGNS = (
    ("sglang.srt.entrypoints.http_server", Role.TOKENIZER),
    ("sglang.srt.managers.data_parallel_controller", Role.CONTROLLER),
    ("sglang.srt.managers.scheduler", Role.SCHEDULER),
    ("sglang.srt.managers.detokenizer_manager", Role.DETOKENIZER),
)


def role() -> Role:
    """The role of this process."""
    # The name is known while a child still unpickles its arguments; `parent_process()` is not yet.
    if multiprocessing.current_process().name == "MainProcess":
        return Role.MAIN
    for module, sign in _SIGNS:
        if module in sys.modules:
            return sign
    return Role.TOKENIZER


def report(features: tuple[Feature, ...], process_role: Role) -> None:
    """Writes this process's report, if a folder for reports is set."""
    folder = env.report_dir()
    if folder is None:
        return
    content = {
        "role": process_role,
        "pid": os.getpid(),
        "version": __version__,
        "features": list(features),
        "seams": list(apply.applied()),
    }
    path = folder / f"{process_role}-{os.getpid()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
