"""One attention backend and one set of CUDA graphs for each width of a step.

SGLang fixes the tokens per request of a verify step when it makes an attention backend and when it captures
graphs. A step here is as wide as its drafts deserve, so both exist for every width, and those of the step's
width are put in the runner's place while it runs. Width 1 is the runner's own plain decode.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from arctic_sglang.compat import vendor
from arctic_sglang.timing import least
from speculative.sglang_worker.algorithm import Verifying
from speculative.sglang_worker.verify import chain_input

logger = logging.getLogger(__name__)
# Batch sizes that verify steps are captured for; plain decode keeps SGLang's.
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Tokens of the largest step: times plain decode's largest batch, for which SGLang leaves memory, and at least. A batch
# of a quarter of that size, whose drafts all come true, is bound by the host if it may not take 8 tokens at a time.
WIDER, LEAST_TOKENS = 2, 64
REPLAYS = 5  # at a time
# Backends whose captured plans may be replayed as they are, which is how a step's time is measured.
_REPLAYABLE = ("FlashAttentionBackend", "TritonAttnBackend")


@dataclass(frozen=True, slots=True)
class _Shape:
    backend: Any
    graphs: Any  # SGLang's decode graph runner, or None without CUDA graphs
    batches: tuple[int, ...]  # captured batch sizes, ascending; empty without graphs


def verify_graphs(runner: Any, backend: Any, width: int, hidden: bool) -> Any:
    """Captures verify steps of one width: SGLang's decode graph runner, with chains for its drafts."""

    class VerifyGraphs(vendor.DecodeCudaGraphRunner):  # type: ignore[misc]
        def get_spec_info(self, num_tokens: int) -> Any:
            """The dummy input of a capture."""
            mode = vendor.CaptureHiddenMode.FULL if hidden else vendor.CaptureHiddenMode.NULL
            return chain_input(None, None, self.captured_req_width, mode)

    return VerifyGraphs(
        runner, attn_backend=backend, speculative_num_steps=width - 1, speculative_num_draft_tokens=width
    )


