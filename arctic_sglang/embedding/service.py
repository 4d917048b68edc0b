"""Texts or token ids to vectors: checks, prompts, tokens, and the way through the front door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from arctic_sglang.embedding.front import FrontDoor
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.tokens import InputError, Tokenizing, check_texts, token_rows, truncated

# Steps of the engine that a part of a large request holds; while one part is embedded the next is tokenised.
_PART_STEPS = 16
_PARTS_AHEAD = 2
_NONE = np.empty(0, np.int32)


class EmbeddingService:
    """Embeds texts and token ids of any number, on the event loop of the front door.

    Args:
        front: the front door, which knows the limits.
        tokenizing: the model's tokenizer; None for a server that takes token ids alone.
        vocabulary: ids below it are tokens.
        embed: stands for `front.embed` where something must be done around it.
        prompt_text: what goes in front of texts for a prompt's name; raises ValueError. None: there are no prompts.
        check_dimensions: raises ValueError for a number of components that the model does not give.
    """

    def __init__(
        self,
        front: FrontDoor,
        tokenizing: Tokenizing | None,
        *,
        vocabulary: int,
        embed: Callable[..., Awaitable[np.ndarray]] | None = None,
        prompt_text: Callable[[str], str] | None = None,
        check_dimensions: Callable[[int], None] | None = None,
    ) -> None:
        self.front = front
        self.tokenizing = tokenizing
        self._embed = embed or front.embed
        self._prompt_text = prompt_text
        self._vocabulary = vocabulary
        self._check_dimensions = check_dimensions

    async def embed_texts(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One vector per text.

        Args:
            texts: any number; an empty text is embedded as its special tokens.
            prompt_name: the checkpoint's prompt that is put before every text; None puts nothing there, as SGLang does.
            truncate: cut texts that are too long; otherwise they are an error.
            dimensions: components to keep (Matryoshka); None keeps all.

        Returns:
            Vectors, float32 `[rows, width]`, and tokens of each row, int32 `[rows]`, in the order of the texts.

        Raises:
            InputError: a text or an option that cannot be; the message names the row.
            EmbeddingFailedError: the engine could not do a step.
        """
        tokenizing = self.tokenizing
        if tokenizing is None:
            msg = "this server has no tokenizer (--skip-tokenizer-init); send token ids"
            raise InputError(msg)
        self._check(dimensions)
        prompt = self._prompt(prompt_name)
        if prompt:
            check_texts(texts)
            texts = [prompt + text for text in texts]
        parts: list[asyncio.Task[np.ndarray]] = []
        lengths = [_NONE]
        pending: list[TokenRows] = []
        row, tokens = 0, 0
        try:
            async for rows in tokenizing.slices(texts):
                rows = self._fitted(rows, row, truncate)
                pending.append(rows)
                lengths.append(rows.lengths)
                row, tokens = row + rows.rows, tokens + rows.tokens
                if tokens >= _PART_STEPS * self.front.step_tokens:
                    parts.append(asyncio.create_task(self._part(pending, dimensions)))
                    pending, tokens = [], 0
                    if len(parts) >= _PARTS_AHEAD:
                        await parts[-_PARTS_AHEAD]
            last = [await self._part(pending, dimensions)] if pending or not parts else []
            vectors = [*await asyncio.gather(*parts), *last]
        finally:
            for part in parts:
                part.cancel()
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors), np.concatenate(lengths)

    async def embed_ids(
        self,
        rows: TokenRows | Sequence[Sequence[int]],
        *,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One vector per row of token ids, which are taken as they are, special tokens included.

        Args:
            rows: any number of rows of at least one id each.
            truncate: cut rows that are too long; otherwise they are an error.
            dimensions: components to keep (Matryoshka); None keeps all.

        Returns:
            As `embed_texts`.

        Raises:
            InputError: a row or an option that cannot be; the message names the row.
            EmbeddingFailedError: the engine could not do a step.
        """
        self._check(dimensions)
        if not isinstance(rows, TokenRows):
            rows = token_rows(rows)
        wrong = np.flatnonzero((rows.ids < 0) | (rows.ids >= self._vocabulary))
        if len(wrong):
            row = int(np.searchsorted(np.cumsum(rows.lengths, dtype=np.int64), wrong[0], side="right"))
            msg = (
                f"row {row} has the token id {rows.ids[wrong[0]]}; "
                f"this model's vocabulary is 0 to {self._vocabulary - 1}"
            )
            raise InputError(msg)
        rows = self._fitted(rows, 0, truncate)
        return await self._embed(rows, dimensions=dimensions), rows.lengths

    async def _part(self, parts: list[TokenRows], dimensions: int | None) -> np.ndarray:
        rows = TokenRows.concatenate(parts or [TokenRows(_NONE, _NONE)])
        return await self._embed(rows, dimensions=dimensions)

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return ""
        if self._prompt_text is None:
            msg = f"prompt_name is {name!r}, and this model has no prompts"
            raise InputError(msg)
        try:
            return self._prompt_text(name)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _check(self, dimensions: int | None) -> None:
        if dimensions is None or self._check_dimensions is None:
            return
        try:
            self._check_dimensions(dimensions)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _fitted(self, rows: TokenRows, first: int, truncate: bool) -> TokenRows:
        """`rows`, which are the request's from row `first` on, cut to the limit or refused."""
        empty = np.flatnonzero(rows.lengths < 1)
        if len(empty):
            msg = f"row {first + int(empty[0])} has no tokens; at least one is wanted"
            raise InputError(msg)
        limit = self.front.max_tokens
        over = np.flatnonzero(rows.lengths > limit)
        if not len(over):
            return rows
        if not truncate:
            row = int(over[0])
            msg = (
                f"row {first + row} has {rows.lengths[row]} tokens, and the model takes {limit}; "
                'shorten it, or send "truncate": true to have what is too long cut off'
            )
            raise InputError(msg)
        if self.tokenizing is None:
            return truncated(rows, limit, opening=_NONE, closing=_NONE)
        return self.tokenizing.truncated(rows, limit)
