"""Rows that ask for the same thing are computed once."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from batch_sdk.engines.base import GenerateRequest, GenerateResult, Request, Result

_REMEMBERED = 10_000
_REMEMBERED_BYTES = 64 << 20
_NUMBER_BYTES = 32  # a float or an int of a list, and its place there


class Duplicates:
    """Holds back rows whose prompt and sampling are those of a row that is at work or was lately done.

    Nothing is computed for them; the other row's answer, token counts and error are theirs too. Answers of the
    last 10,000 different rows are remembered, of fewer where they are longer than 64 MiB together; errors are not.
    """

    def __init__(self) -> None:
        self._leaders: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._followers: dict[int, list[int]] = {}
        self._done: OrderedDict[bytes, tuple[GenerateResult, int]] = OrderedDict()
        self._done_bytes = 0
        self._answers: list[GenerateResult] = []

    def first_of(self, requests: Sequence[Request]) -> list[Request]:
        """Return the rows that have to be computed."""
        new: list[Request] = []
        for request in requests:
            if not isinstance(request, GenerateRequest):
                new.append(request)
                continue
            key = hashlib.blake2b(repr(request[1:]).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key in self._done:
                self._done.move_to_end(key)
                self._answers.append(self._done[key][0]._replace(position=request.position))
            elif key in self._leaders:
                self._followers.setdefault(self._leaders[key], []).append(request.position)
            else:
                self._leaders[key] = request.position
                self._keys[request.position] = key
                new.append(request)
        return new

    def answers(self) -> list[GenerateResult]:
        """Return the results of rows that were held back and whose answer was known already."""
        answers, self._answers = self._answers, []
        return answers

    def all_of(self, results: Sequence[Result]) -> Iterator[Result]:
        """Yield the results, and those of the rows that waited for them."""
        for result in results:
            yield result
            if not isinstance(result, GenerateResult):
                continue
            key = self._keys.pop(result.position)
            del self._leaders[key]
            for position in self._followers.pop(result.position, ()):
                yield result._replace(position=position)
            if result.error is None:
                size = _size(result)
                self._done[key] = result, size
                self._done_bytes += size
            while len(self._done) > _REMEMBERED or self._done_bytes > _REMEMBERED_BYTES:
                _, (_, size) = self._done.popitem(last=False)
                self._done_bytes -= size


def _size(result: GenerateResult) -> int:
    """Return about how many bytes an answer takes."""
    return sum(_bytes(part) for part in (result.text, result.logprobs, result.token_ids))


def _bytes(value: Any) -> int:
    if isinstance(value, str) and not value.isascii():
        # Python keeps its UTF-8 beside it, once Arrow has asked for that.
        return sys.getsizeof(value) + len(value.encode("utf-8", "surrogatepass"))
    if not isinstance(value, list):
        return sys.getsizeof(value)
    # Samples; or numbers, all of one size.
    nested = bool(value) and isinstance(value[0], list | str)
    return sum(map(_bytes, value)) if nested else _NUMBER_BYTES * len(value)
