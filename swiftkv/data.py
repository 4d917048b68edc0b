"""Tokens on disk, the order in which they are seen, and batches of packed rows.

Rows are tokenised once into flat files that are mapped, not loaded, so a million of them cost no memory. The
order of an epoch is a function of seed and epoch alone, so any step of a run can be made without those before
it: that is all a resumed run needs.
"""

import hashlib
import json
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiftkv.encoding import Encoded, Encoder, Rows
from swiftkv.errors import SwiftKVError

OPEN_SEQUENCES = 16
_ALIGN = 64  # sequences are padded to a multiple of this, for the GPU's sake
_NOTE = "table.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the rows.

    Attributes:
        rows: read.
        used: that give something to learn from.
        empty: without text.
        cut: longer than the sequence length, and shortened to it.
        unused: without a token that counts (after the cut).
    """

    rows: int = 0
    used: int = 0
    empty: int = 0
    cut: int = 0
    unused: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rows:,} rows", f"{self.used:,} used"]
        for name in ("empty", "cut", "unused"):
            if getattr(self, name):
                parts.append(f"{getattr(self, name):,} {name}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Table:
    """Tokenised rows in a folder.

    Attributes:
        folder: where they are.
        report: what became of the rows.
        fingerprint: says which files, tokenizer, column and sequence length they were made from.
    """

    folder: Path
    report: Report
    fingerprint: str

    @cached_property
    def ids(self) -> np.ndarray:
        """All token ids end to end, int32, mapped."""
        return np.memmap(self.folder / "ids.bin", np.int32, "r")

    @cached_property
    def counted(self) -> np.ndarray:
        """Which of the tokens count, bool, mapped; a row's first never does, for nothing predicts it."""
        return np.memmap(self.folder / "counted.bin", np.bool_, "r")

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each row starts, int64, and after them where the last one ends."""
        return np.load(self.folder / "starts.npy")

    @cached_property
    def counts(self) -> np.ndarray:
        """Tokens of each row that count, int64."""
        return np.load(self.folder / "counts.npy")

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64."""
        return np.diff(self.starts)

    @classmethod
    def make(
        cls,
        rows: Rows,
        tokenizer: Any,
        sequence_length: int,
        folder: Path,
        *,
        progress: Callable[..., Any] = iter,
    ) -> "Table":
        """Tokenises rows into `folder`, or opens it if it holds these rows already.

        Args:
            rows: the table.
            tokenizer: a transformers tokenizer.
            sequence_length: rows are cut to this many tokens.
            folder: for the files; replaced if it holds something else.
            progress: wraps an iterator to show how far it is.

        Raises:
            SwiftKVError: no row is left, or one cannot be read.
        """
        return cls.keep(
            lambda: progress(Encoder(tokenizer).encode(rows)), sequence_length, folder,
            name=str(rows.files[0]), fingerprint=_fingerprint(rows, tokenizer, sequence_length),
        )  # fmt: skip

    @classmethod
    def keep(
        cls,
        encoded: Callable[[], Iterable[list[Encoded] | None]],
        sequence_length: int,
        folder: Path,
        *,
        name: str,
        fingerprint: str,
    ) -> "Table":
        """Writes tokenised rows into `folder`, or opens it if it holds these rows already.

        Args:
            encoded: gives what each row gives, None for an empty one; asked only if there is something to write.
            sequence_length: rows are cut to this many tokens.
            folder: for the files; replaced if it holds something else.
            name: of the rows, for the error.
            fingerprint: changes when the rows do.

        Raises:
            SwiftKVError: no row is left, or one cannot be read.
        """
        note = folder / _NOTE
        if note.is_file():
            known = json.loads(note.read_text(encoding="utf-8"))
            if known["fingerprint"] == fingerprint:
                return cls(folder, Report(**known["report"]), fingerprint)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            report = _write(encoded(), sequence_length, partial)
            if not report.used:
                raise SwiftKVError(f"{name}: no row has a token to learn from ({report})")
            content = {"fingerprint": fingerprint, "report": _fields(report)}
            (partial / _NOTE).write_text(json.dumps(content, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return cls(folder, report, fingerprint)


def _fields(report: Report) -> dict[str, int]:
    return {name: getattr(report, name) for name in Report.__slots__}


def _write(encoded: Iterable[list[Encoded] | None], sequence_length: int, folder: Path) -> Report:
    total = dict.fromkeys(Report.__slots__, 0)
    lengths, counts = [], []
    with (folder / "ids.bin").open("wb") as ids_file, (folder / "counted.bin").open("wb") as counted_file:
        for row in encoded:
            total["rows"] += 1
            total["empty"] += row is None
            used = 0
            for part in row or ():
                ids, counted = part.ids[:sequence_length], part.counted[:sequence_length].copy()
                total["cut"] += len(ids) < len(part.ids)
                counted[:1] = False
                if counted.any():
                    ids_file.write(ids.astype(np.int32).tobytes())
                    counted_file.write(counted.tobytes())
                    lengths.append(len(ids))
                    counts.append(int(counted.sum()))
                    used += 1
            total["used"] += used > 0
            total["unused"] += row is not None and not used
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))
    np.save(folder / "counts.npy", np.asarray(counts, np.int64))
    return Report(**total)


