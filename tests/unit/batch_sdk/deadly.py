"""Engines that do to their process what no engine should; importable by workers of a cluster."""

from __future__ import annotations

import os
import signal

from batch_sdk.engines.dummy import DummyEngine
from batch_sdk.errors import EngineError


class NeverStarts(DummyEngine):
    def start(self):
        raise EngineError("no weights in 'm'", "a model", "look there")


class RaisesAnything(DummyEngine):
    def start(self):
        raise ValueError("first line\nsecond line")


class KilledAtWork(DummyEngine):
    """By any request that contains "text 30 "."""

    def submit(self, requests):
        if "text 30 " in str(requests):
            os.kill(os.getpid(), signal.SIGKILL)
        super().submit(requests)


class NotThere(DummyEngine):
    """Cannot be made in another process."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ModuleNotFoundError("No module named 'NotThere'")
