"""The two functions that most people need."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import pyarrow as pa

from batch_sdk.engines import Engine, create_engine, engine_name
from batch_sdk.engines.base import Task
from batch_sdk.errors import OptionError, check_names
from batch_sdk.executors import execute
from batch_sdk.job import EMBED_BATCH_ROWS, EMBED_WINDOW_ROWS, ChatMode, EmbedJob, GenerateJob, Job
from batch_sdk.look import Look
from batch_sdk.manifest import Manifest, describe_job
from batch_sdk.messages import Messages
from batch_sdk.plan import EmbedPlan, GeneratePlan
from batch_sdk.sampling import SamplingOptions, SamplingParams
from batch_sdk.sinks import Resume, open_sink
from batch_sdk.sources import Source, open_source
from batch_sdk.summary import BatchResult, JobSummary
from batch_sdk.truncation import OnTooLong
from batch_sdk.vectors import VectorType

Output = str | os.PathLike[str] | Callable[[pa.RecordBatch], Any] | None


def generate(
    data: Any,
    *,
    prompt: str | None = None,
    messages: Messages | None = None,
    model: str | Engine,
    output: Output = None,
    engine: str = "sglang",
    engine_options: dict[str, Any] | None = None,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    system: str | None = None,
    chat: ChatMode = "auto",
    response_format: Any = None,
    regex: str | None = None,
    ebnf: str | None = None,
    choice: Sequence[str] | None = None,
    n: int = 1,
    logprobs: bool = False,
    on_too_long: OnTooLong = "error",
    sampling_columns: Mapping[str, str] | None = None,
    order: Literal["table", "prefix"] = "table",
    dedupe: bool = False,
    keep: Sequence[str] | None = None,
    response_column: str = "response",
    details_prefix: str = "",
    window_rows: int = 2048,
    batch_rows: int = 1024,
    limit_rows: int | None = None,
    overwrite: bool = False,
    resume: Resume = False,
    rows_per_file: int = 100_000,
    part_seconds: float = 300.0,
    max_restarts: int = 6,
    progress: bool | None = None,
    report: str | os.PathLike[str] | None = None,
    metrics_port: int | None = None,
    return_summary: bool = False,
    **sampling: Unpack[SamplingOptions],
) -> Any:
    """Generate one text for every row of a table.

    The output has the input's rows in the input's order, the columns of `keep`, and: the response (string, or
    the type of `response_format`), `prompt_tokens` and `completion_tokens` (int32), `finish_reason` (string),
    `error` (struct of kind and message, null where the row is fine). A row without a result has nulls and an
    error; it never stops the job.

    Args:
        data: a Polars DataFrame or LazyFrame, a pyarrow Table, RecordBatch, RecordBatchReader or Dataset, anything
            with `__arrow_c_stream__`, or a path, URL, glob, directory or list of Parquet, Arrow, JSONL, CSV
            or TSV files.
        prompt: Jinja2 template over the columns, e.g. `"Summarise: {{ body }}"`; `row['any name']` reaches
            columns whose names are no identifiers. Printing a null makes the row a `null_input` error; `{{ x
            or '' }}` does not.
        messages: instead of `prompt`, a whole chat: dicts of `role` and `content`, a template, or the name of
            a column that holds lists of such structs. Goes through the model's chat template.
        model: path or hub name; or a started `Engine`, which then serves this call and is left running.
        output: a path or URL ending in `.parquet`, `.arrow`, `.jsonl`, `.jsonl.gz` or `.jsonl.zst` for one
            file, any other path for a directory of Parquet parts, None for a table in memory. Or a function: it is
            called with each `pyarrow.RecordBatch` in order, and the job waits for it.
        engine: "sglang", "http" or "dummy".
        engine_options: the engine's own options; for "sglang" any argument of `sglang.Engine`, for "http" those
            of `HttpOptions`.
        executor: "local", or "ray" for engines all over a Ray cluster; the output is a directory then.
        executor_options: of "ray": `replicas`, `address`, `gpus_per_replica`, ...: see `RayOptions`.
        system: template of a system message.
        chat: True sends prompts through the model's chat template, False as they are, "auto" does what the
            model has.
        response_format: a pydantic model class, a JSON schema as a dict, or the path of a JSON schema file.
            Responses are held to it, and the response column is a struct of its type. A response that does
            not fit, because `max_new_tokens` cut it for one, is an `invalid_output` error.
        regex: a regular expression that responses match.
        ebnf: a grammar that responses follow. Regular expression and grammar in the dialect of the engine's
            grammar backend; their responses stay strings and are not checked again.
        choice: the texts that a response may be. One at most of these four.
        n: samples of a row; over 1, the response and `finish_reason` are lists and `completion_tokens` is the
            sum. A row of which one sample has an error has an error.
        logprobs: add the columns `logprobs` (list<float32>) and `token_ids` (list<int32>) of the chosen tokens.
        on_too_long: "error" makes a prompt that leaves no room for `max_new_tokens` a `too_long` error;
            "truncate_left", "truncate_right" and "truncate_middle" cut its tokens there, and add the column
            `prompt_truncated` (int32, tokens cut).
        sampling_columns: sampling option -> column with its value row by row; null means the job's own value.
        order: "prefix" runs rows that share a long prefix together within the window, so that the engine's prefix
            cache serves them; give it a large `window_rows`, of which a quarter is at the engine. The output's
            order stays the table's.
        dedupe: compute rows with the same prompt and sampling once, as long as they are within the window or among
            the last 10,000 different ones (fewer if answers are long). With a temperature they get the same sample.
        keep: input columns to pass through; None is all, [] is none.
        response_column: name of the response column.
        details_prefix: put before the names of the other new columns.
        window_rows: how far the engine's newest row may run ahead of the oldest unfinished one.
        batch_rows: rows of an output record batch.
        limit_rows: stop after so many input rows.
        overwrite: replace an existing output. A directory's old parts go as soon as the engine is up.
        resume: go on with the unfinished job in the directory `output`, which has to be the same one; begin
            if there is none. "errors" computes the error rows of a finished one again, and only those.
        rows_per_file: rows of a part file at most, if `output` is a directory.
        part_seconds: a part file is closed after so many seconds, even if it has fewer rows.
        max_restarts: how often an engine that dies is started again to find the row that kills it, which
            ends as `engine_died`; 0 stops at the first death. Not for an engine that you started.
        progress: show a progress bar on stderr; None shows it on a terminal.
        report: write what came of the run, and how it went over time, to files of this name with `.json` and
            `.html` added, at its end or where an error or Ctrl-C ends it. Replaces an older report.
        metrics_port: serve figures for Prometheus at this port while the job runs, e.g. 9400.
        return_summary: without `output`, return `BatchResult(table, summary)` instead of the table alone.
        **sampling: `max_new_tokens`, `temperature`, `top_p`, `stop`, ...: see `SamplingParams`.

    Returns:
        With `output`: the `JobSummary`. Without: a Polars DataFrame for a Polars input, else a
        `pyarrow.Table`.

    Raises:
        BatchError: the job could not start (`OptionError`, `SourceError`, `ColumnError`, `PromptError`,
            `OutputError`) or the engine died (`EngineError`). A file at `output` was not written then; a
            directory keeps the rows that are done, and `resume` adds the others.
    """
    check_names(sampling, [*SamplingOptions.__annotations__, *_named_options(generate)], "option of generate")
    job = GenerateJob(
        model=_model_name(model),
        keep=keep,
        details_prefix=details_prefix,
        window_rows=window_rows,
        batch_rows=batch_rows,
        limit_rows=limit_rows,
        prompt=prompt,
        messages=messages,
        system=system,
        chat=chat,
        response_format=response_format,
        regex=regex,
        ebnf=ebnf,
        choice=choice,
        n=n,
        logprobs=logprobs,
        on_too_long=on_too_long,
        order=order,
        dedupe=dedupe,
        sampling_columns=sampling_columns,
        sampling=SamplingParams.from_mapping(sampling),
        response_column=response_column,
    )
    source = open_source(data)
    plan = GeneratePlan(job, source.schema)
    runner = _engine(model, engine, engine_options, plan.task)
    sink = open_sink(
        output,
        source,
        partial(_describe, job, source, runner, rows_per_file),
        overwrite=overwrite,
        resume=resume,
        rows_per_file=rows_per_file,
        part_seconds=part_seconds,
    )
    look = Look(
        progress=progress, report=report, metrics_port=metrics_port, engine_options=runner.engine_options
    )
    where = executor, executor_options
    result, summary = execute(*where, job, plan, source, sink, runner, look=look, max_restarts=max_restarts)
    return _answer(output, result, summary, return_summary)


def embed(
    data: Any,
    *,
    column: str,
    model: str | Engine,
    output: Output = None,
    engine: str = "sglang",
    engine_options: dict[str, Any] | None = None,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    normalize: bool = False,
    dimensions: int | None = None,
    truncate: bool = False,
    prompt_name: str | None = None,
    keep: Sequence[str] | None = None,
    embedding_column: str = "embedding",
    embedding_type: VectorType = "float32",
    details_prefix: str = "",
    window_rows: int = EMBED_WINDOW_ROWS,
    batch_rows: int = EMBED_BATCH_ROWS,
    block_rows: int | None = None,
    limit_rows: int | None = None,
    overwrite: bool = False,
    resume: Resume = False,
    rows_per_file: int = 100_000,
    part_seconds: float = 300.0,
    max_restarts: int = 6,
    progress: bool | None = None,
    report: str | os.PathLike[str] | None = None,
    metrics_port: int | None = None,
    return_summary: bool = False,
) -> Any:
    """Compute one vector for every row of a table.

    The output has the input's rows in the input's order, the columns of `keep`, and: the embedding
    (FixedSizeList<float32, d>), `prompt_tokens` (int32), `error` (struct of kind and message, null where the
    row is fine).

    Args:
        column: the column with the texts; or with lists of token ids (int32, int64), which the model gets as they
            are.
        normalize: scale every vector to length 1 here, whatever the model's own pooling does.
        dimensions: keep so many components of a vector, the first ones (Matryoshka), scaled to length 1 again where the
            model's vectors are of length 1. From 1 to the model's own; None keeps all. It is done here, for any engine
            and model: whether a model was trained for it is for you to know.
        truncate: cut texts that are longer than the model's window, as sentence-transformers does, and lists of ids to
            their first. By default such a row is a `too_long` error.
        prompt_name: prompt of the checkpoint ("query", say) to put in front of every text. By default that is the
            checkpoint's own default, as in sentence-transformers; most have none. Engine "sglang" alone.
        embedding_column: name of the vector column.
        embedding_type: "float32"; "float16"; "int8", each vector divided by a scale of its own, in the column
            `embedding_scale` (float32); "binary", one bit a component, set where it is above 0, eight in a byte,
            the first in its highest bit (FixedSizeList<uint8>).
        block_rows: rows sent to the engine as one request; None leaves it to the engine. With `window_rows` and
            `batch_rows` it changes the pace, not the output.

    All other arguments, the return value and the errors are those of `generate`.
    """
    job = EmbedJob(
        model=_model_name(model),
        keep=keep,
        details_prefix=details_prefix,
        window_rows=window_rows,
        batch_rows=batch_rows,
        limit_rows=limit_rows,
        column=column,
        normalize=normalize,
        dimensions=dimensions,
        truncate=truncate,
        prompt_name=prompt_name,
        embedding_column=embedding_column,
        embedding_type=embedding_type,
        block_rows=block_rows,
    )
    source = open_source(data)
    plan = EmbedPlan(job, source.schema)
    runner = _engine(model, engine, engine_options, plan.task)
    sink = open_sink(
        output,
        source,
        partial(_describe, job, source, runner, rows_per_file),
        overwrite=overwrite,
        resume=resume,
        rows_per_file=rows_per_file,
        part_seconds=part_seconds,
    )
    look = Look(
        progress=progress, report=report, metrics_port=metrics_port, engine_options=runner.engine_options
    )
    where = executor, executor_options
    result, summary = execute(*where, job, plan, source, sink, runner, look=look, max_restarts=max_restarts)
    return _answer(output, result, summary, return_summary)


def _named_options(function: Any) -> list[str]:
    kinds = inspect.signature(function).parameters.items()
    return [name for name, parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _model_name(model: str | Engine) -> str:
    return model.model if isinstance(model, Engine) else model


def _engine(model: str | Engine, name: str, options: dict[str, Any] | None, task: Task) -> Engine:
    if not isinstance(model, Engine):
        return create_engine(name, model=model, task=task, options=options)
    if not model.started:
        raise OptionError(
            "model= is an engine that is not started",
            "a running one",
            "write: with create_engine(...) as engine: generate(..., model=engine)",
        )
    if model.task != task:
        raise OptionError(f"model= is an engine started for {model.task!r}", f"one started for {task!r}")
    if options:
        raise OptionError(
            "engine_options together with a running engine", remedy="give them to create_engine(...) instead"
        )
    return model


def _describe(job: Job, source: Source, engine: Engine, rows_per_file: int) -> Manifest:
    return describe_job(
        job,
        source,
        engine=engine_name(engine),
        engine_options=engine.engine_options,
        rows_per_file=rows_per_file,
    )


def _answer(output: Output, result: Any, summary: JobSummary, return_summary: bool) -> Any:
    if output is not None:
        return summary
    return BatchResult(result, summary) if return_summary else result
