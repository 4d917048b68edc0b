"""An engine that may die: started again a few times, and the row that kills it found and left out.

What was in flight when it died is suspect. The suspects run again in groups of about the square root of their
number, one group at a time; a group that kills the engine again runs row by row. A row that kills it alone ends
as `engine_died`. So one such row among n costs up to three restarts, and no row is answered twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from batch_sdk.engines.base import (
    EmbedResult,
    Engine,
    EngineInfo,
    GenerateRequest,
    GenerateResult,
    Request,
    Result,
)
from batch_sdk.errors import EngineDiedError, EngineError, RowError, RowErrorKind


class RestartingEngine(Engine):
    """Wraps an engine that is not started.

    Attributes:
        restarts: so far.

    Args:
        engine: the one to look after.
        max_restarts: after so many restarts the next death is final.
    """

    def __init__(self, engine: Engine, max_restarts: int) -> None:
        super().__init__(model=engine.model, task=engine.task, options=engine.engine_options)
        self._engine = engine
        self._max_restarts = max_restarts
        self.restarts = 0
        self._in_flight: dict[int, Request] = {}
        self._ready: list[Result] = []

    @property
    def info(self) -> EngineInfo:
        """The engine's."""
        return self._engine.info

    @property
    def started(self) -> bool:
        """The engine's."""
        return self._engine.started

    def start(self) -> None:
        """Start the engine."""
        self._engine.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Remember the requests and hand them on."""
        self._in_flight.update({request.position: request for request in requests})
        try:
            self._engine.submit(requests)
        except EngineDiedError as error:
            self._recover(error)

    def wait(self) -> list[Result]:
        """Return what is done, recovering first if the engine is dead."""
        if not self._ready:
            try:
                self._ready = self._engine.wait()
            except EngineDiedError as error:
                self._recover(error)
        done, self._ready = self._ready, []
        for result in done:
            self._in_flight.pop(result.position, None)
        return done

    def abandon(self) -> None:
        """Forget what is in flight."""
        self._in_flight.clear()
        self._ready = []
        self._engine.abandon()

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _restart(self, cause: EngineDiedError) -> None:
        if self.restarts >= self._max_restarts:
            if not self.restarts:
                raise cause
            raise EngineError(
                f"{cause.got} (after {self.restarts} restarts)", cause.wanted, cause.remedy
            ) from cause
        self.restarts += 1
        self._engine.close()
        self._engine.start()

    def _recover(self, cause: EngineDiedError) -> None:
        """Answer all that was in flight, with the engine restarted as often as that takes."""
        suspects = [unit for request in self._in_flight.values() for unit in _rows_of(request)]
        if not suspects:
            raise cause
        self._restart(cause)
        answers: dict[int, Result] = {}
        killed = 0
        size = math.isqrt(len(suspects) - 1) + 1 if len(suspects) > 3 else 1
        for start in range(0, len(suspects), size):
            group = suspects[start : start + size]
            if len(group) > 1 and self._try(group, answers) is None:
                continue
            for unit in group:
                error = self._try([unit], answers)
                if error is not None:
                    killed += 1
                    answers[unit.position] = _poisoned(unit, error, self.info)
                    if killed > 1 and killed == len(answers):
                        # No row has survived yet: that is no poison, the engine is broken.
                        raise error
        self._ready = [_joined(request, answers) for request in self._in_flight.values()]

    def _try(self, units: list[Request], answers: dict[int, Result]) -> EngineDiedError | None:
        """Run these alone. Returns None with their results in `answers`, or why the engine died, restarted."""
        found: dict[int, Result] = {}
        try:
            self._engine.submit(units)
            while len(found) < len(units):
                found.update({result.position: result for result in self._engine.wait()})
        except EngineDiedError as error:
            self._restart(error)
            return error
        answers.update(found)
        return None


def _rows_of(request: Request) -> list[Request]:
    """Return the request as requests of one row each. Positions within a block are not used by others."""
    if isinstance(request, GenerateRequest):
        return [request]
    return [request.slice(row, row + 1) for row in range(request.rows)]


def _poisoned(unit: Request, cause: EngineDiedError, info: EngineInfo) -> Result:
    error = RowError(RowErrorKind.ENGINE_DIED, f"the engine died on this row alone: {cause.got}")
    if isinstance(unit, GenerateRequest):
        return GenerateResult(unit.position, None, None, None, None, error)
    vectors = np.zeros((1, info.embedding_size or 1), np.float32)
    return EmbedResult(unit.position, vectors, np.zeros(1, np.int32), [error])


def _joined(request: Request, answers: dict[int, Result]) -> Result:
    """Return the request's result from those of its rows."""
    if isinstance(request, GenerateRequest):
        return answers[request.position]
    parts = [answers[request.position + index] for index in range(request.rows)]
    rows = [part for part in parts if isinstance(part, EmbedResult)]
    return EmbedResult(
        request.position,
        np.concatenate([row.vectors for row in rows]),
        np.concatenate([row.prompt_tokens for row in rows]),
        [error for row in rows for error in row.errors],
    )
