"""Prometheus' figures of the vectorised road of `/v1/embeddings`, which SGLang's own counters do not see."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

_PREFIX = "arctic:embedding"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class RoadMetrics:
    """Requests, rows, tokens and seconds. Make it once a process: names are unique in a registry.

    Args:
        model: value of the label `model_name`, as in SGLang's own metrics.
        registry: where they are listed; SGLang serves the default one at `/metrics`.
    """

    def __init__(self, model: str, *, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ["model_name"]
        self._model = model
        self._requests = Counter(
            f"{_PREFIX}_requests_total",
            "Requests to /v1/embeddings that took the vectorised road: ok, refused, failed, gone, aborted",
            [*labels, "outcome"],
            registry=registry,
        )
        self._rows = Counter(f"{_PREFIX}_rows_total", "Rows embedded", labels, registry=registry).labels(
            model
        )
        self._tokens = Counter(
            f"{_PREFIX}_prompt_tokens_total", "Tokens of rows embedded", labels, registry=registry
        ).labels(model)
        self._seconds = Histogram(
            f"{_PREFIX}_request_seconds",
            "From a request's arrival to its answer's way out",
            labels,
            buckets=_SECONDS,
            registry=registry,
        ).labels(model)

    def observe(self, outcome: str, *, rows: int, tokens: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(self._model, outcome).inc()
        self._rows.inc(rows)
        self._tokens.inc(tokens)
        self._seconds.observe(seconds)
