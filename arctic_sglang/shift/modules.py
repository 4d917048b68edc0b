"""What of a model changes its mode with the step beside its linear layers: embeddings, experts, logits, SwiftKV's cut.

Each function here takes the place of one method of a module: `forward`, or another that SwiftKV models have. In tensor
parallelism that is called as it was.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from arctic_sglang.shift.layers import Shift
from arctic_sglang.shift.policy import Mode
from arctic_sglang.shift.push import Vocabulary


def switch_embedding(layer: Any, vocabulary: Callable[[], Vocabulary], shift: Shift) -> None:
    """Token ids in, own rows out.

    Args:
        layer: an embedding whose vocabulary is shared out over all ranks.
        vocabulary: this rank's part of it, as it is now.
        shift: this rank.
    """
    tensor_parallel = layer.forward

    def forward(ids: torch.Tensor) -> Any:
        if shift.tokens is None:
            return tensor_parallel(ids)
        missing = shift.tokens.padded - shift.tokens.count
        return shift.exchange.embed(torch.nn.functional.pad(ids, (0, missing)), vocabulary())

    layer.forward = forward


def switch_experts(block: Any, unsummed: Callable[[], AbstractContextManager[Any]], shift: Shift) -> None:
    """Own rows in and out of experts that all ranks share out in either mode, so that nobody has two parts of them.

    All rows of the sequence group, padding too, go through this rank's part of the experts, and the parts are summed
    as rows are shared out again: what tensor parallelism sends for as many tokens, and no more.

    Args:
        block: router and experts, which sums over all ranks by itself.
        unsummed: within it, the block leaves that out.
        shift: this rank.
    """
    tensor_parallel = block.forward

    def forward(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if shift.tokens is None:
            return tensor_parallel(rows, *args, **kwargs)
        with unsummed():
            part = tensor_parallel(shift.exchange.gather(rows), *args, **kwargs)
        return shift.exchange.scatter(part)

    block.forward = forward


def switch_cut(body: Any, shift: Shift) -> None:
    """A SwiftKV decoder: own rows come to the cut, and from there on every rank has all of them.

    Each rank computes keys and values of its heads, as in tensor parallelism: to gather the state they are computed of
    sends less than sending them.

    Args:
        body: with `at_cut`, `own` and the norm of the state.
        shift: this rank.
    """
    tensor_parallel = body.at_cut

    def at_cut(hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if shift.tokens is None:
            return tensor_parallel(hidden, residual)
        whole = shift.exchange.gather(hidden + residual)[: shift.tokens.count]
        return body.norm_swiftkv(whole), whole

    body.at_cut, body.own = at_cut, shift.own


def switch_tail(model: Any, shift: Shift) -> None:
    """Rows that go up after a SwiftKV prefill have the mode of their own number; one a request is as good as decode.

    Args:
        model: with `finish`.
        shift: this rank.
    """
    finish = model.finish

    def in_its_mode(hidden: torch.Tensor, tail: Any) -> Any:
        with shift.rest(len(hidden), Mode.TENSOR if tail.decodes else None):
            return finish(hidden, tail)

    model.finish = in_its_mode


def switch_last(
    layer: Any, shift: Shift, rows: int, chosen: Callable[..., torch.Tensor | None] = lambda *_args: None
) -> None:
    """Own rows in, which the layer sees as all tokens': what comes behind the last layer of a decoder.

    Args:
        layer: logits or a pooler.
        shift: this rank.
        rows: at which place of its arguments the rows are.
        chosen: of its arguments, which rows it will read; None: all.
    """
    tensor_parallel = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if shift.tokens is not None:
            read = chosen(*args)
            whole = shift.exchange.gather(args[rows], read)[: shift.tokens.count]
            if read is None:  # somebody may keep them for longer than until the next step
                whole = whole.clone()
            args = (*args[:rows], whole, *args[rows + 1 :])
        return tensor_parallel(*args, **kwargs)

    layer.forward = forward
