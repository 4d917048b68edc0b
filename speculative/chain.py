"""Both ends of a verify step on the device: what the model is shown, and what is accepted of it.

A chain is the last accepted token of a request, then its draft. Every row of it is sampled as in plain decode. A
draft's token is accepted if it is the token sampled in the row before it, and with it the row after it counts. A draft
is chosen before and without the model's random numbers, so the accepted tokens and the one after them follow the
model's own distribution exactly (Leviathan et al. 2023, section 2.3, for a draft distribution of one point);
with temperature 0 they are the greedy tokens.

Each end is one kernel in Triton, as the host has no time to launch a dozen small ones; the twins in torch are what runs
on the CPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LIMIT, FROM_HEAD, DRAFT = 0, 1, 2  # columns of a packed draft


class Drafted(NamedTuple):
    """The drafts of a step.

    Attributes:
        packed: int64 [rows, 1 + width], contiguous. Columns: how many tokens may be accepted; whether the head drafts
            (1 or 0); the index's draft, width - 1 tokens, zeros behind its end.
        head: int64 [rows, tokens], of any strides, the head's drafts; None if no row has one.
    """

    packed: Tensor
    head: Tensor | None

    @property
    def width(self) -> int:
        """Tokens a request."""
        return self.packed.shape[1] - 1


class Places(NamedTuple):
    """Where requests stand.

    Attributes:
        lengths: int64 [rows], tokens whose keys and values are cached.
        requests: int64 [rows], rows of `table`.
        table: int32 [requests, positions], contiguous: the KV slots of each request.
        last: the model's last position.
    """

    lengths: Tensor
    requests: Tensor
    table: Tensor
    last: int


class Chain(NamedTuple):
    """What the model is shown, each int64 [rows, width].

    Attributes:
        tokens: the last accepted one, then the draft, then padding.
        slots: where keys and values go.
        positions: at most the last one; nobody reads what padding behind it says.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor


class Accepted(NamedTuple):
    """What a verify step yields.

    Attributes:
        lengths: int32 [rows], accepted draft tokens plus one.
        last: [rows], in the dtype of `sampled`: the token after the accepted ones.
        rows: int64 [rows], which of the flat [rows * width] rows it was sampled from.
        cached: int64 [rows], tokens whose keys and values are cached and stay so.
    """

    lengths: Tensor
    last: Tensor
    rows: Tensor
    cached: Tensor


def chain(bonus: Tensor, drafted: Drafted, places: Places) -> Chain:
    """What a step shows the model.

    Args:
        bonus: integer [rows], the last accepted token of each request.
        drafted: what follows.
        places: where.
    """
    if drafted.packed.device.type == "cpu":
        return chain_twin(bonus, drafted, places)
    return chain_kernel(bonus, drafted, places)


def accept(sampled: Tensor, tokens: Tensor, packed: Tensor, before: Tensor) -> Accepted:
    """The longest part of each draft that agrees with what was sampled.

    Args:
        sampled: integer [rows, width], contiguous; column j is sampled from the logits of row j of the step.
        tokens: int64 [rows, width], as of `Chain`.
        packed: as of `Drafted`.
        before: int64 [rows], tokens that were cached before the step.
    """
    if tokens.device.type == "cpu":
        return accept_twin(sampled, tokens, packed, before)
    return accept_kernel(sampled, tokens, packed, before)


def chain_twin(bonus: Tensor, drafted: Drafted, places: Places) -> Chain:
    """`chain` in torch, on any device."""
    draft = drafted.packed[:, DRAFT:]
    if drafted.head is not None:
        count = min(drafted.head.shape[1], draft.shape[1])
        theirs = drafted.packed[:, FROM_HEAD, None] != 0
        front = torch.where(theirs, drafted.head[:, :count], draft[:, :count])
        draft = torch.cat([front, draft[:, count:]], dim=1)
    tokens = torch.cat([bonus.to(torch.int64)[:, None], draft], dim=1)
    positions = places.lengths[:, None] + torch.arange(drafted.width, device=tokens.device)
    columns = positions.clamp(max=places.table.shape[1] - 1)  # padding must not reach the next request's row
    slots = places.table[places.requests[:, None], columns].to(torch.int64)
    return Chain(tokens, slots, positions.clamp(max=places.last))


def accept_twin(sampled: Tensor, tokens: Tensor, packed: Tensor, before: Tensor) -> Accepted:
    """`accept` in torch, on any device."""
    rows, width = sampled.shape
    places = torch.arange(width - 1, device=sampled.device)
    agrees = (sampled[:, :-1] == tokens[:, 1:]) & (places < packed[:, LIMIT, None])
    count = agrees.to(torch.int32).cumprod(dim=1).sum(dim=1, dtype=torch.int32)
    last = sampled.gather(1, count.to(torch.int64)[:, None]).squeeze(1)
    starts = torch.arange(rows, device=sampled.device) * width
    return Accepted(count + 1, last, starts + count, before + count + 1)


