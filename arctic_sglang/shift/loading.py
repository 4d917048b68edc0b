"""Weights that are loaded again into layers whose parameters are parts of them: a layer at a time.

SGLang's loaders fill parameters as they were when a server started. So the layer whose turn it is gets its whole
weights back in their first order, which is a copy for those whose rows are in another, and shares them out again
before the next one's turn. All layers at once would take more than half of the model's memory again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from arctic_sglang.shift.layers import Switched


@contextmanager
def one_by_one(switched: Sequence[Switched]) -> Iterator[None]:
    """Inside, loaders of these layers' parameters work, whatever their order.

    If one fails, its layer and all others are shared out again as on every other way out.
    """
    turn: list[Switched] = []

    def over() -> None:
        while turn:
            turn.pop().take()

    def loads(one: Switched, loader: Callable[..., Any]) -> Callable[..., Any]:
        def load(*args: Any, **kwargs: Any) -> Any:
            if turn != [one]:
                over()
                one.give()
                turn.append(one)
            return loader(*args, **kwargs)

        return load

    theirs = []
    for one in switched:
        for parameter in (getattr(one.layer, name) for name in one.whole):
            name = _kept_as(parameter)
            loader = getattr(parameter, name)
            theirs.append((parameter, name, loader))
            setattr(parameter, name, loads(one, loader))
    try:
        yield
    finally:
        for parameter, name, loader in theirs:
            setattr(parameter, name, loader)
        over()


def _kept_as(parameter: torch.nn.Parameter) -> str:
    """The attribute that holds SGLang's loader of a parameter: some classes only show it as `weight_loader`."""
    return "_weight_loader" if hasattr(parameter, "_weight_loader") else "weight_loader"
