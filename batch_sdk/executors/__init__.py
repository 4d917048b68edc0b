"""The executors' door: where a job's rows are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_sdk.engines.base import Engine
from batch_sdk.errors import OptionError, check_names
from batch_sdk.job import Job
from batch_sdk.look import Look
from batch_sdk.plan import Plan
from batch_sdk.runner import run_job
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source
from batch_sdk.summary import JobSummary

__all__ = ["EXECUTORS", "execute"]

EXECUTORS = ("local", "ray")
"""This process, or engines all over a Ray cluster."""


def execute(
    executor: str,
    options: Mapping[str, Any] | None,
    job: Job,
    plan: Plan,
    source: Source,
    sink: Sink,
    engine: Engine,
    *,
    look: Look,
    max_restarts: int,
) -> tuple[Any, JobSummary]:
    """Run a job where `executor` says.

    Args:
        executor: one of `EXECUTORS`.
        options: those of the executor: none for "local", see `RayOptions` for "ray".

    All others, what is returned and what is raised: see `run_job`.
    """
    check_names([executor], EXECUTORS, "executor")
    if executor == "local":
        if options:
            raise OptionError("executor_options with executor='local'", "executor='ray', or none")
        return run_job(job, plan, source, sink, engine, look=look, max_restarts=max_restarts)
    from batch_sdk.executors.ray import run_on_ray

    return run_on_ray(job, plan, source, sink, engine, options or {}, look=look, max_restarts=max_restarts)
