"""A job bound to one input: checked as far as possible without the engine, then completed with what it
says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import pyarrow as pa

from batch_sdk.answers import Answers
from batch_sdk.chunks import Chunk, EmbedChunk, GenerateChunk, Tally
from batch_sdk.embed_inputs import is_token_ids
from batch_sdk.engines.base import EngineInfo, Task
from batch_sdk.errors import EngineError, OptionError, PromptError
from batch_sdk.flow import MakeChunk
from batch_sdk.job import EmbedJob, GenerateJob, Job
from batch_sdk.messages import MessageColumn, MessageTemplates
from batch_sdk.prompts import PromptBuilder
from batch_sdk.row_sampling import RowSampling
from batch_sdk.schema import (
    check_embed_column,
    check_input,
    embed_fields,
    kept_fields,
    output_schema,
)


class Plan(ABC):
    """What to read, what to write, and how rows become requests.

    Attributes:
        task: what the engine has to be able to do.
        read: columns to read from the input; never empty.
        kept: columns passed through.
        provisional: the output's schema as far as known; the length of a vector may be wrong.
    """

    task: Task
    read: tuple[str, ...]
    provisional: pa.Schema

    def __init__(self, job: Job, schema: pa.Schema) -> None:
        check_input(schema)
        self._kept_fields = kept_fields(job, schema)
        self.kept = tuple(field.name for field in self._kept_fields)

    def _set_read(self, schema: pa.Schema, used: tuple[str, ...]) -> None:
        wanted = {*self.kept, *used}
        # A batch without columns has no length: one column at least carries the rows.
        self.read = tuple(name for name in schema.names if name in wanted) or (schema.names[0],)

    @abstractmethod
    def bind(self, info: EngineInfo, tally: Tally) -> tuple[pa.Schema, MakeChunk]:
        """Return the final output schema and the function that makes chunks.

        Raises:
            OptionError, PromptError, EngineError: the engine or the model lacks something that the job needs.
        """


class GeneratePlan(Plan):
    """A generate job and its input's schema. Raises `ColumnError` and `PromptError` for what does not fit."""

    task: Task = "generate"

    def __init__(self, job: GenerateJob, schema: pa.Schema) -> None:
        super().__init__(job, schema)
        self._job = job
        self._answers = Answers(job)
        extra = {"n": job.n} if job.n > 1 else {}
        extra |= self._answers.constraint.sampling
        self._sampling = RowSampling(job.sampling, job.sampling_columns or {}, extra, schema)
        self._prompts = _prompts(job, schema)
        self._set_read(schema, (*self._prompts.columns, *self._sampling.columns))
        self.provisional = output_schema(self._kept_fields, self._answers.fields, "response_column")

    def bind(self, info: EngineInfo, tally: Tally) -> tuple[pa.Schema, MakeChunk]:
        """Decide about the chat template."""
        job = self._job
        _refuse_lacking(job, info)
        if job.on_too_long != "error" and info.max_input_tokens is None:
            raise OptionError(
                f"on_too_long={job.on_too_long!r}, but the engine does not say how long an input may be",
                "an engine that does",
                "drop on_too_long, and engine options by which the engine cuts inputs itself",
            )
        chat = info.has_chat_template if job.chat == "auto" else bool(job.chat)
        chat = chat or job.messages is not None
        if not info.has_chat_template and (chat or job.system is not None):
            asked = "messages=" if job.messages is not None else "chat=True"
            asked = asked if job.system is None else "a system message"
            raise PromptError(
                f"{asked}, but the model {info.model!r} has no chat template",
                "a model with one",
                "pass chat=False (--chat off) and write all text into the prompt",
            )
        return self.provisional, partial(self._chunk, chat, tally)

    def _chunk(self, chat: bool, tally: Tally, position: int, batch: pa.RecordBatch) -> Chunk:
        return GenerateChunk(
            position,
            batch,
            self.kept,
            tally,
            columns=self._prompts.columns,
            build=partial(self._prompts.build, chat=chat),
            sampling=self._sampling,
            answers=self._answers,
            logprobs=self._job.logprobs,
            on_too_long=self._job.on_too_long,
        )


