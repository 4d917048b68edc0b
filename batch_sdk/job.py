"""What a job is: the frozen, plain-data description of everything that shapes its output.

A job holds no table, no engine and no open file, so that it can be printed, compared, sent to another process
and, one day, written into a manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from batch_sdk.errors import OptionError
from batch_sdk.messages import Messages, check_messages
from batch_sdk.row_sampling import check_sampling_columns
from batch_sdk.sampling import SamplingParams
from batch_sdk.structured import check_constraints
from batch_sdk.truncation import ON_TOO_LONG, OnTooLong
from batch_sdk.vectors import VECTOR_TYPES, VectorType

ChatMode = bool | Literal["auto"]

# Four blocks of the largest that an engine prefers: one being tokenised, two at the engine, one being written.
EMBED_BATCH_ROWS = 4096
EMBED_WINDOW_ROWS = 4 * EMBED_BATCH_ROWS


def _positive(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise OptionError(f"{name}={value!r}", "a whole number from 1")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise OptionError(f"{name}={value!r}", "a string that is not empty")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The part that all jobs share. Use `GenerateJob` or `EmbedJob`.

    Attributes:
        model: the model's path or hub name.
        keep: input columns that are passed through, in this order; None is all of them.
        details_prefix: put before the names of the columns that accompany the result (`prompt_tokens`,
            `error`, ...).
        window_rows: how far the newest submitted row may run ahead of the oldest unfinished one. Bounds
            memory, and how many rows the engine can work on at once.
        batch_rows: rows of an output record batch (the last one may have fewer).
        limit_rows: stop after this many input rows; None is all of them.
    """

    model: str
    keep: Sequence[str] | None = None
    details_prefix: str = ""
    window_rows: int = 2048
    batch_rows: int = 1024
    limit_rows: int | None = None

    def __post_init__(self) -> None:
        _text("model", self.model)
        _positive("window_rows", self.window_rows)
        _positive("batch_rows", self.batch_rows)
        if self.limit_rows is not None:
            _positive("limit_rows", self.limit_rows)
        if not isinstance(self.details_prefix, str):
            raise OptionError(f"details_prefix={self.details_prefix!r}", "a string")
        if self.keep is None:
            return
        good = isinstance(self.keep, Sequence) and not isinstance(self.keep, str)
        if not good or not all(isinstance(name, str) for name in self.keep):
            raise OptionError(f"keep={self.keep!r}", "a list of column names, or None for all")
        if len(set(self.keep)) != len(self.keep):
            raise OptionError(f"keep={list(self.keep)!r}", "each column once")
        object.__setattr__(self, "keep", tuple(self.keep))


