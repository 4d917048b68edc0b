"""How the tensors lie that travel between the ranks of a sequence group. Pure torch: no process group here.

Around attention rows are exchanged for heads and back, each with one all-to-all of equal parts. What a collective
sends is [sp, ...], part p for the rank at position p; what it receives is [sp, ...], part p from the rank at position
p. With n rows a rank (`Tokens.share`):

    rows -> heads:  [n, sp * c] --send_rows-->  [sp, n, c]  ~all-to-all~>  [sp, n, c] --received_heads--> [tokens, c]
    heads -> rows:  [tokens, c] --send_heads--> [sp, n, c]  ~all-to-all~>  [sp, n, c] --received_rows-->  [n, sp * c]
"""

import torch

from arctic_sglang.shift.topology import Tokens


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
