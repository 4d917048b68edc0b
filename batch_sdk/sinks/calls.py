"""The output as a stream: every batch is handed to a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from batch_sdk.sinks.base import Sink


class CallSink(Sink):
    """Calls a function with each record batch, in the input's order; the job waits for it.

    Args:
        take: gets a `pyarrow.RecordBatch`. What it raises ends the job.
    """

    def __init__(self, take: Callable[[pa.RecordBatch], Any]) -> None:
        self._take = take

    def prepare(self, schema: pa.Schema) -> None:
        """Nothing can be in the way."""

    def open(self, schema: pa.Schema) -> None:
        """The batches carry their schema."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Hand the batch on."""
        self._take(batch)

    def commit(self) -> None:
        """All of it is with the function."""

    def abort(self) -> None:
        """Nothing can be taken back."""
