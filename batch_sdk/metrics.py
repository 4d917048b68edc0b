"""The figures of a run for Prometheus, over HTTP, as long as the run takes.

They are read from the run when somebody asks for them: rows cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from batch_sdk.errors import OptionError
from batch_sdk.figures import Figures
from batch_sdk.report.facts import Facts

_PREFIX = "arctic_batch"


class RunCollector(Collector):
    """Turns a run's figures into metrics. Counters are of this run; what earlier ones did is a gauge."""

    def __init__(self, figures: Figures, facts: Facts) -> None:
        self._figures = figures
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        figures, tally, earlier = self._figures, self._figures.tally, self._figures.earlier
        for name, value, said in (
            ("rows", figures.rows, "Rows finished, error rows among them"),
            ("prompt_tokens", tally.prompt_tokens - earlier.prompt_tokens, "Prompt tokens of finished rows"),
            ("completion_tokens", tally.completion_tokens - earlier.completion_tokens, "Tokens generated"),
            ("cached_prompt_tokens", tally.cached_tokens, "Prompt tokens that were in the prefix cache"),
            ("engine_restarts", figures.restarts, "Restarts of an engine that died"),
        ):
            if value is not None:
                yield CounterMetricFamily(f"{_PREFIX}_{name}", said, value=value)
        errors = CounterMetricFamily(f"{_PREFIX}_error_rows", "Rows without a result", labels=["kind"])
        for kind, rows in dict(tally.errors).items():
            errors.add_metric([kind], rows - earlier.errors[kind])
        yield errors
        for name, value, said in (
            (
                "rows_in_flight",
                figures.rows_in_flight,
                "Rows handed out for the engine, without a result yet",
            ),
            ("rows_before", earlier.rows, "Rows that earlier runs had done"),
            ("rows_expected", self._facts.total_rows, "Rows of the job in the end"),
            ("engine_ready", int(figures.ready is not None), "1 when the engine has started"),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"{_PREFIX}_{name}", said, value=value)
        facts = self._facts
        known = {"command": facts.command, "model": str(facts.job["model"]), "engine": facts.engine}
        known["output"] = facts.output or ""
        yield InfoMetricFamily(f"{_PREFIX}_job", "The job that runs", value=known)


def check_port(port: object) -> None:
    """Raise `OptionError` unless it is the number of a port that can be listened on."""
    if type(port) is not int or not 1 <= port <= 65535:
        raise OptionError(f"metrics_port={port!r}", "a port's number, 1 to 65535")


@contextmanager
def serving(port: int, figures: Figures, facts: Facts) -> Iterator[None]:
    """Serve the metrics on all of the machine's addresses until the block is left.

    Raises:
        OptionError: the port is taken, or not this user's to take.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(figures, facts))
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise OptionError(f"metrics_port={port}: {error.strerror}", "a port that is free") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
