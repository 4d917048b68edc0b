"""The vectorised road inside SGLang's scheduler: blocks come in beside its requests, steps run beside its batches.

In each turn of the scheduler's loop at most one step is launched, and the one before it collected: the host prepares
and answers while the GPU computes, and an ordinary batch waits for one step at most.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.bert import BertCore
from arctic_sglang.embedding.core import Core, GeneralCore
from arctic_sglang.embedding.lane import Lane
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.wire import BlockVectors, DropBlocks, EmbedBlock

logger = logging.getLogger(__name__)

_LAUNCHED = 2  # one step that the GPU works on, one that it finds ready when it is done
_WARM_TOKENS = (1, 7)


@dataclass(slots=True, eq=False)
class _Launched:
    """A step on the device."""

    blocks: list[EmbedBlock]
    vectors: list[torch.Tensor]  # of each block, on the host once `done` has passed
    done: torch.cuda.Event | None


class LaneRunner:
    """Runs a lane's steps on a core.

    Args:
        lane: what waits.
        core: what computes.
        send: hands an answer to the front door.
        in_step: whether all ranks must launch and collect in the same turns.
        launched: called behind every step of requests; None: nobody wants to know.
    """

    def __init__(
        self, lane: Lane, core: Core, send: Any, *, in_step: bool, launched: Callable[[], None] | None = None
    ) -> None:
        self.lane = lane
        self.core = core
        self._send = send
        self._in_step = in_step
        self._after_launch = launched
        self._launched: deque[_Launched] = deque()
        on_gpu = core.device.type == "cuda"
        self._stream = torch.cuda.Stream(core.device) if on_gpu else None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is launched."""
        return not len(self.lane) and not self._launched

    def warm_up(self) -> None:
        """Run a step, and capture the graphs of small ones: the first request shall not wait for a compiler."""
        graphs = getattr(self.core, "graphs", None)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            lengths = np.array(_WARM_TOKENS, np.int32)
            self.core(TokenRows(np.zeros(lengths.sum(), np.int32), lengths))
            if graphs is not None:
                graphs.capture()
        if self._stream is not None:
            self._stream.synchronize()

    def turn(self) -> None:
        """One turn: launch a step if blocks wait, and answer those that are done."""
        blocks = self.lane.next_step()
        if blocks:
            self._begin(blocks)
        while self._launched:
            oldest = self._launched[0]
            full = len(self._launched) >= _LAUNCHED
            if oldest.done is not None:
                if not (full or self._in_step) and not oldest.done.query():
                    return
                if self._in_step and not full and len(self.lane):
                    return
                oldest.done.synchronize()
            self._launched.popleft()
            for block, vectors in zip(oldest.blocks, oldest.vectors, strict=True):
                self._send(BlockVectors(block.number, vectors.numpy()))

    def drop(self, request: DropBlocks) -> None:
        """Answer those of these blocks that have not begun."""
        for number in self.lane.drop(set(request.numbers)):
            self._send(BlockVectors(number, None, "dropped: its request was cancelled"))

    def _begin(self, blocks: list[EmbedBlock]) -> None:
        try:
            self._launched.append(self._launch(blocks))
        except torch.OutOfMemoryError as error:
            if self._in_step:
                raise  # the other ranks may have had the memory, and wait for this one
            logger.error("arctic-sglang: a step of %d blocks had no memory: %s", len(blocks), error)
            remedy = "a lower --embedding-step-tokens or --mem-fraction-static leaves more"
            for block in blocks:
                self._send(BlockVectors(block.number, None, f"the device is out of memory; {remedy}"))

    def _launch(self, blocks: list[EmbedBlock]) -> _Launched:
        rows = TokenRows.concatenate([TokenRows(block.ids, block.lengths) for block in blocks])
        # Neighbours of one length go through a CPU's attention together.
        order = np.argsort(rows.lengths, kind="stable") if self._stream is None and len(blocks) > 1 else None
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            vectors = self.core(rows if order is None else rows.take(order))
            if self._after_launch is not None:
                self._after_launch()
            if order is not None:
                vectors = torch.empty_like(vectors).index_copy_(0, torch.from_numpy(order), vectors)
            parts = vectors.split([len(block.lengths) for block in blocks])
            cut = [self._cut(part, block.dimensions) for part, block in zip(parts, blocks, strict=True)]
            if self._stream is None:
                return _Launched(blocks, cut, None)
            host = [torch.empty(part.shape, pin_memory=True).copy_(part, non_blocking=True) for part in cut]
            done = torch.cuda.Event()
            done.record()
        return _Launched(blocks, host, done)

    def _cut(self, vectors: torch.Tensor, dimensions: int | None) -> torch.Tensor:
        """Matryoshka (https://arxiv.org/abs/2205.13147): the first components, scaled again."""
        if dimensions is None or dimensions >= vectors.shape[1]:
            return vectors
        cut = vectors[:, :dimensions]
        return torch.nn.functional.normalize(cut, dim=-1) if self.core.normalize else cut.contiguous()


def after_init(_result: None, scheduler: Any, *_args: Any, **_kwargs: Any) -> None:
    """Give a scheduler whose model is loaded its lane."""
    runner = scheduler.tp_worker.model_runner
    args = scheduler.server_args
    device = torch.device(runner.device, runner.gpu_id) if runner.device == "cuda" else torch.device("cpu")
    fits_bert = BertCore.serves(runner.model) and args.tp_size == 1
    core = (BertCore if fits_bert else GeneralCore)(runner.model, device, runner.dtype)
    lane = Lane(args.embedding_step_tokens)
    ranks, shift = args.tp_size > 1, getattr(runner, "shift", None)
    scheduler.arctic_lane = LaneRunner(
        lane, core, scheduler.ipc_channels.send_to_tokenizer.send_output, in_step=ranks,
        launched=None if shift is None else shift.note,
    )  # fmt: skip
    scheduler._request_dispatcher += vendor.TypeBasedDispatcher(
        [(EmbedBlock, lane.add), (DropBlocks, scheduler.arctic_lane.drop)]
    )
    scheduler.arctic_lane.warm_up()
    logger.info(
        "arctic-sglang: embeddings take the vectorised road (%s, steps of %d tokens)",
        type(core).__name__, lane.step_tokens,
    )  # fmt: skip


def after_input(_result: None, scheduler: Any, _requests: Any) -> None:
    """Take the lane's turn, once in every turn of the scheduler's loop."""
    if not scheduler._engine_paused:
        scheduler.arctic_lane.turn()


def after_idle(result: bool, scheduler: Any, for_health_check: bool = False) -> bool:
    """A scheduler with a busy lane is not idle."""
    return result and scheduler.arctic_lane.idle