def _refuse_lacking(job: Job, info: EngineInfo) -> None:
    for name, lack in info.lacks.items():
        value = getattr(job, name, False)
        if value not in (False, "error"):
            raise OptionError(f"{name}={value!r} with engine {lack.engine!r}", lack.wanted, lack.remedy)


def _prompts(job: GenerateJob, schema: pa.Schema) -> PromptBuilder | MessageTemplates | MessageColumn:
    if isinstance(job.messages, str):
        return MessageColumn(job.messages, schema)
    if job.messages is not None:
        return MessageTemplates(job.messages, schema.names)
    assert job.prompt is not None
    return PromptBuilder(job.prompt, job.system, schema.names)


class EmbedPlan(Plan):
    """An embed job and its input's schema. Raises `ColumnError` for what does not fit."""

    task: Task = "embed"

    def __init__(self, job: EmbedJob, schema: pa.Schema) -> None:
        super().__init__(job, schema)
        self._job = job
        check_embed_column(schema, job.column)
        self._ids = is_token_ids(schema.field(job.column).type)
        if self._ids and job.prompt_name is not None:
            raise OptionError(
                f"prompt_name={job.prompt_name!r} with token ids in column {job.column!r}",
                "a column of texts",
                "put the prompt's ids into the lists",
            )
        self._set_read(schema, (job.column,))
        self.provisional = self._with_size(job.dimensions or 1)

    @property
    def cuts(self) -> bool:
        """Whether the job says how many floats are kept of a vector, so that `provisional` is final."""
        return self._job.dimensions is not None

    def schema(self, info: EngineInfo) -> pa.Schema:
        """Return the final output schema.

        Raises:
            EngineError: the model does not embed.
            OptionError: its vectors do not have as many `dimensions`.
        """
        size, wanted = info.embedding_size, self._job.dimensions
        if size is None:
            raise EngineError(f"the model {info.model!r} gives no embeddings", "an embedding model")
        if wanted is not None and wanted > size:
            raise OptionError(
                f"dimensions={wanted}, but the vectors of the model {info.model!r} have {size}",
                f"a whole number from 1 to {size}",
            )
        return self._with_size(wanted or size)

    def _with_size(self, size: int) -> pa.Schema:
        return output_schema(self._kept_fields, embed_fields(self._job, size), "embedding_column")

    def bind(self, info: EngineInfo, tally: Tally) -> tuple[pa.Schema, MakeChunk]:
        """Put the length of the vectors, the text of the prompt and the size of the blocks in."""
        _refuse_lacking(self._job, info)
        schema = self.schema(info)
        prompt = "" if self._ids else _prompt_text(self._job.prompt_name, info)
        return schema, partial(self._chunk, info, prompt, tally)

    def _chunk(
        self, info: EngineInfo, prompt: str, tally: Tally, position: int, batch: pa.RecordBatch
    ) -> Chunk:
        job = self._job
        size = info.embedding_size or 0
        dimensions = job.dimensions or size
        # Decided by the model, not vector by vector: those of a model that does not normalise have lengths near 1 by
        # chance, and its rows would get two scales. Whole vectors stay as the model gives them.
        cut_unit_vectors = dimensions < size and info.unit_vectors
        return EmbedChunk(
            position,
            batch,
            self.kept,
            tally,
            column=job.column,
            size=size,
            dimensions=dimensions,
            block_rows=job.block_rows_of(info.block_rows),
            normalize=job.normalize or cut_unit_vectors,
            truncate=job.truncate,
            prompt=prompt,
            embedding_type=job.embedding_type,
        )


def _prompt_text(name: str | None, info: EngineInfo) -> str:
    if info.checkpoint is None:
        if name is None:
            return ""
        raise OptionError(
            f"prompt_name={name!r}, but the engine knows no prompts of the model {info.model!r}",
            "engine 'sglang' and a sentence-transformers checkpoint",
            "drop prompt_name, and write the prompt into the texts",
        )
    # The engine that read the checkpoint has imported it already; other jobs need none of it.
    from arctic_sglang.embedding.checkpoint import prompt_text

    try:
        return prompt_text(info.checkpoint, name)
    except ValueError as error:
        raise OptionError(f"prompt_name={name!r}: {error}") from error
