"""The process of a further embedding instance: SGLang's scheduler, without what ties one to its server.

SGLang's own entry function ends the whole server when it fails; this one ends its process alone.
"""

import faulthandler
import os
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

# A spawned process imports this module before it unpickles its server arguments, and by this import
# `process.role` knows it for a scheduler.
import sglang.srt.managers.scheduler  # noqa: F401

from arctic_sglang.compat import vendor


def run(server_args: Any, port_args: Any, gpu: int, name: str, pipe: Connection) -> None:
    """Load the model, say so, and serve until killed.

    Args:
        server_args: of this instance.
        port_args: its sockets, SGLang's `PortArgs`.
        gpu: number of its GPU among the visible ones.
        name: for its log lines and its title.
        pipe: takes SGLang's message of a ready scheduler, or `{"status": "failed", "error": str}`.
    """
    try:
        vendor.load_plugins()
        # Also ties this process's life to its parent's.
        vendor.configure_scheduler_process(server_args, gpu, 0, 0, 0, 0, 0, None)
        vendor.configure_logger(server_args, prefix=f" {name}")
        # Not `sglang::scheduler`: SGLang waits for those to end by themselves when a server ends.
        vendor.setproctitle(f"sglang::{name.replace(' ', '_')}")
        faulthandler.enable()
        vendor.publish(server_args, role="scheduler")
        scheduler = vendor.Scheduler(server_args, port_args, gpu, 0, 0, 0, 0, 0, None)
        pipe.send(scheduler.get_init_info())
        scheduler.run_event_loop()
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends this process
        traceback.print_exc()
        with suppress(OSError):
            pipe.send({"status": "failed", "error": f"{type(error).__name__}: {error}"})
        # Not sys.exit: with a device in trouble an orderly end may never come.
        os._exit(1)
