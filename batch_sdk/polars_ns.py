"""`frame.arctic.generate(...)` and `frame.arctic.embed(...)` on Polars' DataFrame and LazyFrame.

Importing this module registers the namespace, and `import batch_sdk` imports it: a tenth of a second for those who
have no frames.
"""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import polars as pl

from batch_sdk import api
from batch_sdk.engines import Engine, create_engine
from batch_sdk.engines.base import Task
from batch_sdk.errors import OptionError, check_names
from batch_sdk.job import EmbedJob, GenerateJob, Job
from batch_sdk.polars_lazy import EngineLender, lazy_job
from batch_sdk.sampling import SamplingOptions, SamplingParams

# What a lazy frame has its own words for: option of the eager functions -> Polars' way.
_POLARS_WAY = {
    "output": "sink_parquet(...) at the end of the query",
    "overwrite": "sink_parquet(...) at the end of the query",
    "rows_per_file": "sink_parquet(...) with a partitioning",
    "limit_rows": "head(n) before or after",
    "progress": "batch_sdk.generate or batch_sdk.embed, which show a progress bar",
    "report": "batch_sdk.generate or batch_sdk.embed, which write one",
    "metrics_port": "batch_sdk.generate or batch_sdk.embed, which serve them",
    "return_summary": "batch_sdk.generate or batch_sdk.embed, which return a summary",
}


@pl.api.register_dataframe_namespace("arctic")
class FrameNamespace:
    """`frame.arctic`: `batch_sdk.generate` and `batch_sdk.embed` with the frame as their input."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def generate(self, prompt: str, *, model: str | Engine, **options: Any) -> Any:
        """Generate one text for every row, at once; options and errors are those of `batch_sdk.generate`."""
        return api.generate(self._frame, prompt=prompt, model=model, **options)

    def embed(self, column: str, *, model: str | Engine, **options: Any) -> Any:
        """Compute one vector for every row, at once; options and errors are those of `batch_sdk.embed`."""
        check_names(options, api._named_options(api.embed), "option of embed")
        return api.embed(self._frame, column=column, model=model, **options)


@pl.api.register_lazyframe_namespace("arctic")
class LazyNamespace:
    """`lazy_frame.arctic`: the model as a step of a query.

    Nothing runs before the query does. Then rows stream through the model in their order. Filters on
    input columns, `head` and `select` are applied before the model, so that it never sees what they drop;
    a query that asks for no new column does not start the engine.

    Pass a started `Engine` as `model` where the query runs more than once, or where the model is large.
    Otherwise each run starts an engine, in whichever thread Polars runs the step, and ends it.
    """

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    def generate(
        self,
        prompt: str,
        *,
        model: str | Engine,
        engine: str = "sglang",
        engine_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> pl.LazyFrame:
        """Add one generated text for every row.

        Args:
            prompt: see `batch_sdk.generate`, as for all other arguments; what shapes a file or a return value
                (`output`, `limit_rows`, `progress`, ...) is Polars' business here.
            model: path or hub name, or a started engine.
            engine: "sglang", "http" or "dummy".
            engine_options: the engine's own options.
            **options: fields of `GenerateJob` and sampling parameters.

        Raises:
            BatchError: an option, the template or a column is wrong. What goes wrong later is raised by the
                query.
        """
        job_names = _job_options(GenerateJob, ("sampling",))
        _check(options, [*job_names, *SamplingOptions.__annotations__], "generate")
        sampling = {name: value for name, value in options.items() if name not in job_names}
        job = GenerateJob(
            model=api._model_name(model),
            prompt=prompt,
            sampling=SamplingParams.from_mapping(sampling),
            **{name: value for name, value in options.items() if name in job_names},
        )
        return lazy_job(self._frame, job, _lender(model, engine, engine_options, "generate"))

    def embed(
        self,
        column: str,
        *,
        model: str | Engine,
        size: int | None = None,
        engine: str = "sglang",
        engine_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> pl.LazyFrame:
        """Add one vector for every row.

        Args:
            column: the column with the texts.
            model: path or hub name, or a started engine.
            size: floats in a vector of the model's. Polars wants to know how many there will be before the query
                runs: without `size` or `dimensions`, and without a started engine, the first question for the
                schema starts the engine, which the run then uses.
            engine: "sglang", "http" or "dummy".
            engine_options: the engine's own options.
            **options: fields of `EmbedJob`.

        Raises:
            BatchError: an option or a column is wrong. What goes wrong later is raised by the query, a wrong
                `size` among it.
        """
        job_names = _job_options(EmbedJob, ("column",))
        _check(options, job_names, "embed")
        if size is not None and (type(size) is not int or size < 1):
            raise OptionError(f"size={size!r}", "the number of floats in a vector, or None")
        job = EmbedJob(model=api._model_name(model), column=column, **options)
        return lazy_job(self._frame, job, _lender(model, engine, engine_options, "embed"), size)


def _job_options(kind: type[Job], other: tuple[str, ...]) -> list[str]:
    taken = {"model", "prompt", "limit_rows", *other}
    return [field.name for field in fields(kind) if field.name not in taken]


def _check(options: dict[str, Any], known: list[str], method: str) -> None:
    for name in options:
        if name in _POLARS_WAY:
            raise OptionError(f"option {name!r} of a lazy {method}", f"Polars' own way: {_POLARS_WAY[name]}")
    check_names(options, known, f"option of {method}")


def _lender(model: str | Engine, name: str, options: dict[str, Any] | None, task: Task) -> EngineLender:
    # Checks at once what the eager functions check: that a running engine fits, and that the options exist.
    engine = api._engine(model, name, options, task)
    if isinstance(model, Engine):
        return EngineLender(given=engine)
    return EngineLender(make=partial(create_engine, name, model=model, task=task, options=options))
