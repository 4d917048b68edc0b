"""What happens once, when a model has been switched: memory for exchanges, warming, times, the threshold."""

import logging
from typing import Any

import torch
from torch import distributed

from arctic_sglang import env
from arctic_sglang.compat import vendor
from arctic_sglang.shift import calibration, measured
from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.figures import ExchangeTimes
from arctic_sglang.shift.layers import Shift, Switched, SwitchedOutput, SwitchedQkv
from arctic_sglang.shift.measured import Situation
from arctic_sglang.shift.policy import Policy, crossover
from arctic_sglang.shift.symmetric import Symmetric, Widths

logger = logging.getLogger(__name__)


def symmetric(runner: Any, slow: Collectives, shift: Shift, switched: list[Switched]) -> Symmetric:
    """The exchange of GPUs. Takes its memory, so it is to be made before SGLang measures what is left for the cache.

    Args:
        runner: SGLang's, with its model.
        slow: what it leaves to process groups.
        shift: this rank.
        switched: the model's layers.
    """
    tokens, dtype = _largest_step(runner.server_args), runner.dtype
    return Symmetric(
        slow, shift.topology, shift.rank, _widths(shift, switched), tokens, dtype, _device(runner)
    )


def get_ready(runner: Any, shift: Shift, switched: list[Switched], *, auto: bool) -> None:
    """Warms both modes, times exchanges, and chooses the threshold by what steps take; all ranks choose the same.

    Args:
        runner: SGLang's, with its model.
        shift: this rank.
        switched: the model's layers.
        auto: whether to choose the threshold.
    """
    widths = _widths(shift, switched)
    args, group, of = runner.server_args, vendor.get_tp_group(), (_device(runner), runner.dtype)
    chunk = _largest_step(args)
    if runner.device == "cuda":
        calibration.warm(runner.model, shift, [1, chunk], *of)
    exchanged = calibration.exchanges(shift.exchange, shift.topology.sp, widths, measured.sizes(chunk), *of)
    shift.figures.exchange = ExchangeTimes(_exchanging_layers(runner.model), exchanged)
    if not auto:
        return
    situation = Situation(
        {name: value for name, value in runner.model.config.to_dict().items() if type(value) is int},
        f"{runner.dtype} {args.quantization}",
        vendor.device_name(runner.device), shift.topology.tp, shift.topology.sp, vendor.versions(),
    )  # fmt: skip
    known = [measured.load(env.cache_folder(), situation)] if shift.rank == 0 else [None]
    distributed.broadcast_object_list(known, src=group.ranks[0], group=group.cpu_group)
    shift.timings, steady = known[0], True
    if not shift.timings:
        shift.timings, steady = calibration.measure(runner.model, shift, measured.sizes(chunk), *of)
    shift.policy = Policy(crossover(shift.timings))
    if shift.rank == 0 and known[0] is None:
        _keep(situation, shift, steady=steady)


def _keep(situation: Situation, shift: Shift, *, steady: bool) -> None:
    """Keeps the times for later starts, unless others were using the GPUs meanwhile."""
    if steady:
        measured.store(env.cache_folder(), situation, shift.timings)
        return
    logger.warning(
        "arctic-sglang: --shift-parallel-threshold auto was measured while others were using the GPUs, and came out as "
        "%s tokens, from times that are not steady: they are not kept. Start again when nobody does, or give a number",
        "any number of" if shift.policy.threshold is None else shift.policy.threshold,
    )


def told(shift: Shift, switched: list[Switched]) -> str:
    """What the log says of it: modes, threshold, groups, memory."""
    topology = shift.topology
    exchange, way = shift.exchange, "process groups"
    if isinstance(exchange, Symmetric):
        way = (
            f"symmetric memory, {exchange.bytes / 2**30:.2f} GiB a rank for steps of {exchange.tokens} tokens"
        )
    size = sum(tensor.nbytes for one in switched for tensor in one.whole.values())
    copied = [one.copied.nbytes for one in switched if one.copied is not None]
    copies = (
        f", and {sum(copied) / 2**30:.2f} GiB for copies of the parts of {len(copied)} of {len(switched)} layers, as "
        "their kernel does not compute with a view"
    )
    return (
        f"Shift Parallelism over {topology.world} ranks, sequence groups {topology.sequence_groups()}: "
        f"{_modes(shift)}; one copy of the linear layers, {size / 2**30:.2f} GiB a rank{copies if copied else ''}, "
        f"where two would be {size * (1 + 1 / topology.sp) / 2**30:.2f}; exchanged over {way}"
    )


def _modes(shift: Shift) -> str:
    threshold = shift.policy.threshold
    if threshold == 0:
        found = "every step in sequence parallelism"
    elif threshold is None:
        found = "every step in tensor parallelism"
    else:
        found = (
            f"steps of up to {threshold} tokens in tensor parallelism, larger ones in sequence parallelism"
        )
    if shift.timings:
        times = ", ".join(
            f"{t.tokens}: {1000 * t.tensor:.2f} / {1000 * t.sequence:.2f}" for t in shift.timings
        )
        found += f" (milliseconds of a few layers by tokens, in either mode: {times})"
    return found


def _widths(shift: Shift, switched: list[Switched]) -> Widths:
    """Of the rows that ranks send each other; all layers of a model have the same."""
    sp = shift.topology.sp
    qkv, output = (
        next(one for one in switched if isinstance(one, kind)) for kind in (SwitchedQkv, SwitchedOutput)
    )
    rows = output.layer.input_size // shift.topology.tp // sp
    return Widths(len(qkv.order) // sp, rows, qkv.layer.input_size)


def _exchanging_layers(model: Any) -> int:
    """Layers of a prefill; of a SwiftKV model those below the cut, as larger steps end there."""
    return model.model.layout.cut if hasattr(model.model, "at_cut") else len(model.model.layers)


def _largest_step(args: Any) -> int:
    """Tokens of a prefill."""
    return args.chunked_prefill_size if args.chunked_prefill_size > 0 else args.max_prefill_tokens


def _device(runner: Any) -> torch.device:
    return torch.device(runner.device, runner.gpu_id if runner.device == "cuda" else None)
