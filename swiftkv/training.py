"""The training loop: steps, savings, what is logged, and the end."""

import json
import math
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint import state_dict as sharded
from tqdm.auto import tqdm

from swiftkv import checkpoint
from swiftkv.checkpoint import Checkpoint
from swiftkv.data import Batch, Order, Table
from swiftkv.distillation import Distillation, tensors_of
from swiftkv.errors import SwiftKVError
from swiftkv.loop import Interrupted, Loop, Signals
from swiftkv.measure import Distance, distance_sums
from swiftkv.settings import Settings

STATE = "state.pt"


class Trainer(Loop):
    """One run.

    Args:
        settings: of the run.
        accelerator: the devices.
        source: the SwiftKV folder.
        module: its model, with what is added trainable.
        train: the rows to learn from.
        heldout: the rows to measure on.
        teacher: the base, if it is not in the folder.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        source: Checkpoint,
        module: Distillation,
        train: Table,
        heldout: Table | None = None,
        *,
        teacher: Checkpoint | None = None,
    ) -> None:
        super().__init__(settings, accelerator, "distil")
        self._source = source
        self._origin = [model.identity for model in (source, teacher) if model is not None]
        self._train = train
        self._heldout = heldout
        self._per_pass = settings.batch_size * accelerator.num_processes
        self._order = Order(
            train, settings.sequence_length, self._per_pass * settings.gradient_accumulation, settings.epochs,
            settings.seed,
        )  # fmt: skip
        self.total = self._total()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(
            trained, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay
        )
        self._module, self._optimiser = accelerator.prepare(module, optimiser)
        self._module.train()
        self._sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        self._window = (0, 0.0)  # tokens and seconds when the last point of the curve was made

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad]

    @property
    def done(self) -> bool:
        """Whether all steps are made, or the time is up."""
        minutes = self._settings.minutes
        return self.step >= self.total or (minutes is not None and self.seconds >= 60 * minutes)

    def _total(self) -> int:
        """Steps of the run, as far as they are known at this one."""
        steps = self._order.expected(self.step)
        return min(steps, self._settings.max_steps or steps)

    def _advance(self) -> None:
        """One optimiser step."""
        settings, accelerator = self._settings, self._accelerator
        sequences = self._order[self.step]
        # Over all devices and passes, so that neither their number nor how rows fell on them changes the mean.
        tokens, counted = self._order.tokens(sequences)
        rate = settings.rate(self._progress())
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        for first in range(0, len(sequences), self._per_pass):
            start = first + accelerator.process_index * settings.batch_size
            batch = Batch.pack(self._train, sequences[start : start + settings.batch_size])
            last = first + self._per_pass == len(sequences)
            with nullcontext() if last else accelerator.no_sync(self._module):
                divergence, hidden = self._module(batch.to(accelerator.device))
                loss = divergence / counted + settings.hidden_weight * hidden / tokens
                accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged over them
            self._sums[:2] += torch.stack([divergence, hidden]).detach().double()
        accelerator.clip_grad_norm_(self._trained, settings.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._sums[2] += counted / accelerator.num_processes
        self._sums[3] += tokens / accelerator.num_processes
        self.tokens += tokens
        self.step += 1
        self.total = self._total()

    def _progress(self) -> float:
        """The share of the run that is done in the middle of the next step."""
        minutes = self._settings.minutes
        by_time = self.seconds / (60 * minutes) if minutes else 0.0
        return min(1.0, max((self.step + 0.5) / self.total, by_time))

    def _log(self) -> dict[str, str]:
        """Adds a point to the curve: means since the last one."""
        sums = self._accelerator.reduce(self._sums, "sum").tolist()
        self._sums.zero_()
        divergence, hidden = sums[0] / sums[2], sums[1] / sums[3]
        loss = divergence + self._settings.hidden_weight * hidden
        if not math.isfinite(loss):
            msg = f"the loss is {loss} at step {self.step}; try a lower --learning-rate"
            raise SwiftKVError(msg)
        speed = (self.tokens - self._window[0]) / max(self.seconds - self._window[1], 1e-9)
        self._window = (self.tokens, self.seconds)
        rate = self._optimiser.param_groups[0]["lr"]
        point = {
            "step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 2), "loss": loss,
            "kl": divergence, "hidden": hidden, "learning_rate": rate,
        }  # fmt: skip
        self.curve.append(point)
        return {
            "loss": f"{loss:.4f}", "kl": f"{divergence:.4f}", "hidden": f"{hidden:.4f}", "lr": f"{rate:.1e}",
            "tok/s": f"{speed:,.0f}",
        }  # fmt: skip

    def _measure(self) -> None:
        if self._heldout is None:
            return
        accelerator, settings = self._accelerator, self._settings
        sums = distance_sums(
            self._module, self._heldout, settings.sequence_length, settings.batch_size, accelerator.device,
            part=accelerator.process_index, parts=accelerator.num_processes,
        )  # fmt: skip
        found = Distance.of(accelerator.reduce(sums, "sum"))
        self.measured.append({"step": self.step, **found.to_dict()})
        if accelerator.is_main_process:
            tqdm.write(
                f"step {self.step}: held-out perplexity {found.swiftkv_perplexity:.4f}, the base's "
                f"{found.base_perplexity:.4f} ({found.ratio - 1:+.2%}); same next token {found.equal_next_token:.1%}",
                file=sys.stderr,
            )

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Trained parameters and the optimiser's state, whole, on the CPU of the main process."""
        options = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        inner = getattr(self._optimiser, "optimizer", self._optimiser)
        model, optimiser = sharded.get_state_dict(self._module, inner, options=options)
        # the state is of all the module's tied names, and the parameters of the trained ones alone
        return {name: value for name, value in model.items() if "_swiftkv." in name}, optimiser

    def save(self) -> None:
        """Writes what `restore` needs, so that there is always a whole one."""
        model, optimiser = self._state()
        parts = {"model": model, "optimiser": optimiser, "origin": self._origin}
        self._write(self._settings.work / STATE, self._train.fingerprint, parts)

    def restore(self) -> None:
        """Goes back to where `save` was called.

        Raises:
            SwiftKVError: nothing was saved, or by a run that is not this one.
        """
        path = self._settings.work / STATE
        if not path.is_file():
            raise SwiftKVError(f"there is nothing to resume in {self._settings.work}")
        rows = f"the rows of {self._settings.data}"
        found = self._read(path, self._train.fingerprint, rows, SwiftKVError)
        if found.get("origin", self._origin) != self._origin:  # earlier versions kept none
            msg = "is not the model that the run was begun with; remove what it left or put that model back"
            raise SwiftKVError(f"{self._settings.model} (or its --teacher) {msg}")
        options = sharded.StateDictOptions(full_state_dict=True, strict=False)
        inner = getattr(self._optimiser, "optimizer", self._optimiser)
        sharded.set_state_dict(
            self._module, inner, model_state_dict=found["model"], optim_state_dict=found["optimiser"],
            options=options,
        )  # fmt: skip
        self._window = (self.tokens, self.seconds)
        self.total = self._total()

    def finish(self) -> Path:
        """Writes the trained folder, and removes what was kept to go on.

        Raises:
            Interrupted: a signal came. The folder is not there, and a resumed run writes it.
            SwiftKVError: the folder cannot be written. A resumed run does it again.
        """
        model, _ = self._state()
        if self._accelerator.is_main_process:
            with Signals(lambda signum: Interrupted(signum, self.step)):
                self._write_folder(model)
            shutil.rmtree(self._settings.work, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        return Path(self._settings.out)

    def _write_folder(self, model: dict[str, Any]) -> None:
        settings = self._settings
        report = json.dumps(self.report(), indent=1) + "\n"
        try:
            checkpoint.write(
                self._source, tensors_of(model, self._source), Path(settings.out), link=settings.link,
                files={checkpoint.REPORT: report},
            )  # fmt: skip
        except OSError as error:
            kept = (settings.work / STATE).is_file()
            way = "the same command with --resume goes on" if kept else "nothing of the run could be saved"
            raise SwiftKVError(f"{settings.out} could not be written: {error}; {way}") from error

    def report(self) -> dict[str, Any]:
        """What `distillation.json` says."""
        device = self._accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "settings": self._settings.to_dict(), "steps": self.step, "tokens": self.tokens,
            "seconds": round(self.seconds, 1), "device": name, "processes": self._accelerator.num_processes,
            "parallel": self._accelerator.distributed_type.value, "torch": torch.__version__,
            "rows": str(self._train.report), "curve": self.curve, "heldout": self.measured,
        }  # fmt: skip
