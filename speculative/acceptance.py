"""Which part of a draft is accepted. torch alone, any device.

Every row of a verify step (the last accepted token, then the draft) is sampled as in plain decode. A draft's
token is accepted if it is the token sampled in the row before it, and with it the row after it counts. A draft
is chosen before and without the model's random numbers, so the accepted tokens and the one after them follow the
model's own distribution exactly (Leviathan et al. 2023, section 2.3, for a draft distribution of one point);
with temperature 0 they are the greedy tokens.
"""

from typing import NamedTuple

import torch


class Accepted(NamedTuple):
    """What a verify step yields.

    Attributes:
        lengths: int32 [rows], accepted draft tokens plus one.
        last: [rows], in the dtype of `sampled`: the token after the accepted ones.
    """

    lengths: torch.Tensor
    last: torch.Tensor


def accept(sampled: torch.Tensor, verified: torch.Tensor, limits: torch.Tensor) -> Accepted:
    """The longest part of each draft that agrees with what was sampled.

    Args:
        sampled: integer [rows, width]; column j is sampled from the logits of row j of the step.
        verified: integer [rows, width]: the last accepted token, then the draft, then padding.
        limits: integer [rows], how many tokens of each row's draft may be accepted.
    """
    places = torch.arange(sampled.shape[1] - 1, device=sampled.device)
    agrees = (sampled[:, :-1] == verified[:, 1:]) & (places < limits[:, None])
    count = agrees.to(torch.int32).cumprod(dim=1).sum(dim=1, dtype=torch.int32)
    last = sampled.gather(1, count.to(torch.int64)[:, None]).squeeze(1)
    return Accepted(count + 1, last)


def rows_of(count: torch.Tensor, width: int) -> torch.Tensor:
    """Index int64 [rows], in the flat [rows * width] step, of the row that each request's last token came from.

    Args:
        count: int32 [rows], accepted tokens plus one.
        width: tokens per request.
    """
    starts = torch.arange(len(count), device=count.device) * width
    return starts + count.to(torch.int64) - 1
