"""The steps of a training run, whatever it trains: progress, signals, and when to log, measure and save."""

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

LOG_EVERY = 10
_PROGRESS = ("step", "tokens", "seconds", "curve", "measured")


class Interrupted(Exception):
    """A signal ended the run; what it needs to go on is saved.

    Args:
        signum: the signal.
        step: steps that are done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(signum, step)
        self.signum = signum
        self.step = step


class Signals:
    """While open, SIGINT and SIGTERM are noted; the second SIGINT is a KeyboardInterrupt as ever."""

    def __init__(self) -> None:
        self.caught = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.caught and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = signum


def agree(accelerator: Accelerator, signum: int, seconds: float) -> tuple[int, float]:
    """What all processes hold for true: whether to stop, and how long it has taken."""
    if accelerator.num_processes == 1:
        return signum, seconds
    both = torch.tensor([signum, seconds], dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    return int(both[0]), float(both[1])


class Loop(ABC):
    """A run, from the step where it is to its end. What a step is, is its subclasses' business.

    Args:
        settings: of the run; `evaluate_every` and `save_every` are read, in steps, 0 for never.
        accelerator: the devices.
        name: of the progress bar.

    Attributes:
        step: steps that are done.
        total: steps of the run.
        seconds: that they took.
        tokens: that were trained on.
        curve: a point every so many steps.
        measured: what held-out rows said.
    """

    total: int
    _sums: torch.Tensor  # of this process, since the last point of the curve

    def __init__(self, settings: Any, accelerator: Accelerator, name: str) -> None:
        self._settings = settings
        self._accelerator = accelerator
        self._name = name
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.curve: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.step >= self.total

    def run(self, show: Callable[..., Any] = tqdm) -> None:
        """Trains to the end.

        Raises:
            Interrupted: a signal came; the state is saved.
            Exception: the loss is no number; which class says so is the subclass's business.
        """
        settings = self._settings
        began = time.monotonic() - self.seconds
        bar = show(
            total=self.total, initial=self.step, desc=self._name, unit="step", dynamic_ncols=True,
            disable=not self._accelerator.is_main_process,
        )  # fmt: skip
        with Signals() as signals, bar:
            if self.step == 0:
                self._measure()
            while not self.done:
                self._advance()
                bar.update()
                signum, self.seconds = agree(self._accelerator, signals.caught, time.monotonic() - began)
                if self.step % LOG_EVERY == 0 or self.done:
                    bar.set_postfix(self._log(), refresh=False)
                if self.done or (settings.evaluate_every and self.step % settings.evaluate_every == 0):
                    self._measure()
                if signum and not self.done:
                    self.save()
                    raise Interrupted(signum, self.step)
                if settings.save_every and self.step % settings.save_every == 0 and not self.done:
                    self.save()

    def _write(self, path: Path, fingerprint: str, parts: dict[str, Any]) -> None:
        """Writes where the run is, so that there is always a whole file.

        Args:
            path: of the file.
            fingerprint: of what is trained on.
            parts: weights and the optimiser's state.
        """
        if self._accelerator.is_main_process:
            content = {
                "settings": self._settings.to_dict(), "processes": self._accelerator.num_processes,
                "fingerprint": fingerprint, **{name: getattr(self, name) for name in _PROGRESS},
                "sums": self._sums.cpu(), **parts,
            }  # fmt: skip
            partial = path.with_name(f".{path.name}")
            torch.save(content, partial)
            partial.replace(path)
        self._accelerator.wait_for_everyone()

    def _read(self, path: Path, fingerprint: str, rows: str, refused: type[Exception]) -> dict[str, Any]:
        """Goes to where `_write` was called; what it wrote, the parts among it.

        Args:
            path: of the file.
            fingerprint: of what is trained on.
            rows: what that is called.
            refused: raised if what was written is of another run.
        """
        found = torch.load(path, map_location="cpu", weights_only=True)
        self._settings.check_same(found["settings"])
        if found["processes"] != self._accelerator.num_processes:
            msg = f"the run was begun with {found['processes']} processes and is resumed with"
            raise refused(f"{msg} {self._accelerator.num_processes}")
        if found["fingerprint"] != fingerprint:
            raise refused(f"{rows} are not those that the run was begun with")
        for name in _PROGRESS:
            setattr(self, name, found[name])
        if self._accelerator.is_main_process:
            self._sums.copy_(found["sums"])
        return found

    @abstractmethod
    def save(self) -> None:
        """Writes what is needed to go on from here."""

    @abstractmethod
    def _advance(self) -> None:
        """One optimiser step; adds 1 to `step`."""

    @abstractmethod
    def _log(self) -> dict[str, str]:
        """Adds a point to the curve; what the progress bar says."""

    @abstractmethod
    def _measure(self) -> None:
        """Measures on held-out rows."""
