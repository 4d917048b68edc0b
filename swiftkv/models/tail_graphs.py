"""CUDA graphs of the rows that go up after a prefill.

These rows are few and the upper layers many: launched one by one, a kernel at a time, they take longer than
the GPU needs for all the rest of a prompt of several hundred tokens. One row a request with everything before
it in the cache is what a decode step is, so the graphs are those of decode, of the upper layers alone: one for
each batch size that SGLang captures, in the same session, over the same static inputs and the same plan of the
attention backend. What does not fit is launched as it was: see `Tail` and `SwiftKVCausal.forward`.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from arctic_sglang.compat import vendor
from swiftkv.limits import tail_graphs

VARIANT = "swiftkv_tail"


class TailGraphs:
    """The graphs of one model on one rank.

    Args:
        runner: SGLang's runner of decode graphs. Its static inputs are the graphs' too.
        upper: the layers from the cut on, `SwiftKVBody.upper`.
        hidden_size: width of the cut's state.
        dtype: its type.
    """

    def __init__(
        self, runner: Any, upper: Callable[..., torch.Tensor], hidden_size: int, dtype: torch.dtype
    ) -> None:
        self.runner, self.upper = runner, upper
        self.hidden = torch.zeros(runner.max_bs, hidden_size, dtype=dtype, device=runner.device)

    def capture(self, size: int, batch: Any) -> None:
        """Captures one size, right after SGLang has captured it, while its plan is in force.

        Args:
            size: rows.
            batch: the decode step that was captured.
        """
        attention = self.runner.attn_backend

        @torch.no_grad()
        def run_once() -> torch.Tensor:
            attention.init_forward_metadata_in_graph(batch)
            return self.upper(self.hidden[:size], batch.positions, batch, None)

        with vendor.forward_context(vendor.ForwardContext(attn_backend=attention)):
            self.runner.backend.capture_one(
                _key(size), run_once, post_warmup_hook=getattr(attention, "on_after_cuda_graph_warmup", None)
            )

    def run(self, batch: Any, hidden: torch.Tensor) -> torch.Tensor | None:
        """The normalised last state of the rows, `[rows, hidden]`; None if no graph is large enough.

        It lies in a graph's own memory, until the next run; where somebody takes hidden states with them it is a copy.

        Args:
            batch: the rows' batch, which looks like a decode step; not planned yet.
            hidden: the cut's state of the rows, `[rows, hidden]`.
        """
        if not self.runner.can_run_graph(batch):
            return None
        self.runner.load_batch(batch)  # fills the static inputs, pads, plans the attention
        rows = hidden.shape[0]
        self.hidden[:rows].copy_(hidden)
        done = self.runner.backend.replay(_key(self.runner.bs), batch)[:rows]
        return done.clone() if batch.capture_hidden_mode.need_capture() else done


def around_capture_one_shape(
    original: Callable[..., None],
    runner: Any,
    size: int,
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Around `DecodeCudaGraphRunner.capture_one_shape`: captures the tail's graph after decode's.

    Graphs of verify steps, which have several rows a request and runners of their own, are left alone.
    """
    model = runner.model_runner.model
    said = runner.model_runner.server_args
    graphs = hasattr(said, "swiftkv_min_tokens") and tail_graphs(
        said.cuda_graph_config.decode.backend,
        said.cuda_graph_config.prefill.backend,
        said.speculative_algorithm,
    )
    if not graphs or runner.captured_req_width != 1 or not hasattr(model, "tail_graphs"):
        original(runner, size, forward, *args, **kwargs)
        return
    captured = []

    @functools.wraps(forward)
    def noting(input_ids: torch.Tensor, positions: torch.Tensor, batch: Any, **more: Any) -> Any:
        captured[:] = [batch]
        return forward(input_ids, positions, batch, **more)

    original(runner, size, noting, *args, **kwargs)
    if model.tail_graphs is None or model.tail_graphs.runner is not runner:
        weight = model.model.norm_swiftkv.weight
        model.tail_graphs = TailGraphs(runner, model.model.upper, weight.shape[0], runner.model_runner.dtype)
    model.tail_graphs.capture(size, captured[0])


def _key(size: int) -> Any:
    return vendor.ShapeKey(size=size, variant_label=VARIANT)
