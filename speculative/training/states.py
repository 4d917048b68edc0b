"""The frozen model's hidden states after the final norm: what its vocabulary head, and a draft head, reads.

A row is a prompt and the model's response of c tokens. It gives c states: that of the prompt's last token, whose
logits gave the first token of the response, and so on; state j goes with token j of the response.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import swiftkv.hf  # noqa: F401 - makes AutoModelForCausalLM know SwiftKV's models
from speculative.training.errors import TrainingError
from swiftkv.checkpoint import locate
from swiftkv.data import Batch, Epoch, Table

Rows = NDArray[np.int64]
_PROBE = 8  # tokens
_NOTE_EVERY = 50  # batches


class Source(Protocol):
    """Where hidden states come from."""

    def __call__(self, sequences: Sequence[Rows]) -> torch.Tensor:
        """The states of some rows, one after another: `[tokens, hidden]`.

        Args:
            sequences: row numbers; those of a sequence are run side by side.
        """
        ...


def load_model(model: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A causal language model of transformers, frozen.

    Args:
        model: a folder, or a name of the hub.
        dtype: of its weights.
        device: where they go.

    Raises:
        SwiftKVError: there is no such model.
        TrainingError: it is no such model, or its head does not read what its decoder gives.
    """
    folder = locate(model)
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{model} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    loaded = loaded.to(device).eval().requires_grad_(False)
    with torch.inference_mode():
        ids = torch.arange(_PROBE, device=device)[None]
        states = loaded.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        head = loaded.get_output_embeddings()
        if not torch.equal(head(states).argmax(-1), loaded(input_ids=ids, use_cache=False).logits.argmax(-1)):
            msg = f"{model}: the head of this {type(loaded).__name__} does not read what its decoder gives"
            raise TrainingError(f"{msg}; draft heads for such models cannot be trained")
    return loaded


class Run:
    """States made when they are asked for.

    Args:
        model: of `load_model`.
        table: the rows.
    """

    def __init__(self, model: Any, table: Table) -> None:
        self._model = model
        self._table = table

    @torch.no_grad()
    def __call__(self, sequences: Sequence[Rows]) -> torch.Tensor:
        """The states of some rows, `[tokens, hidden]` in the model's dtype."""
        batch = Batch.pack(self._table, sequences).to(self._model.device)
        # Without a mask, positions that start anew say where one row ends and the next begins.
        found = self._model.get_decoder()(input_ids=batch.ids, position_ids=batch.positions, use_cache=False)
        return found.last_hidden_state[batch.predicts]


class Kept:
    """States on disk, in the model's dtype, mapped; made once by `fill`.

    Args:
        path: the file; a note of how much of it is filled lies beside it.
        table: the rows.
        hidden: width of a state.
        dtype: of the file.
        device: where states are wanted.
    """

    def __init__(
        self, path: Path, table: Table, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._path = path
        self._table = table
        self._device = device
        self._starts = np.concatenate([[0], np.cumsum(table.counts)])
        values = int(self._starts[-1]) * hidden
        self._states = torch.from_file(str(path), shared=True, size=values, dtype=dtype).view(-1, hidden)

    def __call__(self, sequences: Sequence[Rows]) -> torch.Tensor:
        """The states of some rows, `[tokens, hidden]`."""
        return self._states[self._where(sequences)].to(self._device)

    def fill(
        self,
        run: Source,
        sequence_length: int,
        size: int,
        *,
        part: int = 0,
        parts: int = 1,
        stop: Callable[[], bool] = lambda: False,
        show: Callable[[int], Any] = lambda done: None,
    ) -> bool:
        """Makes all states, or those that an earlier call has left.

        Args:
            run: makes states.
            sequence_length: tokens of a sequence at most.
            size: sequences at a time.
            part: of the batches, this process makes those whose number leaves this remainder.
            parts: divided by this.
            stop: asked after each batch whether to stop.
            show: told of batches that are done.

        Returns:
            Whether all is done; False if `stop` said so.
        """
        note = self._path.with_name(f"{self._path.name}.{part}.json")
        first = json.loads(note.read_text())["batches"] if note.is_file() else 0
        epoch = Epoch.make(self._table.lengths, sequence_length, 0, 0)
        batches = [range(at, min(at + size, len(epoch))) for at in range(0, len(epoch), size)][part::parts]
        show(first)
        for number, batch in enumerate(batches[first:], first + 1):
            sequences = [epoch[i] for i in batch]
            self._states[self._where(sequences)] = run(sequences).to("cpu", self._states.dtype)
            show(1)
            stopped = stop()
            if stopped or number == len(batches) or number % _NOTE_EVERY == 0:
                note.write_text(json.dumps({"batches": number}))
            if stopped:
                return False
        return True

    def _where(self, sequences: Sequence[Rows]) -> torch.Tensor:
        rows = np.concatenate(list(sequences))
        return torch.from_numpy(
            np.concatenate([np.arange(self._starts[r], self._starts[r + 1]) for r in rows])
        )


def tokens_of(table: Table, sequences: Sequence[Rows]) -> tuple[torch.Tensor, torch.Tensor]:
    """The responses of some rows, one after another.

    Args:
        table: the rows; what counts in each is its end.
        sequences: row numbers.

    Returns:
        The tokens, int64 `[tokens]`, and how many of the same row come after each, int64 `[tokens]`.
    """
    rows = np.concatenate(list(sequences))
    ends = table.starts[rows + 1]
    tokens = np.concatenate(
        [table.ids[end - table.counts[r] : end] for r, end in zip(rows, ends, strict=True)]
    )
    left = np.concatenate([np.arange(table.counts[row])[::-1] for row in rows])
    return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(left.copy())