def _fingerprint(rows: Rows, tokenizer: Any, sequence_length: int) -> str:
    files = [[path.name, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in rows.files]
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    parts = [
        files,
        rows.kind,
        rows.columns,
        rows.limit,
        sequence_length,
        vocabulary,
        getattr(tokenizer, "chat_template", None),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the rows, packed into sequences.

    Attributes:
        rows: row numbers, sequence after sequence, int64.
        starts: where each sequence starts in `rows`, and after them its end, int64.
    """

    rows: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, sequence: int) -> np.ndarray:
        return self.rows[self.starts[sequence] : self.starts[sequence + 1]]

    @classmethod
    def make(cls, lengths: np.ndarray, sequence_length: int, seed: int, epoch: int) -> "Epoch":
        """Shuffles the rows and packs each into the first of a few open sequences that has room.

        Args:
            lengths: tokens of each row, none above `sequence_length`.
            sequence_length: tokens of a sequence at most.
            seed: of the shuffle, with `epoch`.
            epoch: which pass it is.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        sequences: list[list[int]] = []
        open_rows: list[list[int]] = []
        room: list[int] = []
        for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
            slot = next((slot for slot, free in enumerate(room) if length <= free), None)
            if slot is None:
                if len(open_rows) == OPEN_SEQUENCES:
                    fullest = room.index(min(room))
                    sequences.append(open_rows.pop(fullest))
                    room.pop(fullest)
                open_rows.append([])
                room.append(sequence_length)
                slot = len(room) - 1
            open_rows[slot].append(row)
            room[slot] -= length
        sequences += open_rows
        sizes = [len(sequence) for sequence in sequences]
        return cls(
            np.asarray([row for sequence in sequences for row in sequence], np.int64),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences, each tensor of shape [sequences, tokens].

    Attributes:
        ids: token ids, int64; 0 in the padding.
        positions: int64; they start anew with each row, and with the padding.
        predicts: bool; whether the next token is of the same row and counts.
        real: bool; False in the padding.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predicts: torch.Tensor
    real: torch.Tensor

    @classmethod
    def pack(cls, table: Table, sequences: Iterable[np.ndarray]) -> "Batch":
        """Lays rows side by side.

        Args:
            table: the rows.
            sequences: the row numbers of each sequence.
        """
        sequences = list(sequences)
        lengths = table.lengths
        width = max(int(lengths[rows].sum()) for rows in sequences)
        shape = (len(sequences), -(-width // _ALIGN) * _ALIGN)
        ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        predicts, real = np.zeros(shape, bool), np.zeros(shape, bool)
        for line, rows in enumerate(sequences):
            at = 0
            for row in rows:
                start, size = int(table.starts[row]), int(lengths[row])
                ids[line, at : at + size] = table.ids[start : start + size]
                positions[line, at : at + size] = np.arange(size)
                predicts[line, at : at + size - 1] = table.counted[start + 1 : start + size]
                real[line, at : at + size] = True
                at += size
            positions[line, at:] = np.arange(shape[1] - at)
        return cls(*map(torch.from_numpy, (ids, positions, predicts, real)))

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        tensors = (self.ids, self.positions, self.predicts, self.real)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


class Order:
    """Which sequences a step sees, for any step.

    An epoch's last step is filled up with the epoch's first sequences. Epochs are packed when they are needed: there
    may be many more of them than steps.

    Args:
        table: the rows.
        sequence_length: tokens of a sequence at most.
        per_step: sequences of one optimiser step, over all devices.
        epochs: passes over the rows.
        seed: of the shuffles.
    """

    def __init__(self, table: Table, sequence_length: int, per_step: int, epochs: int, seed: int) -> None:
        self._table = table
        self._sequence_length = sequence_length
        self._per_step = per_step
        self._epochs = epochs
        self._seed = seed
        self._ends: list[int] = []  # of each epoch that was packed so far, in steps
        self._epoch = (0, self._pack(0))

    def __len__(self) -> int:
        """Steps of all epochs; packs them all."""
        while len(self._ends) < self._epochs:
            self._pack(len(self._ends))
        return self._ends[-1]

    def __getitem__(self, step: int) -> list[np.ndarray]:
        """The row numbers of each sequence of a step."""
        if not 0 <= step < self.expected(step):
            raise IndexError(f"step {step} of {self.expected(step)}")
        number = bisect_right(self._ends, step)
        if self._epoch[0] != number:
            self._epoch = (number, self._make(number))
        epoch = self._epoch[1]
        first = (step - (self._ends[number - 1] if number else 0)) * self._per_step
        return [epoch[index % len(epoch)] for index in range(first, first + self._per_step)]

    def expected(self, step: int) -> int:
        """Steps of all epochs, if those after a step's epoch are as long as the first. Exact in the last epoch.

        Args:
            step: from 0; the same for the same step, whatever was asked before.
        """
        while self._ends[-1] <= step and len(self._ends) < self._epochs:
            self._epoch = (len(self._ends), self._pack(len(self._ends)))
        known = min(bisect_right(self._ends, step), self._epochs - 1)
        return self._ends[known] + (self._epochs - known - 1) * self._ends[0]

    def tokens(self, sequences: Iterable[np.ndarray]) -> tuple[int, int]:
        """Tokens in some sequences: all, and those that count."""
        rows = np.concatenate(list(sequences))
        return int(self._table.lengths[rows].sum()), int(self._table.counts[rows].sum())

    def _pack(self, epoch: int) -> Epoch:
        """Packs the first epoch that was not, and notes where it ends."""
        packed = self._make(epoch)
        self._ends.append((self._ends[-1] if self._ends else 0) - (-len(packed) // self._per_step))
        return packed

    def _make(self, epoch: int) -> Epoch:
        return Epoch.make(self._table.lengths, self._sequence_length, self._seed, epoch)


def in_batches(table: Table, sequence_length: int, size: int) -> Iterator[Batch]:
    """All rows once, in batches of up to `size` sequences; the same every time."""
    epoch = Epoch.make(table.lengths, sequence_length, 0, 0)
    for first in range(0, len(epoch), size):
        yield Batch.pack(table, [epoch[i] for i in range(first, min(first + size, len(epoch)))])