@dataclass(frozen=True, kw_only=True)
class GenerateJob(Job):
    """One generated text per row.

    Attributes:
        prompt: Jinja2 template over the columns; or None, and `messages` instead.
        messages: a whole chat: `{"role", "content"}` dicts whose contents are templates, or the name of a
            column with a list of such structs.
        system: Jinja2 template of the system message, or None. Needs a chat template, so `chat` may not be
            False.
        chat: True sends the prompt as a user message through the model's chat template, False sends it as it
            is, "auto" does the first where the model has a chat template.
        sampling: the same for all rows.
        sampling_columns: sampling option -> column that holds it row by row; a null means `sampling`'s value.
        n: samples of every row; over 1, the response column is a list.
        logprobs: add the chosen tokens' ids and log-probabilities.
        response_format: a pydantic model, or a JSON schema as a dict or (on construction) a file's path.
        regex: regular expression that every response matches, in the dialect of the engine's grammar backend.
        ebnf: grammar of every response, in that dialect.
        choice: the texts that a response may be. Of these last four, one at most.
        on_too_long: "error" makes a prompt that is too long a `too_long` error; the others cut its tokens.
        order: "prefix" runs rows that share a long prefix together, for the engine's prefix cache; "table" as they
            come. The output's order is the table's either way.
        dedupe: compute rows with the same prompt and sampling once, as far as they are near each other.
        response_column: name of the column with the generated text.
    """

    prompt: str | None = None
    messages: Messages | None = None
    system: str | None = None
    chat: ChatMode = "auto"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    sampling_columns: Mapping[str, str] | None = None
    n: int = 1
    logprobs: bool = False
    response_format: Any = None
    regex: str | None = None
    ebnf: str | None = None
    choice: Sequence[str] | None = None
    on_too_long: OnTooLong = "error"
    order: Literal["table", "prefix"] = "table"
    dedupe: bool = False
    response_column: str = "response"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_prompt()
        self._check_output()
        _text("response_column", self.response_column)
        if self.order not in ("table", "prefix"):
            raise OptionError(f"order={self.order!r}", "'table' or 'prefix'")
        if not isinstance(self.dedupe, bool):
            raise OptionError(f"dedupe={self.dedupe!r}", "True or False")
        if self.chat not in (True, False, "auto") or (
            isinstance(self.chat, int) and type(self.chat) is not bool
        ):
            raise OptionError(f"chat={self.chat!r}", "True, False or 'auto'")
        if self.system is not None:
            _text("system", self.system)
            if self.chat is False:
                raise OptionError(
                    "a system message with chat=False",
                    "a chat template to put it into",
                    "drop chat=False, or write the system text into the prompt",
                )

    def _check_prompt(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            given = (
                "neither prompt= nor messages=" if self.prompt is None else "prompt= together with messages="
            )
            raise OptionError(given, "one of them")
        if self.messages is None:
            _text("prompt", self.prompt)
            return
        object.__setattr__(self, "messages", check_messages(self.messages))
        if self.system is not None:
            raise OptionError("system= together with messages=", 'a message with "role": "system"')
        if self.chat is False:
            raise OptionError(
                "messages= with chat=False", "a chat template to put them into", "drop chat=False"
            )

    def _check_output(self) -> None:
        _positive("n", self.n)
        if not isinstance(self.logprobs, bool):
            raise OptionError(f"logprobs={self.logprobs!r}", "True or False")
        if self.on_too_long not in ON_TOO_LONG:
            raise OptionError(f"on_too_long={self.on_too_long!r}", f"one of: {', '.join(ON_TOO_LONG)}")
        columns = check_sampling_columns(self.sampling_columns)
        object.__setattr__(self, "sampling_columns", columns)
        if self.n > 1 and self.sampling.temperature == 0 and "temperature" not in columns:
            raise OptionError(f"n={self.n} with temperature=0", "a temperature at which samples differ")
        if self.n > 1 and (self.sampling.seed is not None or "seed" in columns):
            raise OptionError(
                f"n={self.n} with a seed, which would make all samples of a row the same",
                "n without a seed",
                "for samples that can be repeated, repeat the rows and give each a seed by sampling_columns",
            )
        given = check_constraints(self.response_format, self.regex, self.ebnf, self.choice)
        object.__setattr__(self, "response_format", given[0])
        object.__setattr__(self, "choice", given[1])


@dataclass(frozen=True, kw_only=True)
class EmbedJob(Job):
    """One vector per row.

    Attributes:
        column: the column of texts, or of lists of token ids.
        normalize: scale every vector to length 1 here, whatever the model's own pooling does.
        dimensions: components of a vector to keep, the first ones (Matryoshka), scaled to length 1 again where the
            model's vectors are; None: all.
        truncate: cut a text that is longer than the model's window, instead of a `too_long` error.
        prompt_name: prompt of the checkpoint to put in front of every text; None: its default, if it has one.
        embedding_column: name of the column with the vectors.
        embedding_type: "float32", "float16", "int8" or "binary"; see `vectors.vector_arrays`.
        block_rows: rows sent to the engine as one request, at most `window_rows`; None leaves it to the engine.
    """

    window_rows: int = EMBED_WINDOW_ROWS
    batch_rows: int = EMBED_BATCH_ROWS

    column: str
    normalize: bool = False
    dimensions: int | None = None
    truncate: bool = False
    prompt_name: str | None = None
    embedding_column: str = "embedding"
    embedding_type: VectorType = "float32"
    block_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _text("column", self.column)
        _text("embedding_column", self.embedding_column)
        if self.prompt_name is not None:
            _text("prompt_name", self.prompt_name)
        if self.dimensions is not None:
            _positive("dimensions", self.dimensions)
        for name in ("normalize", "truncate"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}", "True or False")
        if self.embedding_type not in VECTOR_TYPES:
            raise OptionError(f"embedding_type={self.embedding_type!r}", f"one of: {', '.join(VECTOR_TYPES)}")
        if self.block_rows is None:
            return
        _positive("block_rows", self.block_rows)
        if self.block_rows > self.window_rows:
            raise OptionError(
                f"block_rows={self.block_rows} with window_rows={self.window_rows}",
                "block_rows no larger than window_rows",
                "raise window_rows or lower block_rows",
            )

    def block_rows_of(self, preferred: int) -> int:
        """Return the rows of a request to an engine that prefers so many."""
        # A block is of one batch, and the window is to hold one.
        return self.block_rows or min(preferred, self.batch_rows, self.window_rows)
