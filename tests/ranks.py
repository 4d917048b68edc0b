"""Ranks of `torch.distributed` on this machine, without `torchrun`, which takes seconds before it starts any."""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager

from tests.engine.servers import free_port

WORLD = 2


@contextmanager
def started(*command, **environment):
    """Starts `python COMMAND` once for each rank; on leaving, waits until all have ended well.

    Args:
        command: a program and its arguments.
        environment: variables besides those of `torchrun` and one thread each.
    """
    port, outputs = free_port(), [tempfile.TemporaryFile("w+") for _ in range(WORLD)]
    shared = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": 1, **environment}
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=output, stderr=output,
            env={**os.environ, **{k: str(v) for k, v in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}},
        )
        for rank, output in enumerate(outputs)
    ]  # fmt: skip
    try:
        yield
        for process, output in zip(running, outputs, strict=True):
            code = process.wait(300)
            output.seek(0)
            assert code == 0, output.read()[-3000:]
    finally:
        for process, output in zip(running, outputs, strict=True):
            process.kill()
            process.wait()
            output.close()