def chain_kernel(bonus: Tensor, drafted: Drafted, places: Places) -> Chain:
    """`chain` in one launch."""
    rows, width = len(bonus), drafted.width
    found = torch.empty((3, rows, width), dtype=torch.int64, device=bonus.device)
    head = drafted.packed if drafted.head is None else drafted.head
    _chain[(rows,)](
        bonus, drafted.packed, head, 0 if drafted.head is None else head.shape[1], *head.stride(), places.lengths,
        places.requests, places.table, places.table.stride(0), places.table.shape[1] - 1, places.last, found,
        rows * width, width, BLOCK=_block(width),
    )  # fmt: skip
    return Chain(*found.unbind())


def accept_kernel(sampled: Tensor, tokens: Tensor, packed: Tensor, before: Tensor) -> Accepted:
    """`accept` in one launch."""
    rows, width = sampled.shape
    lengths = torch.empty(rows, dtype=torch.int32, device=sampled.device)
    last, places = (
        torch.empty_like(sampled[:, 0]),
        torch.empty((2, rows), dtype=torch.int64, device=sampled.device),
    )
    _accept[(rows,)](
        sampled, tokens, packed, before, lengths, last, places, rows, width, BLOCK=_block(width)
    )  # fmt: skip
    return Accepted(lengths, last, *places.unbind())


def _block(width: int) -> int:
    return max(32, triton.next_power_of_2(width))  # one for most widths, so that one is compiled


_ANY = ["tokens_out", "head_stride", "head_step", "table_stride", "last_column", "last", "count", "width"]


@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=["bonus", "packed", "head", "found"])
def _chain(
    bonus: tl.tensor, packed: tl.tensor, head: tl.tensor, tokens_out: tl.tensor, head_stride: tl.tensor,
    head_step: tl.tensor, lengths: tl.tensor, requests: tl.tensor, table: tl.tensor, table_stride: tl.tensor,
    last_column: tl.tensor, last: tl.tensor, found: tl.tensor, count: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < width
    own = packed + row * (width + 1)
    drafted = (place > 0) & inside
    token = tl.load(own + 1 + place, mask=drafted, other=0)
    theirs = drafted & (place <= tokens_out) & (tl.load(own + 1) != 0)
    token = tl.where(
        theirs, tl.load(head + row * head_stride + (place - 1) * head_step, mask=theirs, other=0), token
    )
    token = tl.where(place == 0, tl.load(bonus + row).to(tl.int64), token)
    position = tl.load(lengths + row) + place
    column = tl.minimum(position, last_column)  # padding must not reach the next request's row
    slot = tl.load(table + tl.load(requests + row) * table_stride + column, mask=inside, other=0)
    out = found + row * width + place
    tl.store(out, token, mask=inside)
    tl.store(out + count, slot.to(tl.int64), mask=inside)
    tl.store(out + 2 * count, tl.minimum(position, last), mask=inside)


@triton.jit(
    do_not_specialize=["rows", "width"], do_not_specialize_on_alignment=["sampled", "tokens", "packed"]
)
def _accept(
    sampled: tl.tensor, tokens: tl.tensor, packed: tl.tensor, before: tl.tensor, lengths: tl.tensor, last: tl.tensor,
    places: tl.tensor, rows: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    follows = place < width - 1
    said = tl.load(sampled + row * width + place, mask=place < width, other=0)
    drafted = tl.load(tokens + row * width + place + 1, mask=follows, other=0)
    right = follows & (said == drafted) & (place < tl.load(packed + row * (width + 1)))
    # The first refusal; the row behind a draft's end always is one.
    count = tl.min(tl.where(right, BLOCK, place), axis=0)
    tl.store(lengths + row, count + 1)
    tl.store(last + row, tl.sum(tl.where(place == count, said, 0), axis=0))
    tl.store(places + row, row * width + count)
    tl.store(places + rows + row, tl.load(before + row) + count + 1)


def warm(table: Tensor, width: int, *, head: bool, sampled: tuple[torch.dtype, ...]) -> None:
    """Compiles what a step of this width launches, so that the first request need not wait.

    Args:
        table: as of `Places`.
        width: of the widest step.
        head: whether there is a draft head.
        sampled: types that tokens are sampled in.
    """
    if table.device.type == "cpu":
        return
    row = torch.zeros(1, dtype=torch.int64, device=table.device)
    packed = row.new_zeros((1, width + 1))
    for bonus in sampled:
        for drafts in (None, row[:, None]) if head else (None,):
            found = chain(row.to(bonus), Drafted(packed, drafts), Places(row, row, table, 0))
        accept(found.tokens.to(bonus), found.tokens, packed, row)
