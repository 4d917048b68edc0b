"""Runs `swiftkv.distill` with DDP and with FSDP; each is terminated in the middle and resumed.

The first argument is the folder for `MULTI_CPU` and `FSDP`, the others are the command's. One program for both,
because starting it takes longer than what it does.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from swiftkv import distill, training

STEP = 3
advance = training.Trainer._advance


class Sharding(Accelerator):
    """accelerate shards on accelerators alone; told that this is one, it does so on the CPU."""

    def __init__(self, **more) -> None:
        super().__init__(**more)
        self.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def stop(trainer: training.Trainer) -> None:
    advance(trainer)
    sharded = trainer._accelerator.distributed_type is DistributedType.FSDP
    assert all(isinstance(weight, DTensor) == sharded for weight in trainer._trained)
    # One process alone gets the signal: the others must hear of it.
    if trainer.step == STEP and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)


folder, *flags = sys.argv[1:]
for kind, accelerator in (("MULTI_CPU", Accelerator), ("FSDP", Sharding)):
    AcceleratorState._reset_state(reset_partial_state=True)
    distill.Accelerator = accelerator
    arguments = [*flags, "--out", f"{folder}/{kind}"]
    training.Trainer._advance = stop
    assert distill.main(arguments) == 128 + signal.SIGTERM
    training.Trainer._advance = advance
    assert distill.main([*arguments, "--resume"]) == 0
