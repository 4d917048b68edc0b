"""Read the encoded corpus and pack it into batches of one fixed shape."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

OPEN_ROWS = 12
PAD_EXAMPLE = 10_000
CODE, ANSWER = 1, 2


@dataclass(frozen=True)
class Examples:
    """Examples end to end: tokens, where each starts, and the lengths of its prompt and answer."""

    tokens: np.ndarray
    starts: np.ndarray
    prompts: np.ndarray
    answers: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Return the whole length of each example."""
        return self.prompts + self.answers


def from_lists(encoded: list[tuple[list[int], list[int]]]) -> Examples:
    """Return examples given as (prompt tokens, answer tokens)."""
    tokens = np.concatenate([np.asarray(p + a, dtype=np.int64) for p, a in encoded])
    prompts = np.asarray([len(p) for p, _ in encoded], dtype=np.int64)
    answers = np.asarray([len(a) for _, a in encoded], dtype=np.int64)
    lengths = prompts + answers
    return Examples(tokens, np.cumsum(lengths) - lengths, prompts, answers)


def read(path: Path) -> Examples:
    """Read a file that `tokenizer.py` wrote."""
    raw = lzma.open(path).read()
    count = int(np.frombuffer(raw, dtype=np.uint32, count=1)[0])
    table = np.frombuffer(raw, dtype=np.uint16, count=2 * count, offset=4).reshape(-1, 2).astype(np.int64)
    tokens = np.frombuffer(raw, dtype=np.uint16, offset=4 + 4 * count)
    lengths = table.sum(1)
    return Examples(tokens, np.cumsum(lengths) - lengths, table[:, 0], table[:, 1])


def join(first: Examples, second: Examples) -> Examples:
    """Return both sets of examples as one."""
    return Examples(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.starts, second.starts + len(first.tokens)]),
        np.concatenate([first.prompts, second.prompts]),
        np.concatenate([first.answers, second.answers]),
    )


def pack(order: np.ndarray, lengths: np.ndarray, length: int) -> list[list[int]]:
    """Put examples into rows of `length` tokens, first fit among a few open rows."""
    done: list[list[int]] = []
    rows: list[list[int]] = []
    room: list[int] = []
    for index, size in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if size > length:
            continue
        for slot, free in enumerate(room):
            if size <= free:
                rows[slot].append(index)
                room[slot] = free - size
                break
        else:
            if len(rows) == OPEN_ROWS:
                fullest = room.index(min(room))
                done.append(rows.pop(fullest))
                room.pop(fullest)
            rows.append([index])
            room.append(length - size)
    return done + rows


def batch_arrays(examples: Examples, rows: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """Return the tokens, positions, example numbers and kinds of some packed rows."""
    shape = (len(rows), length)
    ids = np.asarray([i for row in rows for i in row], dtype=np.int64)
    number = np.asarray([n for row in rows for n in range(len(row))], dtype=np.int64)
    sizes = examples.lengths[ids]
    base = np.empty(len(ids), dtype=np.int64)
    at = 0
    for line, row in enumerate(rows):
        part = sizes[at : at + len(row)]
        base[at : at + len(row)] = line * length + np.cumsum(part) - part
        at += len(row)
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    where = np.repeat(base, sizes) + offset
    out = {name: np.zeros(shape, dtype=np.int64) for name in ("tokens", "positions", "kinds")}
    out["examples"] = np.full(shape, PAD_EXAMPLE, dtype=np.int64)
    out["tokens"].reshape(-1)[where] = examples.tokens[np.repeat(examples.starts[ids], sizes) + offset]
    out["positions"].reshape(-1)[where] = offset
    out["kinds"].reshape(-1)[where] = np.where(offset < np.repeat(examples.prompts[ids], sizes), CODE, ANSWER)
    out["examples"].reshape(-1)[where] = np.repeat(number, sizes)
    return out


def to_device(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to the device without waiting for it."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def epoch(
    examples: Examples, use: np.ndarray, rows: int, length: int, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Yield one pass over the chosen examples in random order, in batches of exactly `rows` rows."""
    packed = pack(rng.permutation(use), examples.lengths, length)
    order = rng.permutation(len(packed))
    for start in range(0, len(packed) - rows + 1, rows):
        yield batch_arrays(examples, [packed[i] for i in order[start : start + rows]], length)
