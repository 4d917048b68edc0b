"""The options of the http engine, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from arctic_sglang import env
from batch_sdk.errors import OptionError, check_names

_POSITIVE = ("timeout_seconds", "retry_seconds", "down_seconds")


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Options of the http engine.

    Attributes:
        url: one base URL, or several that serve the same model. Without a path `/v1` is added, with one it is
            taken as it is: `http://host:30000`, `https://host/openai/v1`.
        api_key: sent as `Authorization: Bearer ...`.
        api_key_env: name of an environment variable that holds the key, instead of `api_key`.
        max_concurrency: requests in flight at each URL at most.
        timeout_seconds: of one try, from sending to the answer's last byte.
        max_retries: further tries for a row after the first one failed in a way that may pass.
        retry_seconds: before the first of them; doubled with each, and shortened by up to half at random.
        down_seconds: how long all URLs may refuse connections before the job stops.
        headers: sent with every request.
        seed: of the random shortening; None is a new one each time.
    """

    url: str | tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    max_concurrency: int = 256
    timeout_seconds: float = 600.0
    max_retries: int = 5
    retry_seconds: float = 0.5
    down_seconds: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_concurrency", 1), ("max_retries", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise OptionError(f"http engine option {name}={value!r}", f"a whole number from {least}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise OptionError(f"http engine option {name}={value!r}", "a number above 0")
        if self.seed is not None and type(self.seed) is not int:
            raise OptionError(f"http engine option seed={self.seed!r}", "a whole number")
        self._check_headers()
        urls = [self.url] if isinstance(self.url, str) else self.url
        if not isinstance(urls, (list, tuple)) or not urls:
            raise OptionError(f"http engine option url={self.url!r}", "a URL or a list of URLs")
        found = tuple(_base_url(url) for url in urls)
        if len(set(found)) != len(found):
            raise OptionError(f"http engine option url={list(urls)!r}", "each URL once")
        object.__setattr__(self, "url", found)
        object.__setattr__(self, "api_key", self._key())

    def _check_headers(self) -> None:
        good = isinstance(self.headers, Mapping) and all(
            isinstance(part, str) and part.isprintable() for pair in self.headers.items() for part in pair
        )
        if not good:
            # Not shown: headers hold secrets.
            raise OptionError("http engine option headers is no mapping of text", 'e.g. {"X-Team": "search"}')

    def _key(self) -> str | None:
        if self.api_key_env is None:
            if self.api_key is not None and (
                not isinstance(self.api_key, str) or not self.api_key.isprintable()
            ):
                raise OptionError("http engine option api_key is no printable text", "a key")
            return self.api_key
        if self.api_key is not None:
            raise OptionError("http engine options api_key and api_key_env", "one of them")
        key = env.secret(self.api_key_env) if isinstance(self.api_key_env, str) else None
        if not key:
            raise OptionError(
                f"http engine option api_key_env={self.api_key_env!r} names no environment variable that is set",
                "one that holds the key",
                "export it, or drop the option if the server needs no key",
            )
        return key

    @property
    def urls(self) -> tuple[str, ...]:
        """The base URLs, without a slash at the end."""
        return tuple(self.url)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> HttpOptions:
        """Build from the user's options. Raises `OptionError` for an unknown one, and without a url."""
        check_names(options, [f.name for f in fields(cls)], "option of the http engine")
        if "url" not in options:
            raise OptionError(
                "engine 'http' without a url",
                "the base URL of an OpenAI-compatible server",
                'pass engine_options={"url": "http://host:30000"} (--engine-option url=http://host:30000)',
            )
        return cls(**options)


def _base_url(url: object) -> str:
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        good = parts is not None and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts is None or parts.query or parts.fragment:
        raise OptionError(f"http engine option url={url!r}", "a URL such as http://host:30000")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
