"""What a model is asked to continue: chats up to an answer, or windows of text."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speculative.training.errors import TrainingError
from swiftkv.encoding import Encoder, Kind, Rows
from swiftkv.errors import SwiftKVError

Int32 = NDArray[np.int32]
_ANSWER = {"role": "assistant", "content": ""}


class Prompts:
    """The prompts in a table, tokenised as they are read; the same in the same order every time.

    What a row gives depends on its columns, in this order: `messages`, a chat, up to its last answer; `prompt`, the
    user's message of a chat (the text itself where the tokenizer has no chat template); `text`, cut into windows.

    Args:
        data: a .parquet or .jsonl file, a folder or a glob of them.
        tokenizer: the model's.
        window: tokens of a window of text, 64 in the published recipe.
        longest: prompts of more tokens are left out, and counted in `left_out`.

    Raises:
        TrainingError: no such files, or no column that is known.
    """

    def __init__(self, data: str, tokenizer: Any, *, window: int, longest: int) -> None:
        self.data = data
        self.left_out = 0
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._window = min(window, longest)
        self._longest = longest
        try:
            self._rows = _open(data)
        except SwiftKVError as error:
            raise TrainingError(f"--prompts: {error}") from error

    def __iter__(self) -> Iterator[Int32]:
        """Yields token ids, int32 of shape [tokens]."""
        self.left_out = 0
        for row in self._rows:
            for ids in () if row is None else self._prompts(row):
                if 0 < len(ids) <= self._longest:
                    yield ids
                else:
                    self.left_out += 1

    def _prompts(self, row: Any) -> list[Int32]:
        if isinstance(row, list):
            ids = self._encoder.prompt(row if row[-1]["role"] == "assistant" else [*row, _ANSWER])
            return [] if ids is None else [ids]
        windows = self._rows.columns == ("text",)
        if not windows and getattr(self._tokenizer, "chat_template", None):
            return self._prompts([{"role": "user", "content": row}])
        ids = np.asarray(self._tokenizer(row, verbose=False)["input_ids"], np.int32)
        if not windows:
            return [ids]
        return [ids[at : at + self._window] for at in range(0, len(ids) - self._window + 1, self._window)]


def _open(data: str) -> Rows:
    """The rows, with `prompt` alone where there is that column and no chat."""
    for column in ("messages", "prompt", "text"):
        try:
            rows = Rows.open(data, column)
        except SwiftKVError:
            continue
        return Rows(rows.files, Kind.CHAT if column == "messages" else Kind.TEXT, (column,))
    return Rows.open(data)
