"""A plugin for SGLang that gives every step another mode than the one before, whatever its size.

And each step in sequence parallelism sends its rows part by part, as large ones do on GPUs.

Found in a folder of PYTHONPATH by the metadata beside it. All ranks run the same steps, so they flip alike.
"""

import itertools


def register() -> None:
    """Called by SGLang in every process."""
    from arctic_sglang.shift.exchange import Collectives
    from arctic_sglang.shift.policy import Mode, Policy

    modes = itertools.cycle((Mode.SEQUENCE, Mode.TENSOR))
    Policy.mode = lambda _policy, _tokens: next(modes)
    Collectives.overlaps = lambda _exchange, _tokens: True
