"""A Ray cluster for the time of one job: joined or started, asked for room, and left as it was."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batch_sdk.errors import EngineError, OptionError
from batch_sdk.executors.options import RayOptions

_CONNECT_SECONDS = 10
_LOOPS = ("StreamingExecutor", "iter_threaded")  # beginnings of the names of Ray Data's threads that ask Ray
_LOOPS_SECONDS = 10


def require() -> Any:
    """Return the module `ray`, with Ray Data. Raises `OptionError` if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError(
            f"executor='ray', and Ray Data cannot be imported: {error}",
            remedy="pip install 'arctic-sglang[ray]'",
        ) from error
    return ray


@contextmanager
def joined(options: RayOptions) -> Iterator[None]:
    """Be a driver of the cluster, and no longer than the body if this process was none before.

    Raises:
        OptionError: an address for a process that is joined to a cluster already.
        EngineError: there is no cluster at the address, or none could be started.
    """
    ray = require()
    if ray.is_initialized():
        if options.address is not None:
            raise OptionError(
                f"address={options.address!r}, and this process is joined to a cluster by ray.init(...)",
                "one of them",
            )
        with _quiet():
            yield
        return
    _check_address(options.address)
    with _quiet():
        try:
            with _signals_kept():
                ray.init(
                    address=options.address,
                    include_dashboard=False if options.address is None else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            what = f"no Ray cluster at {options.address!r}" if options.address else "Ray did not start"
            raise EngineError(f"{what}: {_line(error)}", remedy="see `ray status`") from error
        try:
            yield
        finally:
            wait_for_loops(_LOOPS_SECONDS)
            ray.shutdown()


def wait_for_loops(seconds: float) -> None:
    """Wait until Ray Data's threads have ended, for which it does not wait long itself when it is stopped.

    One that asks Ray for something when this process has left the cluster ends the process on the spot, with exit
    code 1 whatever the job's own.
    """
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(_LOOPS):
            thread.join(max(end - time.monotonic(), 0))


def _check_address(address: str | None) -> None:
    """Raise `EngineError` if nobody listens there: Ray itself would try for minutes."""
    host, sign, port = (address or "").rpartition(":")
    if not sign:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise EngineError(
            f"no Ray cluster at {address!r}: {error}", "host:port of its head, whose port is 6379 mostly"
        ) from error


def check_room(options: RayOptions) -> None:
    """Wait until the cluster has room for all replicas at once; one that can grow is asked to.

    Raises:
        EngineError: it has none in time.
    """
    ray = require()
    from ray.util import placement_group, remove_placement_group

    # Reserved and given back: Ray Data places its workers itself, and would wait for ever.
    group = placement_group([options.resources] * options.replicas)
    try:
        if group.wait(options.wait_seconds):
            return
        each = " and ".join(f"{amount:g} {name}" for name, amount in options.resources.items())
        raise EngineError(
            f"the Ray cluster has no room for {options.replicas} replicas of {each} each: it has "
            f"{_amounts(ray.cluster_resources())}, free are {_amounts(ray.available_resources())}",
            f"room within {options.wait_seconds:g} s (wait_seconds)",
            "ask for fewer replicas or resources",
        )
    finally:
        remove_placement_group(group)


def _amounts(resources: dict[str, float]) -> str:
    return " and ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's log from stderr: what matters comes out as this job's own progress and errors."""

    def never(record: logging.LogRecord) -> bool:
        return False

    handlers = [handler for handler in logging.getLogger("ray.data").handlers if _is_console(handler)]
    for handler in handlers:
        handler.addFilter(never)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(never)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back who listens to SIGTERM: Ray takes it, and does not give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
