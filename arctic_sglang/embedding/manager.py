"""The vectorised road on the tokenizer manager's side: a front door for whoever has texts or ids in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from arctic_sglang.compat import vendor
from arctic_sglang.embedding import workers
from arctic_sglang.embedding.checkpoint import prompt_text
from arctic_sglang.embedding.front import FrontDoor, Instance
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.service import EmbeddingService
from arctic_sglang.embedding.tokens import Tokenizing
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
    pooling = args._arctic.pooling
    # SGLang's own bounds are exclusive and would cost a text of the model's whole window its last token.
    window = min(manager.context_len, (pooling and pooling.max_input_tokens) or manager.context_len)
    manager.arctic_front = FrontDoor(step_tokens=args.embedding_step_tokens, max_tokens=window)
    manager.arctic_front.add(Instance("0", manager._dispatch_to_scheduler, vital=True))
    manager.arctic_replicas = workers.start(manager.arctic_front, args)
    manager._result_dispatcher += vendor.TypeBasedDispatcher([(BlockVectors, manager.arctic_front.answer)])


async def embed(manager: Any, rows: TokenRows, *, dimensions: int | None = None) -> np.ndarray:
    """Embed token rows on the manager's loop, in turn with pauses and weight updates. See `FrontDoor.embed`."""
    manager.auto_create_handle_loop()
    async with manager.is_pause_cond:
        await manager.is_pause_cond.wait_for(lambda: not manager.is_pause)
    async with manager.model_update_lock.reader_lock:
        return await manager.arctic_front.embed(rows, dimensions=dimensions)


def service_of(manager: Any) -> EmbeddingService:
    """The service of a tokenizer manager that has a front door, made at its first use."""
    found: EmbeddingService | None = getattr(manager, "arctic_service", None)
    if found is None:
        config, tokenizer = manager.model_config, manager.tokenizer
        end_token = tokenizer.eos_token_id if tokenizer is not None and config.is_embedding_gemma else None
        found = manager.arctic_service = EmbeddingService(
            manager.arctic_front,
            None if tokenizer is None else Tokenizing(tokenizer, end_token=end_token),
            vocabulary=config.vocab_size,
            embed=partial(embed, manager),
            prompt_text=partial(prompt_text, manager.server_args._arctic.pooling),
            check_dimensions=partial(_check_dimensions, manager),
        )
    return found


def _check_dimensions(manager: Any, dimensions: int) -> None:
    """Raise `ValueError` for a Matryoshka size that this model does not give."""
    manager._validate_for_matryoshka_dim(SimpleNamespace(dimensions=dimensions))
    pooling = manager.server_args._arctic.pooling
    most = None if pooling is None else pooling.truncate_dim
    if most is not None and dimensions > most:
        msg = f"dimensions is {dimensions}, and the checkpoint's truncate_dim cuts its vectors to {most}; ask for fewer"
        raise ValueError(msg)


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
    """Answer embedding requests of text or ids by the vectorised road, others by SGLang's own.

    A manager that this process had before the hook was in place has no front door, and no attribute for one.
    """
    fast = getattr(manager, "arctic_front", None) is not None and takes(obj)
    return _answer(manager, obj, listed=request is not None) if fast else stock(manager, obj, request)


async def _answer(manager: Any, obj: Any, *, listed: bool) -> AsyncIterator[Any]:
    obj.normalize_batch_and_arguments()
    service = service_of(manager)
    what = {"truncate": manager.server_args.allow_auto_truncate, "dimensions": obj.dimensions}
    if obj.text is not None:
        vectors, lengths = await service.embed_texts([obj.text] if obj.is_single else obj.text, **what)
    else:
        vectors, lengths = await service.embed_ids(
            [obj.input_ids] if obj.is_single else obj.input_ids, **what
        )
    names = [obj.rid] if obj.is_single else obj.rid
    # Lists for SGLang's routes, which hand them to JSON; a caller in this process gets rows of the one array.
    found = [
        {"embedding": vector, "meta_info": {"id": name, "finish_reason": None, "prompt_tokens": tokens}}
        for vector, name, tokens in zip(
            vectors.tolist() if listed else vectors, names, lengths.tolist(), strict=True
        )
    ]
    yield found[0] if obj.is_single else found