class Widths:
    """The shapes that a step can take.

    Args:
        runner: SGLang's model runner of the model, with its own backend and graphs.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        graphs = runner.decode_cuda_graph_runner
        sizes = tuple(graphs.capture_bs) if hasattr(graphs, "capture_bs") else ()
        self._wide_logits: Any = None
        self._shapes = {1: _Shape(runner.attn_backend, graphs, sizes)}

    def build(self, widths: tuple[int, ...], hidden: bool) -> None:
        """Makes backends and captures graphs, the widest step first.

        Args:
            widths: without 1.
            hidden: whether steps return hidden states.
        """
        for width in sorted(widths, reverse=True):
            started = time.perf_counter()
            shape = self._build(width, hidden)
            if shape is None:
                continue
            self._shapes[width] = shape
            logger.info(
                "arctic-sglang: steps of %d tokens a request, batch sizes %s, %.1f s",
                width, list(shape.batches) or "any, without graphs", time.perf_counter() - started,
            )  # fmt: skip

    @property
    def available(self) -> tuple[int, ...]:
        """Widths that a step can take, ascending, 1 among them."""
        return tuple(sorted(self._shapes))

    def sizes(self, most: int) -> dict[int, tuple[int, ...]]:
        """Batch sizes that steps of each width can have; where none were captured, those that would have been.

        Args:
            most: requests at once.
        """
        if self._shapes[1].batches:
            return {width: shape.batches for width, shape in self._shapes.items()}
        largest = min(most, BATCHES[-1])
        return {width: tuple(_batches(largest, width)) for width in self._shapes}

    @contextlib.contextmanager
    def use(self, width: int) -> Iterator[None]:
        """The runner runs steps of this width inside."""
        runner, shape, own = self._runner, self._shapes[width], self._shapes[1]
        runner.attn_backend, runner.decode_cuda_graph_runner = shape.backend, shape.graphs
        try:
            yield
        finally:
            runner.attn_backend, runner.decode_cuda_graph_runner = own.backend, own.graphs

    def measure(self) -> dict[tuple[int, int], float]:
        """Seconds of each captured step by (batch size, width), with KV caches of one token; empty without graphs."""
        if type(self._runner.attn_backend).__name__ not in _REPLAYABLE:
            return {}
        times = {
            (rows, width): least(_sampler(shape.graphs, rows))
            for width, shape in sorted(self._shapes.items())
            for rows in shape.batches
            if width > 1 or rows in (*BATCHES, shape.batches[-1])
        }
        unsteady = sum(not time.steady for time in times.values())
        if unsteady:
            logger.warning(
                "arctic-sglang: others were using the GPUs while steps were timed: %d of %d times are not steady, and "
                "drafts may be checked where that does not pay, or not where it does", unsteady, len(times),
            )  # fmt: skip
        return {of: time.seconds for of, time in times.items()}

    def _build(self, width: int, hidden: bool) -> _Shape | None:
        runner, own = self._runner, self._shapes[1]
        if runner.device == "cpu":
            return _Shape(own.backend, own.graphs, ())
        with self._as_width(width) as batches:
            if own.batches and not batches:
                return None
            backend = runner._get_attention_backend(init_new_workspace=True)
            if not own.batches:
                return _Shape(backend, own.graphs, ())
            graphs = verify_graphs(runner, backend, width, hidden)
        return _Shape(backend, graphs, tuple(graphs.capture_bs))

    @contextlib.contextmanager
    def _as_width(self, width: int) -> Iterator[list[int]]:
        """SGLang's settings are those of one width inside; yields the batch sizes to capture."""
        runner, own = self._runner, self._shapes[1]
        context, spec = vendor.get_context(), vendor.get_spec()
        decode = runner.server_args.cuda_graph_config.decode
        before = {
            name: getattr(spec, name) for name in ("speculative_num_draft_tokens", "speculative_num_steps")
        }
        algorithm, sizes, workspace = runner.spec_algorithm, decode.bs, runner.init_new_workspace
        logits, largest = runner.graph_shared_output, max(own.batches, default=0)
        batches = _batches(largest, width)
        try:
            runner.graph_shared_output = self._logits(_most_tokens(largest)) if largest else logits
            runner.spec_algorithm = Verifying(algorithm.name, algorithm.factory, supports_overlap=True)
            decode.bs = batches or sizes
            context.override(
                "arctic-sglang", speculative_num_draft_tokens=width, speculative_num_steps=width - 1
            )
            yield batches
        finally:
            runner.spec_algorithm, decode.bs, runner.init_new_workspace = algorithm, sizes, workspace
            runner.graph_shared_output = logits
            context.override("arctic-sglang", **before)

    def _logits(self, rows: int) -> Any:
        """The buffer of logits of SGLang's graphs; one of our own if that one has too few rows."""
        shared = self._runner.graph_shared_output
        if shared.max_rows >= rows:
            return shared
        if self._wide_logits is None:
            device = torch.device(self._runner.device)
            self._wide_logits = vendor.GraphSharedOutput(device=device, max_rows=rows)
        return self._wide_logits


def _most_tokens(largest: int) -> int:
    return max(WIDER * largest, LEAST_TOKENS)


def _batches(largest: int, width: int) -> list[int]:
    """Batch sizes of steps of one width, ascending.

    Args:
        largest: of plain decode; 0: none.
        width: tokens a request.
    """
    sizes = sorted({rows for rows in (*BATCHES, largest) if 0 < rows <= largest})
    return [rows for rows in sizes if width == 1 or rows * width <= _most_tokens(largest)]


def _sampler(graphs: Any, rows: int) -> Callable[[], NDArray[np.float64]]:
    """Times a captured step, replayed as SGLang replays it, with dummy requests of one token."""
    forward_batch, backend, _ = graphs.capture_prepare(rows)
    key, group = graphs._make_graph_key(rows), vendor.get_tp_group()

    def sample() -> NDArray[np.float64]:
        times = []
        with vendor.forward_context(vendor.ForwardContext(attn_backend=backend)):
            backend.init_forward_metadata_out_graph(forward_batch)
            for _ in range(REPLAYS):
                group.barrier()
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                graphs.backend.replay(key, forward_batch)
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end) / 1000)
        slowest = torch.tensor(times, dtype=torch.float64)
        distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX, group=group.cpu_group)
        return slowest.numpy()

    return sample
