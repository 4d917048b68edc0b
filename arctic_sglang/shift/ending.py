"""How a server ends when one of its ranks does: soon, with the rank's name, and never with exit code 0.

The other ranks wait for the one that is gone. On GPUs they do so within a kernel, for ever, and hear of nothing. SGLang
notices the dead process, and takes it that living ones have something to tell: it asks each for its stack and waits
a minute for dumps of its GPU, while every client waits too. Here they have nothing to tell, unless somebody asked for
such dumps (--crash-dump-folder).

A rank that raises an error ends too, with exit code 0, and so may one that notices that another is gone: within a
second, while the driver still takes the memory of the killed one back and its process is not gone yet.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_FAILED = 1
_GONE_SECONDS = 5  # at most, from the first sign of it until the process that failed is gone


def around_sigquit(original: Callable[..., None], handler: Any, *args: Any, **kwargs: Any) -> None:
    """Names the processes that have ended, ends the ranks that wait for them, and then does as SGLang does.

    Args:
        original: SGLang's handler of the signal that says that a process of the server has failed.
        handler: SGLang's object.
        args: of the handler.
        kwargs: of the handler.
    """
    try:
        manager = handler.tokenizer_manager
        if manager._subprocess_watchdog is not None:
            _end_ranks(manager._subprocess_watchdog, dumped=bool(manager.crash_dump_folder))
        original(handler, *args, **kwargs)
    finally:
        # SGLang kills itself, which the first process of a container cannot do, and then exits with 0.
        logging.shutdown()
        os._exit(_FAILED)


def _end_ranks(watchdog: Any, *, dumped: bool) -> None:
    known = list(zip(watchdog._names, watchdog._processes, strict=True))
    until = time.monotonic() + _GONE_SECONDS
    while not any(process.exitcode for _, process in known) and time.monotonic() < until:
        time.sleep(0.1)
    ended = [(name, process) for name, process in known if process.exitcode is not None]
    if not ended:
        return
    told = ", ".join(f"{name} (pid {process.pid}, exit code {process.exitcode})" for name, process in ended)
    logger.error("arctic-sglang: the server ends, as these processes have ended: %s", told)
    for name, process in known:
        if name.startswith("scheduler") and process.exitcode is None and not dumped:
            process.kill()
