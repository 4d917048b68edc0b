"""CUDA graphs for small steps, where launching the kernels takes longer than running them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import torch

from arctic_sglang.embedding.step import Step

_TOKENS = (32, 64, 128, 256, 512, 1024, 2048)
# Rows beyond this many in a step of so many tokens are too short to be worth a graph of their own.
_TOKENS_OF_A_ROW = 8
_MAX_LENGTH = 512


class Graphs:
    """The body of a model, captured once for each size of a step.

    A step is padded to the next size: with tokens that belong to no row, and with rows of no tokens. Whatever is
    computed for them stays there, since nothing but attention looks beyond a token, and attention keeps to its row.

    Args:
        body: from a step to `[tokens, width]`, reading the step's device tensors and `max_length` alone.
        device: a CUDA device.
    """

    def __init__(self, body: Callable[[Step], torch.Tensor], device: torch.device) -> None:
        self._body = body
        self._device = device
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Step, torch.Tensor]] = {}
        self._pool: tuple[int, int] | None = None

    def __call__(self, step: Step) -> torch.Tensor:
        """The body's output for a step, `[tokens, width]`; it holds until the next step of the same size."""
        tokens, rows = len(step.ids), len(step.lengths)
        at = bisect_left(_TOKENS, tokens)
        captured = self._captured.get(_TOKENS[at]) if at < len(_TOKENS) else None
        if captured is None or rows > _rows(_TOKENS[at]) or step.max_length > _MAX_LENGTH:
            return self._body(step)
        graph, inputs, out = captured
        inputs.ids[:tokens].copy_(step.ids)
        inputs.positions[:tokens].copy_(step.positions)
        inputs.bounds[: rows + 1].copy_(step.bounds)
        inputs.bounds[rows + 1 :].fill_(tokens)
        graph.replay()
        return out[:tokens]

    def capture(self) -> None:
        """Capture every size, largest first so that the others fit into its memory."""
        for tokens in reversed(_TOKENS):
            inputs = self._inputs(tokens)
            self._body(inputs)  # kernels are compiled and libraries set up outside the graph
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                out = self._body(inputs)
            self._pool = graph.pool()
            self._captured[tokens] = (graph, inputs, out)

    def _inputs(self, tokens: int) -> Step:
        rows = _rows(tokens)
        zeros = torch.zeros(tokens, dtype=torch.int32, device=self._device)
        bounds = torch.full((rows + 1,), tokens, dtype=torch.int32, device=self._device)
        bounds[0] = 0
        lengths = np.array([tokens], np.int32)
        longest = min(tokens, _MAX_LENGTH)
        return Step(zeros, zeros.long() + 2, bounds, bounds[1:], lengths, longest)


def _rows(tokens: int) -> int:
    return max(1, tokens // _TOKENS_OF_A_ROW)
