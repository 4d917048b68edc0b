"""KV slots for steps that may check drafts: enough of them, not in every step, and never past a request's row."""

from collections.abc import Callable
from typing import Any

import torch

from arctic_sglang.compat import vendor
from speculative.sglang_worker.algorithm import ChainAlgorithm

# Tokens that a request is given slots for beyond what steps may need. Handing them out takes the host a few hundred
# microseconds at 64 requests, which it has not got where the device is fast, so most steps go without.
AHEAD = 32
# Of the slots that are free, the share that such tokens may take: less is kept where memory is short.
SHARE = 8


def around_prepare_for_decode(original: Callable[[Any], None], batch: Any) -> None:
    """Slots for the next step of our algorithms; SGLang's own way for others.

    SGLang gives every request as many tokens as two of the widest steps have, whatever is left of the context. Its
    rows have room for one of them behind the context, so a request that came near the context's end would write into
    the row of the next.

    Args:
        original: SGLang's function.
        batch: SGLang's `ScheduleBatch`, about to decode.
    """
    if not isinstance(batch.spec_algorithm, ChainAlgorithm):
        original(batch)
        return
    batch.maybe_evict_swa()
    if batch.sampling_info.penalizer_orchestrator.is_required:
        batch.cumulate_penalty_output_tokens()
    reserve, short = vendor.get_alloc_reserve_per_decode(), False
    last = batch.req_to_token_pool.req_to_token.shape[1]
    last -= last % batch.token_to_kv_pool_allocator.page_size
    for request in batch.reqs:
        request.decode_batch_idx += 1
        allocated = request.kv.kv_allocated_len
        short |= allocated < request.kv_committed_len + reserve and allocated < last
    if short:
        _allocate(batch, reserve + _ahead(batch), last)


def _ahead(batch: Any) -> int:
    pool, cache = batch.token_to_kv_pool_allocator, batch.tree_cache
    if cache.supports_swa():  # two kinds of slots, of which either may be short
        return 0
    free = pool.available_size() + cache.evictable_size()
    return AHEAD if SHARE * AHEAD * len(batch.reqs) <= free else 0


def _allocate(batch: Any, reserve: int, last: int) -> None:
    """Slots for `reserve` tokens behind those that are committed, in columns below `last`."""
    page = batch.token_to_kv_pool_allocator.page_size
    held, wanted = [], []
    for request in batch.reqs:
        allocated = request.kv.kv_allocated_len
        pages = -(-(request.kv_committed_len + reserve) // page)
        held.append(allocated)
        wanted.append(max(allocated, min(pages * page, last)))
    before, after = (torch.tensor(lengths, dtype=torch.int32) for lengths in (held, wanted))
    vendor.alloc_for_spec_decode(
        batch.tree_cache,
        batch.req_to_token_pool,
        reqs=batch.reqs,
        req_pool_indices=batch.req_pool_indices,
        # Waiting for the copies would be waiting for the step in flight.
        cur_kv_lens=before.to(batch.device, non_blocking=True),
        cur_kv_lens_cpu=before,
        nxt_kv_lens=after.to(batch.device, non_blocking=True),
        nxt_kv_lens_cpu=after,
        num_needed_tokens=sum(wanted) - sum(held),
        batch=batch,
    )
