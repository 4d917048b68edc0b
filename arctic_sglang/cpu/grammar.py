"""Grammar masks on a CPU. xgrammar has the functions; SGLang calls its own GPU ones."""

from collections.abc import Callable
from typing import Any

import torch
import xgrammar


def around_allocate(
    _original: Callable[..., Any], _grammar: Any, vocab_size: int, batch_size: int, device: Any
) -> torch.Tensor:
    """A mask that allows every token: int32 `[batch_size, ceil(vocab_size / 32)]`, one bit a token."""
    return xgrammar.allocate_token_bitmask(batch_size, vocab_size)


def around_apply(
    _original: Callable[..., Any], _grammar: Any, logits: torch.Tensor, vocab_mask: torch.Tensor
) -> None:
    """Sets `logits` `[batch, vocab]` to minus infinity, in place, where the mask's bit is 0."""
    xgrammar.apply_token_bitmask_inplace(logits, vocab_mask)
