"""Trains an LSTM draft head for a model, on what that model writes itself: `python -m speculative.train --help`.

Three stages, each of which goes on where it was stopped: the model continues prompts, its hidden states are kept if
that is asked for, the head learns. On several GPUs: `accelerate launch -m speculative.train ...`, with DDP; each
GPU holds the model whole, and `output` and the folder beside it must be on a disk that all processes share.

Exit codes: 0 done, 2 the request makes no sense, 130 or 143 interrupted or terminated, what was done saved.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import DistributedType
from tqdm.auto import tqdm

from speculative.speculators import SpeculatorConfig, build
from speculative.training import generations
from speculative.training.errors import TrainingError
from speculative.training.loop import STATE, Trainer
from speculative.training.objective import Objective, start_from
from speculative.training.prompts import Prompts
from speculative.training.settings import Settings
from speculative.training.states import Kept, Run, Source, load_model
from swiftkv.checkpoint import locate
from swiftkv.data import Table
from swiftkv.errors import SwiftKVError
from swiftkv.loop import Interrupted, Signals, agree
from swiftkv.settings import add_flags

# Processes wait for each other where one has more to do.
_PATIENCE = timedelta(hours=12)


def train(settings: Settings, *, resume: bool = False) -> Path:
    """Trains a head and writes its folder.

    Args:
        settings: of the run.
        resume: go on from what an interrupted run of the same settings saved.

    Returns:
        The folder: config.json and pytorch_model.bin in Snowflake's format, `training.json` about the run and
        `evaluation.json` about the head.

    Raises:
        TrainingError, SwiftKVError: the request makes no sense.
        Interrupted: SIGINT or SIGTERM came; what was done is saved.
    """
    return _Stages(settings, resume).run()


class _Stages:
    """What the stages share.

    Args:
        settings: of the run.
        resume: go on with an interrupted run.
    """

    def __init__(self, settings: Settings, resume: bool) -> None:
        _check_output(settings, resume)
        # mixed_precision "no": weights keep the dtypes they get below, whatever the accelerate config says
        self._accelerator = Accelerator(
            mixed_precision="no", step_scheduler_with_optimizer=False,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )  # fmt: skip
        if self._accelerator.distributed_type == DistributedType.FSDP:
            raise TrainingError(
                "a draft head is trained with DDP, not FSDP; leave FSDP out of accelerate's config"
            )
        device = self._accelerator.device
        self._half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and device.type == "cuda")
        self._model = load_model(settings.model, torch.bfloat16 if self._half else torch.float32, device)
        config = self._model.config.get_text_config()
        self._hidden = config.hidden_size
        positions = getattr(config, "max_position_embeddings", None)
        self._settings = settings.for_model(self._hidden, positions)
        self._settings.work.mkdir(parents=True, exist_ok=True)
        self._resume = (settings.work / STATE).is_file()

    @property
    def _parts(self) -> dict[str, int]:
        return {"part": self._accelerator.process_index, "parts": self._accelerator.num_processes}

    def run(self) -> Path:
        if self._settings.prompts:
            self._generate()
        train, heldout = self._tables()
        pairs = [(table, self._source(table)) for table in (train, heldout)]
        trainer = Trainer(self._settings, self._accelerator, self._objective(), *pairs)
        if self._resume:
            trainer.restore()
        trainer.run()
        output = trainer.finish()
        if self._accelerator.is_main_process:
            shutil.rmtree(self._settings.work, ignore_errors=True)
        return output

    @property
    def _generations(self) -> Path:
        given = self._settings.generations
        return Path(given) if given else self._settings.work / "generations"

    def _generate(self) -> None:
        settings = self._settings
        tokenizer = transformers.AutoTokenizer.from_pretrained(locate(settings.model))
        longest = settings.sequence_length - settings.max_new_tokens
        prompts = Prompts(settings.prompts, tokenizer, window=settings.window, longest=longest)
        self._stage("generate", "prompt", partial(
            generations.generate, self._model, islice(iter(prompts), settings.max_prompts), settings.sampling,
            self._generations, batch_size=settings.generation_batch_size,
            about={"model": settings.model, "prompts": settings.prompts, "max_prompts": settings.max_prompts,
                   "window": settings.window, "longest": longest},
        ))  # fmt: skip

    def _stage(self, name: str, unit: str, work: Callable[..., bool]) -> None:
        """Runs a stage, which may be stopped by a signal between its pieces."""
        bar = tqdm(desc=name, unit=unit, disable=not self._accelerator.is_main_process, dynamic_ncols=True)
        with Signals() as signals, bar:
            work(**self._parts, stop=lambda: bool(signals.caught), show=bar.update)
            signum, _ = agree(self._accelerator, signals.caught, 0.0)
        if signum:
            raise Interrupted(signum, 0)

    def _tables(self) -> tuple[Table, Table]:
        """The rows to learn from and those to measure on, written by the main process."""
        settings = self._settings
        files = generations.files_of(self._generations)
        stats = [[path.name, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in files]
        every = settings.heldout_every

        def make(name: str, heldout: bool) -> Table:
            parts = json.dumps([stats, settings.model, every, heldout, settings.sequence_length])
            return Table.keep(
                partial(generations.split, files, every, heldout=heldout), settings.sequence_length,
                settings.work / name, name=str(files[0].parent),
                fingerprint=hashlib.sha256(parts.encode()).hexdigest(),
            )  # fmt: skip

        with self._accelerator.main_process_first():
            try:
                return make("train", False), make("heldout", True)
            except SwiftKVError as error:
                msg = f"{error}; of {every} prompts one is kept to measure on (--heldout-every)"
                raise TrainingError(msg) from error

    def _source(self, table: Table) -> Source:
        run = Run(self._model, table)
        if not self._settings.keep_states:
            return run
        dtype = self._model.dtype
        path = table.folder / str(dtype).replace("torch", "states")
        kept = Kept(path, table, self._hidden, dtype, self._accelerator.device)
        length, size = self._settings.sequence_length, self._settings.batch_size
        self._stage(f"states of {table.folder.name}", "batch", partial(kept.fill, run, length, size))
        return kept

    def _objective(self) -> Objective:
        settings, model = self._settings, self._model
        head = model.get_output_embeddings().weight
        torch.manual_seed(settings.seed)
        config = SpeculatorConfig.lstm(
            self._hidden, settings.inner_dim, len(head), settings.n_predict, scale_input=True,
            base_model=settings.model,
        )  # fmt: skip
        speculator = build(config)
        speculator.reset_parameters()
        if settings.start == "model" and settings.inner_dim == self._hidden:
            start_from(speculator, model.get_input_embeddings().weight, head)
        own = head if settings.labels == "model" else None
        return Objective(speculator, autocast=self._half, model_head=own).to(self._accelerator.device)


def _check_output(settings: Settings, resume: bool) -> None:
    output, state = Path(settings.output), settings.work / STATE
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise TrainingError(f"--output: {output} exists already; name another folder, or remove it")
    if not output.absolute().parent.is_dir():
        raise TrainingError(f"--output: {output.absolute().parent} is no folder")
    if state.is_file() and not resume:
        raise TrainingError(
            f"{state} is of a run that did not end; go on with --resume, or remove {state.parent}"
        )
    if resume and not settings.work.is_dir():
        raise TrainingError(f"there is nothing to resume in {settings.work}")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser: a flag for each field of `Settings`."""
    parser = argparse.ArgumentParser(
        prog="python -m speculative.train",
        description="Train an LSTM draft head for a model, on what that model writes itself.",
    )
    add_flags(parser, Settings)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args: dict[str, Any] = vars(build_parser().parse_args(argv))
    resume = args.pop("resume")
    args["temperatures"] = tuple(args["temperatures"])
    try:
        output = train(Settings(**args), resume=resume)
    except (TrainingError, SwiftKVError) as error:
        print(f"speculative.train: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if PartialState().is_main_process:
            print(
                f"speculative.train: stopped after step {stop.step}; the same command with --resume goes on",
                file=sys.stderr,
            )
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("speculative.train: interrupted; nothing new was saved", file=sys.stderr)
        return 130
    if PartialState().is_main_process:
        print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
