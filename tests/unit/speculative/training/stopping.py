"""Runs `speculative.train` in one of two processes; one is terminated in the middle, then both go on.

Arguments are the command's.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))

from speculative import train
from speculative.training import loop

STEP = 3
advance = loop.Trainer._advance


def stop(trainer: loop.Trainer) -> None:
    advance(trainer)
    # One process alone gets the signal: the other must hear of it.
    if trainer.step == STEP and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)


loop.Trainer._advance = stop
assert train.main(sys.argv[1:]) == 128 + signal.SIGTERM
loop.Trainer._advance = advance
assert train.main([*sys.argv[1:], "--resume"]) == 0
