"""A request while it is worked on: what ends it before its answer is there. No server in here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class AbortedError(ValueError):
    """The request was aborted, by its name or with all others."""

    status_code = 499  # of SGLang's own error of that kind


class InWork:
    """One request.

    Attributes:
        aborted: nobody wants it any more.
    """

    def __init__(self) -> None:
        self.aborted = False
        self._task: asyncio.Task[Any] | None = None

    def abort(self) -> None:
        """Cancel the work, unless it is done already."""
        self.aborted = True
        if self._task is not None:
            self._task.cancel()

    async def result(
        self, work: Coroutine[Any, Any, Any], gone: Coroutine[Any, Any, Any] | None = None
    ) -> Any:
        """What `work` gives; None, with the work cancelled, if the client goes away first.

        Args:
            work: the request's.
            gone: ends when the client is gone; None: it stays.

        Raises:
            AbortedError: the request was aborted first.
        """
        self._task = task = asyncio.ensure_future(work)
        left = None if gone is None else asyncio.ensure_future(gone)
        if left is not None:
            left.add_done_callback(lambda _: task.cancel())
        if self.aborted:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self.aborted:
                msg = "the request was aborted"
                raise AbortedError(msg) from None
            if left is not None and left.done() and not left.cancelled():
                return None
            task.cancel()
            raise
        finally:
            self._task = None
            if left is not None:
                left.cancel()
