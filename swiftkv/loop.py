"""The steps of a training run, whatever it trains: progress, signals, and when to log, measure and save."""

import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from swiftkv.errors import SwiftKVError

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
    """While open, SIGINT and SIGTERM are noted; the second SIGINT is a KeyboardInterrupt as ever.

    Args:
        at_once: makes what is raised where the signal finds the process; None: nothing, whoever wants to know asks.
    """

    def __init__(self, at_once: Callable[[int], Exception] | None = None) -> None:
        self.caught = 0
        self._at_once = at_once
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
        if self._at_once is not None:
            raise self._at_once(signum)


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
        seconds: that they took, without measuring and saving.
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
        self._began = 0.0
        self.curve: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.step >= self.total

    def run(self, show: Callable[..., Any] = tqdm) -> None:
        """Trains to the end, and saves there: whatever comes after it can be done again.

        Raises:
            Interrupted: a signal came; the state is saved.
            SwiftKVError: the weights are no numbers; they are not saved.
            Exception: the loss is no number; which class says so is the subclass's business.
        """
        every = self._settings.save_every
        bar = show(
            total=self.total, initial=self.step, desc=self._name, unit="step", dynamic_ncols=True,
            disable=not self._accelerator.is_main_process,
        )  # fmt: skip
        self._began = time.monotonic() - self.seconds
        with Signals() as signals, bar:
            self._measure_if_due(signals)
            while not self.done:
                self._advance()
                bar.update()
                signum, self.seconds = agree(
                    self._accelerator, signals.caught, time.monotonic() - self._began
                )
                if self.step % LOG_EVERY == 0 or self.done:
                    bar.set_postfix(self._log(), refresh=False)
                # Before a measurement, which may take longer than whoever sent the signal waits.
                if signum or (every and self.step % every == 0 and not self.done):
                    self._apart(self.save)
                if signum:
                    raise Interrupted(signum, self.step)
                if self.done:
                    self._apart(self._save_the_end)
                self._measure_if_due(signals)

    def _measure_if_due(self, signals: Signals) -> None:
        """Measures at the start, at the end and every so many steps; not twice where a run is resumed there."""
        every, step = self._settings.evaluate_every, self.step
        due = step == 0 or self.done or (every and step % every == 0)
        if not due or (self.measured and self.measured[-1]["step"] == step):
            return
        self._apart(self._measure)
        signum, _ = agree(self._accelerator, signals.caught, 0.0)
        if signum and step:  # before the first step there is nothing to save
            self._apart(self.save)
            raise Interrupted(signum, step)

    def _save_the_end(self) -> None:
        """Saves, if there is room: the result may need less."""
        try:
            self.save()
        except (OSError, RuntimeError) as error:  # torch raises both of a full disk
            tqdm.write(f"the state after the last step could not be saved: {error}", file=sys.stderr)

    def _apart(self, work: Callable[[], None]) -> None:
        """Does what is no training: the clock stands still meanwhile."""
        began = self._now()
        work()
        self._began += self._now() - began

    def _now(self) -> float:
        """The time when all steps so far are done: a GPU may be behind."""
        if self._accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def _write(self, path: Path, fingerprint: str, parts: dict[str, Any]) -> None:
        """Writes where the run is, so that there is always a whole file.

        Args:
            path: of the file.
            fingerprint: of what is trained on.
            parts: weights and the optimiser's state.

        Raises:
            SwiftKVError: they are no numbers; an earlier file stays.
        """
        bad = not all(bool(tensor.isfinite().all()) for tensor in _tensors(parts))
        if agree(self._accelerator, int(bad), 0.0)[0]:
            msg = f"the weights are no numbers after step {self.step}; try a lower --learning-rate"
            raise SwiftKVError(msg)
        try:
            self._write_file(path, fingerprint, parts)
        finally:
            self._accelerator.wait_for_everyone()

    def _write_file(self, path: Path, fingerprint: str, parts: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            content = {
                "settings": self._settings.to_dict(), "processes": self._accelerator.num_processes,
                "fingerprint": fingerprint, **{name: getattr(self, name) for name in _PROGRESS},
                "sums": self._sums.cpu(), **parts,
            }  # fmt: skip
            partial = path.with_name(f".{path.name}")
            try:
                torch.save(content, partial)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            partial.replace(path)

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


def _tensors(parts: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dictionaries and lists."""
    if isinstance(parts, torch.Tensor):
        yield parts
    elif isinstance(parts, dict | list):
        for part in parts.values() if isinstance(parts, dict) else parts:
            yield from _tensors(part)
