"""Texts to token rows: the Rust backend of a transformers tokenizer, many texts a call, without lists of rows."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from arctic_sglang.embedding.rows import TokenRows, pack

logger = logging.getLogger(__name__)

# Characters of one call: some tens of thousands of tokens, milliseconds on a server's cores.
_SLICE_CHARACTERS = 1 << 18
# What a text costs besides its characters, so that a million empty ones are not one call.
_TEXT_CHARACTERS = 16
# Up to here the way to a thread and back costs as much as the tokens do.
_INLINE_CHARACTERS = 256
_THREADS = 2
# The backend is used alone where it gives these the ids that transformers gives them.
_PROBES = ("", " ", "Embed  this, please: naïve 東京 😀\n[SEP]</s><|endoftext|>", "a")


class InputError(ValueError):
    """What cannot be embedded as it was given; the message says what is wrong, and in which row."""


class Tokenizing:
    """A tokenizer made ready once, for use from any number of threads and from an event loop.

    It works on a copy of its own: what other users of `tokenizer` set there (truncation, padding) does not reach
    it, and it sets nothing there. The copy takes 25 ms for 30,000 words.

    Args:
        tokenizer: transformers'. One without a Rust backend is called as it is, by one thread at a time.
        end_token: put behind every text that does not end with it; None is no token.

    Attributes:
        opening: int32, the special tokens before every text.
        closing: int32, those behind every text.
        fast: whether the Rust backend does the work.
    """

    def __init__(self, tokenizer: Any, *, end_token: int | None = None) -> None:
        own = copy.deepcopy(tokenizer)
        rust = _backend(own)
        self.fast = rust is not None
        self._end_token = end_token
        self._many = rust.encode_batch_fast if rust else _one_at_a_time(own)
        # The batch call shares its threads with every other one, and so would wait for a large one.
        self._few = (lambda texts: [rust.encode(text) for text in texts]) if rust else None
        self._threads = ThreadPoolExecutor(_THREADS if rust else 1, "arctic-tokenizing")
        self._from_left = getattr(tokenizer, "truncation_side", "right") == "left"
        row = self(["a"]).ids
        special = np.ones(len(row), bool)
        mask = own("a", return_special_tokens_mask=True)["special_tokens_mask"]
        special[: len(mask)] = mask
        text = np.flatnonzero(~special)
        self.opening, self.closing = row[: text[0]], row[text[-1] + 1 :]

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Token ids with the special tokens, nothing cut. Blocks; other threads can run meanwhile.

        Raises:
            InputError: a row is no string, or has half of a surrogate pair.
        """
        return self._rows(self._many, texts)

    async def slices(self, texts: Sequence[str]) -> AsyncIterator[TokenRows]:
        """The same for an event loop, a slice of the texts at a time, in order.

        A few words are done at once. Anything else is done in threads, where slices of several requests take
        turns: a small request waits for a slice of a large one, not for all of it.

        Raises:
            InputError: a row is no string, or has half of a surrogate pair.
        """
        check_texts(texts)
        characters = np.fromiter(map(len, texts), np.int64, len(texts))
        if self._few and int(characters.sum()) <= _INLINE_CHARACTERS:
            yield self._rows(self._few, texts)
            return
        loop = asyncio.get_running_loop()
        for first, last in pack(characters + _TEXT_CHARACTERS, _SLICE_CHARACTERS):
            try:
                yield await loop.run_in_executor(self._threads, self, texts[first:last])
            except InputError:
                check_texts(texts, surrogates=True)  # names the row of the request, not of the slice
                raise

    def truncated(self, rows: TokenRows, limit: int) -> TokenRows:
        """Rows cut to `limit` tokens; the special tokens at their ends stay, as with transformers' truncation.

        Raises:
            ValueError: the limit leaves no room for the special tokens.
        """
        if limit < len(self.opening) + len(self.closing):
            msg = f"a limit of {limit} tokens leaves no room for the tokenizer's special tokens"
            raise ValueError(msg)
        return truncated(rows, limit, opening=self.opening, closing=self.closing, from_left=self._from_left)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _rows(self, encode: Callable[[Sequence[str]], Sequence[Any]], texts: Sequence[str]) -> TokenRows:
        check_texts(texts)
        try:
            encodings = encode(texts if isinstance(texts, list) else list(texts))
        except TypeError:
            check_texts(texts, surrogates=True)
            raise
        # Each list of ids is dropped at once: that many lists kept would start passes of the garbage collector.
        flat = array("i")
        for encoding in encodings:
            flat.fromlist(encoding.ids)
        lengths = np.fromiter(map(len, encodings), np.int32, len(encodings))
        rows = TokenRows(_int32(flat), lengths)
        return rows if self._end_token is None else ended(rows, self._end_token)


