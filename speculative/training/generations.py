"""What a model wrote: prompts continued by the model itself, in Parquet files of token ids.

A draft head learns to say what its model says, so its training text is the model's own. Each part is written whole
or not at all and drawn from a seed of its own, so that a run that was stopped goes on to the same generations.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn import functional

from speculative.training.errors import TrainingError
from swiftkv.encoding import Encoded

Int32 = NDArray[np.int32]
COLUMNS = ("prompt_ids", "response_ids")
PART_PROMPTS = 1024
_NOTE = "generations.json"
_SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How prompts are continued.

    Attributes:
        temperatures: each prompt is continued once at each of these; 0 is greedy.
        top_k: a token is drawn from the so many likeliest.
        max_new_tokens: of a continuation at most.
        ignore_eos: go on after the end token.
        seed: of the draws, with the number of the part.
    """

    temperatures: tuple[float, ...]
    top_k: int
    max_new_tokens: int
    ignore_eos: bool
    seed: int


@torch.inference_mode()
def continue_prompts(model: Any, prompts: Sequence[Int32], sampling: Sampling) -> list[list[Int32]]:
    """One batch of prompts, each continued once at each temperature.

    A prompt is read once, whatever the number of its continuations, and rows that have ended leave the batch when
    half of it has: both matter where prompts are long and answers short.

    Args:
        model: a causal language model of transformers, with a cache of keys and values.
        prompts: token ids of each.
        sampling: how.

    Returns:
        For each prompt its continuations, int32, up to and with the end token, in the order of the temperatures.
    """
    count, device = len(sampling.temperatures), model.device
    ids, mask = (tensor.to(device) for tensor in _left_padded(prompts))
    position = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(count)
    logits, mask, position = (
        tensor.repeat_interleave(count, 0) for tensor in (out.logits[:, -1], mask, position[:, -1:])
    )
    temperatures = torch.tensor(sampling.temperatures, device=device).repeat(len(prompts))
    ends = torch.tensor([] if sampling.ignore_eos else end_tokens(model), dtype=torch.long, device=device)
    written = torch.zeros(len(mask), sampling.max_new_tokens, dtype=torch.long, device=device)
    rows = torch.arange(len(mask), device=device)  # those in the batch
    going = torch.ones_like(rows, dtype=torch.bool)  # which of them have not ended
    for step in range(sampling.max_new_tokens):
        tokens = choose(logits, temperatures[rows], sampling.top_k)
        written[rows, step] = tokens
        going &= ~torch.isin(tokens, ends)
        left = int(going.sum())
        if not left or step + 1 == sampling.max_new_tokens:
            break
        if left <= len(rows) / 2:
            kept = going.nonzero().flatten()
            cache.batch_select_indices(kept)
            rows, going, tokens, mask, position = (t[kept] for t in (rows, going, tokens, mask, position))
        mask, position = functional.pad(mask, (0, 1), value=1), position + 1
        logits = model(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=position, past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]  # fmt: skip
    found = [_until(line, ends.tolist()) for line in written.cpu().numpy().astype(np.int32)]
    return [found[first : first + count] for first in range(0, len(found), count)]


def choose(logits: torch.Tensor, temperatures: torch.Tensor, top_k: int) -> torch.Tensor:
    """The next token of each row, int64 of shape [rows].

    Args:
        logits: of shape [rows, vocabulary].
        temperatures: float32 of shape [rows]; 0 takes the likeliest.
        top_k: draw from the so many likeliest.
    """
    best, ids = logits.float().topk(min(top_k, logits.shape[1]))
    chances = (best / temperatures.clamp(min=1e-6)[:, None]).softmax(1)
    drawn = torch.multinomial(chances, 1)
    return ids.gather(1, torch.where(temperatures[:, None] > 0, drawn, 0)).flatten()


