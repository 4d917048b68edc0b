"""How the tensors lie that travel between the ranks of a sequence group. Pure torch: no process group here.

Around attention rows are exchanged for heads and back, each with one all-to-all of equal parts. What a collective
sends is [sp, ...], part p for the rank at position p; what it receives is [sp, ...], part p from the rank at position
p. With n rows a rank (`Tokens.share`):

    rows -> heads:  [n, sp * c] --send_rows-->  [sp, n, c]  ~all-to-all~>  [sp, n, c] --received_heads--> [tokens, c]
    heads -> rows:  [tokens, c] --send_heads--> [sp, n, c]  ~all-to-all~>  [sp, n, c] --received_rows-->  [n, sp * c]
"""

from collections.abc import Sequence

import torch

from arctic_sglang.shift.topology import Tokens


class Apart:
    """Query, and key and value, of the same tokens, each block without gaps: what a model splits instead of a tensor.

    Attention wants queries without gaps. Split off a tensor of all three they have some, so SGLang copies them.

    Args:
        blocks: [tokens, any] each.
    """

    def __init__(self, blocks: Sequence[torch.Tensor]) -> None:
        self._blocks = blocks

    def split(self, sizes: Sequence[int], dim: int = -1) -> tuple[torch.Tensor, ...]:
        """As of a tensor [tokens, sum of the blocks]: [tokens, size] for each size.

        Args:
            sizes: each within one block.
            dim: the last one.

        Raises:
            ValueError: sizes are not those of the blocks.
        """
        groups, left = [], list(sizes)
        for block in self._blocks:
            groups.append([left.pop(0)] if left else [])
            while left and sum(groups[-1]) < block.shape[1]:
                groups[-1].append(left.pop(0))
        widths = [block.shape[1] for block in self._blocks]
        if left or dim not in (1, -1) or [sum(group) for group in groups] != widths:
            msg = f"blocks of {widths} columns do not split into {list(sizes)} along dimension {dim}"
            raise ValueError(msg)
        return tuple(
            part for block, group in zip(self._blocks, groups, strict=True) for part in block.split(group, 1)
        )


def send_rows(rows: torch.Tensor, sp: int) -> torch.Tensor:
    """A rank's rows of all heads, as they are sent: [n, sp * c] -> [sp, n, c], contiguous.

    Args:
        rows: a product with a weight whose rows are in the order of the parts.
        sp: ranks of the group.
    """
    return rows.view(len(rows), sp, rows.shape[1] // sp).transpose(0, 1).contiguous()


def received_heads(parts: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """All tokens' rows of a rank's heads, as received: [sp, n, c] -> [tokens, c], a view; padding is left out."""
    return parts.reshape(-1, parts.shape[-1])[: tokens.count]


def send_heads(heads: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """All tokens' rows of a rank's heads, as they are sent: [tokens, c] -> [sp, n, c]; rows of padding are 0."""
    missing = tokens.padded - tokens.count
    padded = torch.nn.functional.pad(heads, (0, 0, 0, missing)) if missing else heads
    return padded.view(tokens.sp, tokens.share, heads.shape[1])


def received_rows(parts: torch.Tensor) -> torch.Tensor:
    """A rank's rows of all heads, as received: [sp, n, c] -> [n, sp * c], heads in the model's order."""
    return parts.transpose(0, 1).reshape(parts.shape[1], parts.shape[0] * parts.shape[2])
