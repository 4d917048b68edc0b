"""Puts the vectorised road's `/v1/embeddings` into SGLang's HTTP server, ahead of SGLang's own."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.routing import Route

from arctic_sglang.compat import vendor
from arctic_sglang.embedding.endpoint import App, EmbeddingsEndpoint, Receive, Scope, Send
from arctic_sglang.embedding.manager import called, service_of

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
        in_work=partial(called, manager),
        metrics=metrics,
    )
    routes.insert(
        0, Route(PATH, endpoint, methods=["POST"], name="arctic_embeddings", include_in_schema=False)
    )


def _stock(routes: list[Any]) -> App:
    """SGLang's own route of the path as an application."""
    route = next(r for r in routes if getattr(r, "path", None) == PATH)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        _, found = route.matches(scope)
        await route.handle({**scope, **found}, receive, send)

    return call