def _left_padded(prompts: Sequence[Int32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 of shape [prompts, longest]; all prompts end in the last column."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[line, width - len(prompt) :] = 1
    return ids, mask


def end_tokens(model: Any) -> list[int]:
    """The tokens that end the model's answers; none if its configuration names none."""
    ends = model.generation_config.eos_token_id
    ends = model.config.eos_token_id if ends is None else ends
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def _until(ids: Int32, ends: list[int]) -> Int32:
    found = np.flatnonzero(np.isin(ids, ends))
    return ids[: found[0] + 1] if len(found) else ids


def generate(
    model: Any,
    prompts: Iterator[Int32],
    sampling: Sampling,
    folder: Path,
    *,
    batch_size: int,
    about: dict[str, Any],
    part: int = 0,
    parts: int = 1,
    stop: Callable[[], bool] = lambda: False,
    show: Callable[[int], Any] = lambda done: None,
) -> bool:
    """Continues prompts into `folder`, a Parquet file for each `PART_PROMPTS` of them; those that exist stay.

    Args:
        model: a causal language model of transformers.
        prompts: token ids of each, the same in the same order every time.
        sampling: how.
        folder: for the files.
        batch_size: prompts at a time.
        about: which model and prompts these are, as JSON has it, to tell another run's folder.
        part: of the files, this process writes those whose number leaves this remainder.
        parts: divided by this.
        stop: asked after each file whether to stop.
        show: told of prompts that are done.

    Returns:
        Whether all is done; False if `stop` said so.

    Raises:
        TrainingError: the folder holds generations of another model, of other prompts or sampling.
    """
    _claim(folder, {**about, **asdict(sampling), "temperatures": list(sampling.temperatures)})
    number = 0
    while some := list(islice(prompts, PART_PROMPTS)):
        path = folder / f"part-{number:05d}.parquet"
        if number % parts == part:
            if not path.is_file():
                torch.manual_seed(sampling.seed * 1_000_003 + number)
                _write(path, _continue_part(model, some, sampling, batch_size))
            show(len(some))
            if stop():
                return False
        number += 1
    return True


def _continue_part(
    model: Any, prompts: list[Int32], sampling: Sampling, batch_size: int
) -> list[tuple[Int32, Int32]]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths: little padding
    answers: dict[int, list[Int32]] = {}
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        answers |= zip(some, continue_prompts(model, [prompts[i] for i in some], sampling), strict=True)
    return [(prompt, answer) for i, prompt in enumerate(prompts) for answer in answers[i]]


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Notes whose the folder is, or refuses it if it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _NOTE
    if note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if other := [
            f"{key} was {known.get(key)} and is {about[key]}" for key in about if known.get(key) != about[key]
        ]:
            msg = f"{folder} holds generations that were begun otherwise: {'; '.join(other)}"
            raise TrainingError(f"{msg}; remove it or name another folder")
    elif any(folder.glob("*.parquet")):
        msg = (
            f"{folder} holds Parquet files that were not generated here; to train on them leave --prompts out"
        )
        raise TrainingError(msg)
    else:
        partial = note.with_name(f".{_NOTE}.{os.getpid()}")
        partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        partial.replace(note)


def _write(path: Path, rows: list[tuple[Int32, Int32]]) -> None:
    partial = path.with_name(f".{path.name}")
    columns = [pa.array(column, pa.list_(pa.int32())) for column in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, schema=_SCHEMA), partial, compression="zstd")
    partial.replace(path)


def files_of(data: str | Path) -> list[Path]:
    """The Parquet files of a file or folder of generations, in order.

    Raises:
        TrainingError: there are none.
    """
    path = Path(data)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise TrainingError(f"--generations: no Parquet file at {data}; --prompts makes some")
    return files


def read(files: Sequence[Path]) -> Iterator[list[Encoded] | None]:
    """Yields each row, prompt and response together, of which the response counts; None for an empty response.

    Args:
        files: Parquet, with lists of integers `prompt_ids` and `response_ids`.

    Raises:
        TrainingError: a file is not that.
    """
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if missing := [name for name in COLUMNS if name not in names]:
                    raise TrainingError(
                        f"{path} has no {missing[0]} (it has {', '.join(names)}); wanted lists of token ids"
                    )
                for batch in file.iter_batches(columns=list(COLUMNS)):
                    yield from map(_row, *(batch.column(name).to_pylist() for name in COLUMNS))
        except (pa.ArrowException, TypeError) as error:
            raise TrainingError(f"{path}: {error}") from error


def split(files: Sequence[Path], every: int, *, heldout: bool) -> Iterator[list[Encoded] | None]:
    """Yields what `read` does, of the last of every so many prompts or of the others.

    All continuations of a prompt, which lie together, are on the same side.

    Args:
        files: as for `read`.
        every: prompts.
        heldout: of the last of them.
    """
    number, before = -1, None
    for row in read(files):
        if row is None:
            continue
        prompt = row[0].ids[~row[0].counted].tobytes()
        number += prompt != before
        before = prompt
        if (number % every == every - 1) == heldout:
            yield row


def _row(prompt: list[int] | None, response: list[int] | None) -> list[Encoded] | None:
    if not prompt or not response:
        return None
    ids = np.asarray([*prompt, *response], np.int32)
    return [Encoded(ids, np.arange(len(ids)) >= len(prompt))]
