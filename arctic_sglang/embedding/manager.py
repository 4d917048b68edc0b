"""The vectorised road on the tokenizer manager's side: a front door for whoever has texts or ids in this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any

import numpy as np

from arctic_sglang.compat import vendor
from arctic_sglang.embedding import workers
from arctic_sglang.embedding.checkpoint import encoder_positions, prompt_text
from arctic_sglang.embedding.endpoint import diverted_call
from arctic_sglang.embedding.front import FrontDoor, Instance
from arctic_sglang.embedding.in_work import AbortedError, InWork
from arctic_sglang.embedding.openai_api import EmbeddingCall
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.service import EmbeddingService
from arctic_sglang.embedding.tokens import InputError, Tokenizing
from arctic_sglang.embedding.wire import BlockVectors

# What a request may say and still take this road. Anything else that is set needs SGLang's own.
_UNDERSTOOD = {
    "text",
    "input_ids",
    "dimensions",
    "rid",
    "log_metrics",
    "received_time",
    "sampling_params",
}
# A client that has gone is noticed so soon.
_LOOK_SECONDS = 1.0


def after_init(_result: None, manager: Any, *_args: Any, **_kwargs: Any) -> None:
    """Give a tokenizer manager its front door, with the scheduler as the first instance."""
    args = manager.server_args
    manager.arctic_front = None
    if not args.enable_fast_embedding:  # of another engine in a process that has had one with the flag
        return
    pooling = args._arctic.pooling
    # SGLang's own bounds are exclusive and would cost a text of the model's whole window its last token. Nor do they
    # know of the rows of a position table that stand for padding.
    limits = (
        manager.context_len,
        pooling and pooling.max_input_tokens,
        encoder_positions(manager.model_config.hf_config.to_dict()),
    )
    window = min(limit for limit in limits if limit)
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
    config, pooling = manager.model_config, manager.server_args._arctic.pooling
    if not config.is_matryoshka:
        msg = (
            f"dimensions is {dimensions}, and {config.model_path} does not support matryoshka dimensions, as far as "
            """its config.json says; --json-model-override-args '{"is_matryoshka": true}' says that it does"""
        )
        raise ValueError(msg)
    named = config.matryoshka_dimensions
    if named and dimensions not in named:
        msg = f"dimensions is {dimensions}; matryoshka_dimensions in config.json has {', '.join(map(str, named))}"
        raise ValueError(msg)
    width = pooling.dense[-1].out_features if pooling is not None and pooling.dense else config.hidden_size
    if not 1 <= dimensions <= width:
        msg = f"dimensions is {dimensions}; the model's vectors have {width}, so 1 to {width} are wanted"
        raise ValueError(msg)
    most = None if pooling is None else pooling.truncate_dim
    if most is not None and dimensions > most:
        msg = f"dimensions is {dimensions}, and the checkpoint's truncate_dim cuts its vectors to {most}; ask for fewer"
        raise ValueError(msg)


@contextmanager
def in_work(manager: Any, obj: Any, names: Sequence[str]) -> Iterator[InWork]:
    """Has SGLang list a request among those in work, so that it waits for it at its end, and can abort it.

    Args:
        manager: the tokenizer manager.
        obj: the request, for its dumps.
        names: request ids under which it is found; all rows end with any of them.

    Raises:
        ValueError: another request has one of the names.
    """
    states = manager.rid_to_state
    taken = next((name for name in names if name in states), None)
    if taken is not None:
        msg = f"Duplicate request ID detected: {taken}"
        raise ValueError(msg)
    times = vendor.APIServerReqTimeStats(disagg_mode=manager.disaggregation_mode)
    times.set_created_time(obj.received_time)
    state = _state_class()([], False, asyncio.Event(), obj, times)
    state.work = InWork()
    states.update(dict.fromkeys(names, state))
    try:
        yield state.work
    finally:
        for name in names:
            if states.get(name) is state:  # a health check takes its own away
                del states[name]


@cache
def _state_class() -> type:
    class State(vendor.ReqState):
        """SGLang's record of a request, which passes an abort on instead of keeping it to be looked at."""

        work: InWork

        @property
        def abort_requested(self) -> bool:
            return self.work.aborted

        @abort_requested.setter
        def abort_requested(self, value: bool) -> None:
            if value:  # SGLang's own __init__ says False
                self.work.abort()

    return State


def called(manager: Any, call: EmbeddingCall) -> AbstractContextManager[InWork]:
    """`in_work` for a request of our own endpoint, which has no name."""
    name = uuid.uuid4().hex
    obj = vendor.EmbeddingReqInput(rid=name, text=call.texts, input_ids=call.ids, dimensions=call.dimensions)
    return in_work(manager, obj, [name])


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
    call = diverted_call.get() or EmbeddingCall(None, None, None)
    if getattr(manager, "arctic_front", None) is not None and takes(obj):
        return _answer(manager, obj, request, call)
    if call.truncate or call.prompt_name is not None:
        msg = "truncate and prompt_name are not for a request with a routing key while requests are logged or traced"
        raise InputError(msg)
    return stock(manager, obj, request)


async def _answer(manager: Any, obj: Any, request: Any, call: EmbeddingCall) -> AsyncIterator[Any]:
    named = obj.rid is not None
    obj.normalize_batch_and_arguments()
    names = [obj.rid] if obj.is_single else obj.rid
    service = service_of(manager)
    truncate = call.truncate or manager.server_args.allow_auto_truncate
    what: dict[str, Any] = {"truncate": truncate, "dimensions": obj.dimensions}
    # Names that nobody gave nobody can ask for: one is enough to be waited for.
    with in_work(manager, obj, names if named else names[:1]) as work:
        if obj.text is not None:
            texts = [obj.text] if obj.is_single else obj.text
            embedding = service.embed_texts(texts, prompt_name=call.prompt_name, **what)
        else:
            embedding = service.embed_ids([obj.input_ids] if obj.is_single else obj.input_ids, **what)
        result = await work.result(embedding, None if request is None else _gone(request))
    if result is None:
        msg = f"the client of request {names[0]} is gone"
        raise AbortedError(msg)
    vectors, lengths = result
    # Lists for SGLang's routes, which hand them to JSON; a caller in this process gets rows of the one array.
    found = [
        {"embedding": vector, "meta_info": {"id": name, "finish_reason": None, "prompt_tokens": tokens}}
        for vector, name, tokens in zip(
            vectors if request is None else vectors.tolist(), names, lengths.tolist(), strict=True
        )
    ]
    yield found[0] if obj.is_single else found


async def _gone(request: Any) -> None:
    """Ends when the client of a request to SGLang's routes is gone."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if await request.is_disconnected():
            return
