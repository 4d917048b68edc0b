"""Puts the vectorised road's `/v1/embeddings` into SGLang's HTTP server, ahead of SGLang's own."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from starlette.routing import Route

from arctic_sglang.compat import vendor
from arctic_sglang.embedding import manager as road
from arctic_sglang.embedding.endpoint import App, EmbeddingsEndpoint, Receive, Scope, Send
from arctic_sglang.embedding.service import EmbeddingService
from arctic_sglang.embedding.tokens import Tokenizing

PATH = "/v1/embeddings"


def after_set_global_state(_result: None, state: Any) -> None:
    """Put the route into the server's application, in whichever process has it."""
    manager = state.tokenizer_manager
    if (
        getattr(manager, "arctic_front", None) is None
    ):  # SGLang's router of several tokenizer workers has none
        return
    routes = vendor.app.router.routes
    args = manager.server_args
    metrics = None
    if args.enable_metrics:
        from arctic_sglang.embedding.metrics import RoadMetrics  # its import must follow SGLang's set-up

        metrics = RoadMetrics(manager.served_model_name)
    endpoint = EmbeddingsEndpoint(
        service_of(manager),
        _stock(routes),
        model=manager.served_model_name,
        truncate=args.allow_auto_truncate,
        # SGLang's handler logs and traces; it takes the same road behind that, one row at a time.
        diverted=lambda: manager.request_logger.log_requests or manager.enable_trace,
        metrics=metrics,
    )
    routes.insert(
        0, Route(PATH, endpoint, methods=["POST"], name="arctic_embeddings", include_in_schema=False)
    )


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
            embed=partial(road.embed, manager),
            prompt_text=partial(_prompt_text, manager.server_args._arctic.pooling),
            check_dimensions=lambda n: manager._validate_for_matryoshka_dim(SimpleNamespace(dimensions=n)),
        )
    return found


def _prompt_text(pooling: Any, name: str | None) -> str:
    """The checkpoint's prompt of this name; for None its default prompt, or nothing."""
    prompts: dict[str, str] = getattr(pooling, "prompts", None) or {}
    wanted = getattr(pooling, "default_prompt_name", None) if name is None else name
    if wanted is None:
        return ""
    if wanted not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        msg = f"prompt name {wanted!r} is not one of the checkpoint's prompts; it has: {known}"
        raise ValueError(msg)
    return prompts[wanted]


def _stock(routes: list[Any]) -> App:
    """SGLang's own route of the path as an application."""
    route = next(r for r in routes if getattr(r, "path", None) == PATH)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        _, found = route.matches(scope)
        await route.handle({**scope, **found}, receive, send)

    return call