def tokenize_slow(
    tokenizer: Any, texts: Sequence[str], *, limit: int | None = None, end_token: int | None = None
) -> TokenRows:
    """The specification of `Tokenizing`: transformers' own call, whose truncation makes room for the end token."""
    rows = []
    end = [] if end_token is None else [end_token]
    for text in texts:
        row = tokenizer(text, verbose=False)["input_ids"]
        row += end if row[-1:] != end else []
        if limit is not None and len(row) > limit:
            row = tokenizer(text, truncation=True, max_length=limit - len(end), verbose=False)["input_ids"]
            row += end if row[-1:] != end else []
        rows.append(row)
    return TokenRows.from_lists(rows)


def token_rows(rows: Sequence[Sequence[int]]) -> TokenRows:
    """Rows of ids as `TokenRows`.

    Raises:
        InputError: something is no integer, or none of 32 bits; the message names the row.
    """
    flat = array("i")
    for index, row in enumerate(rows):
        try:
            flat.fromlist(row if isinstance(row, list) else list(row))
        except (TypeError, OverflowError):
            wrong = next((i for i in row if not isinstance(i, int) or abs(i) >= 1 << 31), row)
            msg = f"row {index} has {wrong!r} where a token id is wanted"
            raise InputError(msg) from None
    lengths = np.fromiter(map(len, rows), np.int32, len(rows))
    return TokenRows(_int32(flat), lengths)


def truncated(
    rows: TokenRows, limit: int, *, opening: np.ndarray, closing: np.ndarray, from_left: bool = False
) -> TokenRows:
    """Rows of at most `limit` tokens.

    Args:
        rows: any.
        limit: tokens that stay.
        opening: int32, stays at the head of a row that has it there and is cut from the left.
        closing: int32, stays at the end of a row that has it there and is cut from the right.
        from_left: cut the head of a row, not its end.
    """
    long = rows.lengths > limit
    if not long.any():
        return rows
    ends = np.cumsum(rows.lengths, dtype=np.int64)
    starts = ends - rows.lengths
    if from_left:
        head = _has(rows, starts, long, opening)
        tail = limit - head
    else:
        tail = _has(rows, ends - len(closing), long, closing)
        head = limit - tail
    head, tail = np.where(long, head, rows.lengths), np.where(long, tail, 0)
    within = np.arange(rows.tokens) - np.repeat(starts, rows.lengths)
    stays = within < np.repeat(head, rows.lengths)
    stays |= within >= np.repeat(rows.lengths - tail, rows.lengths)
    return TokenRows(rows.ids[stays], np.minimum(rows.lengths, limit).astype(np.int32))


def ended(rows: TokenRows, end_token: int) -> TokenRows:
    """Rows with `end_token` put behind those that do not end with it."""
    ends = np.cumsum(rows.lengths, dtype=np.int64)
    lacks = rows.lengths == 0
    lacks[~lacks] = rows.ids[ends[~lacks] - 1] != end_token
    ids = np.insert(rows.ids, ends[lacks], np.int32(end_token))
    return TokenRows(ids, (rows.lengths + lacks).astype(np.int32))


def _int32(flat: array[int]) -> np.ndarray:
    return np.frombuffer(flat, np.int32) if flat else np.empty(0, np.int32)


def _has(rows: TokenRows, at: np.ndarray, long: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """int `[rows]`: `len(tokens)` where a long row has these tokens at position `at`, else 0."""
    found = np.zeros(rows.rows, np.int64)
    wanted = at[long][:, None] + np.arange(len(tokens))
    found[long] = len(tokens) * (rows.ids[wanted] == tokens).all(axis=1)
    return found


def check_texts(texts: Sequence[Any], *, surrogates: bool = False) -> None:
    """Raise `InputError` for the first row that is no string or, slower, no valid Unicode."""
    if not surrogates and set(map(type, texts)) <= {str}:
        return
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            msg = f"row {row} is of type {type(text).__name__}; a string is wanted"
            raise InputError(msg)
        try:
            if surrogates:
                text.encode()
        except UnicodeEncodeError as error:
            msg = (
                f"row {row} has half of a surrogate pair (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}, which is no text; replace it"
            )
            raise InputError(msg) from None


def _backend(tokenizer: Any) -> Any:
    """The Rust tokenizer in `tokenizer`, set to neither cut nor pad, or None where it does not do all the work."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    rust = tokenizer.backend_tokenizer
    # transformers sets the backend up at each call; this call leaves it as the later ones need it.
    expected = tokenizer(list(_PROBES), verbose=False)["input_ids"]
    rust.no_truncation()
    rust.no_padding()
    if [encoding.ids for encoding in rust.encode_batch_fast(list(_PROBES))] == expected:
        return rust
    logger.warning(
        "arctic-sglang: %s changes what its Rust backend gives; texts are tokenised by transformers, slower",
        type(tokenizer).__name__,
    )
    return None


class _Encoding:
    """The part of the backend's answer that is used here."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)


def _one_at_a_time(tokenizer: Any) -> Callable[[Sequence[str]], list[_Encoding]]:
    lock = threading.Lock()

    def encode(texts: Sequence[str]) -> list[_Encoding]:
        with lock:
            rows = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        return [_Encoding(row) for row in rows]

    return encode
