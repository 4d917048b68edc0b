"""The suffix index over restarts: read when a server starts, written whenever it has nothing to do."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speculative.suffix import SuffixProposer

logger = logging.getLogger(__name__)
# SGLang ends its processes without a word, so there is no end to write at; writing takes milliseconds.
PAUSE_SECONDS = 5.0


class Memory:
    """A proposer's file.

    Args:
        proposer: whose responses.
        path: of the file; None: none.
        model: whose token ids they are.
        writes: whether this rank writes.
        told: calls a function on the rank whose file it is, and says on every rank what that returned.

    Raises:
        ValueError: there is a file, and it is not one of this model.
    """

    def __init__(
        self, proposer: SuffixProposer, path: str | None, model: str, *, writes: bool,
        told: Callable[[Callable[[], Any]], Any] = lambda read: read(),
    ) -> None:  # fmt: skip
        self._proposer = proposer
        self._path = None if path is None else Path(path)
        self._model = model
        self._writes = writes
        self._written = -PAUSE_SECONDS
        if self._path is not None and (pages := told(self._read)) is not None:
            proposer.restore(*pages)
            logger.info("arctic-sglang: the suffix index goes on from %s", self._path)

    def _read(self) -> Any:
        assert self._path is not None
        return self._proposer.read(self._path, self._model) if self._path.exists() else None

    def idle(self) -> None:
        """No request is running; writes the file unless it was written a moment ago."""
        if self._path is None or not self._writes or time.monotonic() - self._written < PAUSE_SECONDS:
            return
        try:
            self._proposer.save(self._path, self._model)
        except OSError as error:
            # A full disk must not end a server.
            logger.warning("--suffix-cache-path %s cannot be written: %s", self._path, error)
        self._written = time.monotonic()
