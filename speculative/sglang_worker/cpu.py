"""Two functions of SGLang that a verify step calls, for devices on which SGLang has only kernels for GPUs."""

from collections.abc import Callable
from typing import Any

import torch


def around_assign(
    original: Callable[..., None],
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Writes new KV slots into the requests' rows; on a CPU with torch, else with SGLang's kernel.

    Args:
        original: SGLang's function.
        req_pool_indices: int64 [batch], the requests' rows.
        req_to_token: int32 [requests, context], slot of each token; written.
        start_offset: integer [batch], first column of each row.
        end_offset: integer [batch], column behind the last.
        out_cache_loc: int64 [slots], row after row.
        batch_size: rows.
    """
    if req_to_token.device.type != "cpu":
        original(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, batch_size)
        return
    lengths = (end_offset - start_offset).to(torch.int64)
    rows = req_pool_indices.to(torch.int64).repeat_interleave(lengths)
    firsts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    columns = start_offset.to(torch.int64).repeat_interleave(lengths) + torch.arange(len(rows)) - firsts
    req_to_token[rows, columns] = out_cache_loc.to(req_to_token.dtype)


def before_init_forward_metadata(self: Any, forward_batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tells SGLang's torch attention how long a verify step's requests are; it reads that of prefills alone.

    Args:
        self: the attention backend.
        forward_batch: the step; of one that verifies, `seq_lens` grows by the step's width, as in a prefill.
    """
    if forward_batch.forward_mode.is_target_verify():
        width = forward_batch.spec_info.draft_token_num
        forward_batch.extend_prefix_lens = forward_batch.seq_lens
        forward_batch.extend_seq_lens = torch.full_like(forward_batch.seq_lens, width)
        forward_batch.seq_lens = forward_batch.seq_lens + width
    return (self, forward_batch), {}
