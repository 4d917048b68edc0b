"""Trains what SwiftKV added to a model until it says what its base says: `python -m swiftkv.distill --help`.

On several GPUs: `accelerate launch -m swiftkv.distill ...`, with DDP, or with FSDP version 2 for models that one
GPU does not hold. `out` and the folder beside it must then be on a disk that all processes share.

Exit codes: 0 done, 2 the request makes no sense, 130 or 143 interrupted or terminated, the state saved once
training has begun.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import DistributedType
from tqdm.auto import tqdm

from swiftkv import checkpoint
from swiftkv.checkpoint import Checkpoint
from swiftkv.data import Table
from swiftkv.distillation import Distillation, check, load
from swiftkv.encoding import Rows
from swiftkv.errors import SwiftKVError
from swiftkv.loop import Interrupted
from swiftkv.settings import Settings, add_flags
from swiftkv.training import STATE, Trainer

# The other processes wait while the main one tokenises.
_PATIENCE = timedelta(hours=12)


def distill(settings: Settings, *, resume: bool = False) -> Path:
    """Runs a distillation to its end and writes the trained folder.

    Args:
        settings: of the run.
        resume: go on from what an interrupted run of the same settings saved.

    Returns:
        The folder, which both loaders of SwiftKV models take, with a `distillation.json` about the run.

    Raises:
        SwiftKVError: the request makes no sense.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    checkpoint.check_out(Path(settings.out))
    state = settings.work / STATE
    if state.is_file() and not resume:
        raise SwiftKVError(
            f"{state} is of a run that did not end; go on with --resume, or remove {state.parent}"
        )
    if resume and not state.is_file():
        raise SwiftKVError(f"there is nothing to resume in {settings.work}")
    source = Checkpoint.open(settings.model)
    settings = settings.for_positions(source.config.get("max_position_embeddings"))
    teacher = Checkpoint.open(settings.teacher) if settings.teacher else None
    check(source, teacher)  # before hours of tokenising
    # mixed_precision "no": weights keep the dtypes they get below, whatever the accelerate config says
    accelerator = Accelerator(
        mixed_precision="no", step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )  # fmt: skip
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise SwiftKVError("FSDP version 1 cannot train part of a layer; set fsdp_version: 2")
    train, heldout = _tables(settings, source, accelerator)
    half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and accelerator.device.type == "cuda")
    model = load(source, torch.bfloat16 if half else torch.float32, teacher=teacher)
    module = Distillation(model, temperature=settings.temperature, autocast=half)
    module.train_added(gradient_checkpointing=settings.gradient_checkpointing)
    trainer = Trainer(settings, accelerator, source, module, train, heldout, teacher=teacher)
    if resume:
        trainer.restore()
    trainer.run()
    return trainer.finish()


def _tables(settings: Settings, source: Checkpoint, accelerator: Accelerator) -> tuple[Table, Table | None]:
    """The rows to learn from and those to measure on, tokenised by the main process."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder)

    def make(data: str, name: str, column: str | None) -> Table:
        show: Callable[..., Any] = partial(
            tqdm, desc=f"tokenise {name}", unit="row", disable=not accelerator.is_main_process
        )
        return Table.make(
            Rows.open(data, column), tokenizer, settings.sequence_length, settings.work / name, progress=show
        )

    with accelerator.main_process_first():
        train = make(settings.data, "train", settings.column)
        heldout = make(settings.heldout, "heldout", settings.column) if settings.heldout else None
    if accelerator.is_main_process:
        tqdm.write(f"train: {train.report}", file=sys.stderr)
        if heldout:
            tqdm.write(f"heldout: {heldout.report}", file=sys.stderr)
    return train, heldout


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser: a flag for each field of `Settings`."""
    parser = argparse.ArgumentParser(
        prog="python -m swiftkv.distill",
        description="Train a converted SwiftKV model to say what its base says.",
    )
    add_flags(parser, Settings)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = vars(build_parser().parse_args(argv))
    resume = args.pop("resume")
    try:
        settings = Settings(**args)
        out = distill(settings, resume=resume)
    except SwiftKVError as error:
        print(f"swiftkv.distill: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if PartialState().is_main_process:
            kept = (settings.work / STATE).is_file()
            way = "the same command with --resume goes on" if kept else "nothing of the run could be saved"
            message = f"stopped after step {stop.step}; {way}"
            print(f"swiftkv.distill: {message}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("swiftkv.distill: interrupted; nothing new was saved", file=sys.stderr)
        return 130
    if PartialState().is_main_process:
        print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
