"""The vectorised road on the tokenizer manager's side: a front door for whoever has texts or ids in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.front import FrontDoor, Instance
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.wire import BlockVectors

# What a request may say and still take this road. Anything else that is set needs SGLang's own.
_UNDERSTOOD = {
    "text",
    "input_ids",
    "dimensions",
    "rid",
    "priority",
    "log_metrics",
    "received_time",
    "sampling_params",
}


def after_init(_result: None, manager: Any, *_args: Any, **_kwargs: Any) -> None:
    """Give a tokenizer manager its front door, with the scheduler as the first instance."""
    args = manager.server_args
    manager.arctic_front = None
    if not args.enable_fast_embedding:  # of another engine in a process that has had one with the flag
        return
    manager.arctic_front = FrontDoor(
        step_tokens=args.embedding_step_tokens,
        max_tokens=manager.context_len - manager.num_reserved_tokens - 1,
    )
    manager.arctic_front.add(Instance("0", manager._dispatch_to_scheduler))
    manager._result_dispatcher += vendor.TypeBasedDispatcher([(BlockVectors, manager.arctic_front.answer)])


async def embed(manager: Any, rows: TokenRows, *, dimensions: int | None = None) -> np.ndarray:
    """Embed token rows on the manager's loop, in turn with pauses and weight updates. See `FrontDoor.embed`."""
    manager.auto_create_handle_loop()
    async with manager.is_pause_cond:
        await manager.is_pause_cond.wait_for(lambda: not manager.is_pause)
    async with manager.model_update_lock.reader_lock:
        return await manager.arctic_front.embed(rows, dimensions=dimensions)


def takes(request: Any) -> bool:
    """Whether a request to SGLang's tokenizer manager can take the vectorised road."""
    if not isinstance(request, vendor.EmbeddingReqInput):
        return False
    plain = vendor.EmbeddingReqInput()
    return all(
        getattr(request, name) == value for name, value in vars(plain).items() if name not in _UNDERSTOOD
    )


def around_generate_request(
    stock: Callable[..., AsyncIterator[Any]], manager: Any, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """Answer embedding requests of text or ids by the vectorised road, others by SGLang's own."""
    fast = manager.arctic_front is not None and takes(obj)
    return _answer(manager, obj) if fast else stock(manager, obj, request)


async def _answer(manager: Any, obj: Any) -> AsyncIterator[Any]:
    obj.normalize_batch_and_arguments()
    ids = obj.input_ids
    if obj.text is not None:
        texts = [obj.text] if obj.is_single else obj.text
        ids = manager.tokenizer(texts)["input_ids"]
    elif obj.is_single:
        ids = [ids]
    rows = TokenRows.from_lists(ids)
    vectors = await embed(manager, rows, dimensions=obj.dimensions)
    names = [obj.rid] if obj.is_single else obj.rid
    found = [
        {"embedding": vector, "meta_info": {"id": name, "finish_reason": None, "prompt_tokens": int(tokens)}}
        for vector, name, tokens in zip(vectors, names, rows.lengths, strict=True)
    ]
    yield found[0] if obj.is_single else found
