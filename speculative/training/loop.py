"""The training loop: steps, savings, what is logged, and the end."""

import json
import math
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from speculative.speculators import save
from speculative.training.acceptance import Acceptance, sums
from speculative.training.errors import TrainingError
from speculative.training.objective import Objective
from speculative.training.settings import Settings
from speculative.training.states import Source, tokens_of
from swiftkv.data import Order, Table
from swiftkv.loop import Loop

STATE = "state.pt"
REPORT = "training.json"


class Trainer(Loop):
    """One run.

    Args:
        settings: of the run.
        accelerator: the devices.
        objective: the head and its loss.
        train: the rows to learn from, and where their states come from.
        heldout: the rows to measure on, and where theirs come from.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        objective: Objective,
        train: tuple[Table, Source],
        heldout: tuple[Table, Source],
    ) -> None:
        super().__init__(settings, accelerator, "train")
        self._speculator = objective.speculator
        self._table, self._source = train
        self._heldout = heldout
        self._per_pass = settings.batch_size * accelerator.num_processes
        self._order = Order(
            self._table, settings.sequence_length, self._per_pass * settings.gradient_accumulation,
            settings.epochs, settings.seed,
        )  # fmt: skip
        self.total = min(len(self._order), settings.max_steps or len(self._order))
        optimiser = torch.optim.AdamW(_groups(objective, settings.weight_decay), lr=settings.learning_rate)
        self._module, self._optimiser = accelerator.prepare(objective, optimiser)
        # of each draft step: cross-entropies, right ones, and how many there were
        self._sums = torch.zeros(3, self._steps, dtype=torch.float64, device=accelerator.device)

    @property
    def _steps(self) -> int:
        return self._speculator.config.n_predict

    def _advance(self) -> None:
        """One optimiser step."""
        settings, accelerator = self._settings, self._accelerator
        sequences = self._order[self.step]
        # Over all devices and passes, so that neither their number nor how rows fell on them changes the mean.
        counted = self._counted(sequences)
        rate = settings.rate((self.step + 0.5) / self.total)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._module.train()
        for first in range(0, len(sequences), self._per_pass):
            start = first + accelerator.process_index * settings.batch_size
            mine = sequences[start : start + settings.batch_size]
            states = self._source(mine)
            tokens, left = (tensor.to(states.device) for tensor in tokens_of(self._table, mine))
            last = first + self._per_pass == len(sequences)
            with nullcontext() if last else accelerator.no_sync(self._module):
                losses, right = self._module(states, tokens, left)
                loss = (losses / counted.to(losses)).sum()
                accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged over them
            self._sums[:2] += torch.stack([losses, right]).detach().double()
        accelerator.clip_grad_norm_(self._module.parameters(), settings.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._sums[2] += counted.to(self._sums) / accelerator.num_processes
        self.tokens += int(self._table.counts[np.concatenate(sequences)].sum())
        self.step += 1

    def _counted(self, sequences: list[np.ndarray]) -> Tensor:
        """How many tokens each draft step has to say, float64 `[n_predict]`, 1 at least."""
        sizes = self._table.counts[np.concatenate(sequences)]
        counts = [max(1, int((sizes - 1 - index).clip(0).sum())) for index in range(self._steps)]
        return torch.tensor(counts, dtype=torch.float64)

    def _log(self) -> dict[str, str]:
        """Adds a point to the curve: means since the last one."""
        losses, right, counted = self._accelerator.reduce(self._sums, "sum").tolist()
        self._sums.zero_()
        means = [loss / count for loss, count in zip(losses, counted, strict=True)]
        if not math.isfinite(sum(means)):
            msg = f"the loss is {sum(means)} at step {self.step}; try a lower --learning-rate"
            raise TrainingError(msg)
        accuracy = [hits / count for hits, count in zip(right, counted, strict=True)]
        point = {
            "step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 2),
            "losses": [round(mean, 5) for mean in means], "accuracy": [round(share, 5) for share in accuracy],
            "learning_rate": self._optimiser.param_groups[0]["lr"],
        }  # fmt: skip
        self.curve.append(point)
        return {"loss": f"{sum(means):.3f}", "right": " ".join(f"{share:.3f}" for share in accuracy)}

    def _measure(self) -> None:
        """Drafts along the held-out responses."""
        accelerator = self._accelerator
        table, source = self._heldout
        found = sums(
            self._speculator, source, table, self._settings.sequence_length, self._settings.batch_size,
            part=accelerator.process_index, parts=accelerator.num_processes,
        )  # fmt: skip
        found = Acceptance.of(accelerator.reduce(found.to(accelerator.device), "sum"))
        self.measured.append({"step": self.step, **found.to_dict()})
        if accelerator.is_main_process:
            shares = " ".join(f"{share:.1%}" for share in found.accepted)
            tqdm.write(
                f"step {self.step}: {found.length:.3f} tokens per verify step on held-out generations; "
                f"first 1, 2, ... drafted tokens right: {shares}",
                file=sys.stderr,
            )

    def save(self) -> None:
        """Writes what `restore` needs, so that there is always a whole one."""
        parts = {"speculator": self._speculator.state_dict(), "optimiser": self._optimiser.state_dict()}
        self._write(self._settings.work / STATE, self._table.fingerprint, parts)

    def restore(self) -> None:
        """Goes back to where `save` was called.

        Raises:
            SwiftKVError, TrainingError: what was saved is of another run.
        """
        found = self._read(
            self._settings.work / STATE, self._table.fingerprint, "the generations", TrainingError
        )
        self._speculator.load_state_dict(found["speculator"])
        self._optimiser.load_state_dict(found["optimiser"])

    def finish(self) -> Path:
        """Writes the head's folder in Snowflake's format, with a report and how it did on held-out generations."""
        output = Path(self._settings.output)
        if self._accelerator.is_main_process:
            partial = output.with_name(f".{output.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            save(self._speculator, partial, torch.bfloat16)
            for name, content in ((REPORT, self.report()), ("evaluation.json", self.measured[-1])):
                (partial / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if output.is_dir():
                output.rmdir()
            partial.rename(output)
        self._accelerator.wait_for_everyone()
        return output

    def report(self) -> dict[str, Any]:
        """What `training.json` says."""
        device = self._accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "settings": self._settings.to_dict(), "steps": self.step, "tokens": self.tokens,
            "seconds": round(self.seconds, 1), "device": name, "processes": self._accelerator.num_processes,
            "torch": torch.__version__, "rows": str(self._table.report), "curve": self.curve,
            "heldout": self.measured,
        }  # fmt: skip


def _groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay towards zero; norms, which begin at one, do not."""
    matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
