"""Processes of further instances, the sockets to them, and where they hang on SGLang's start and end."""

from __future__ import annotations

import copy
import logging
import multiprocessing
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from arctic_sglang import env
from arctic_sglang.compat import replica, vendor
from arctic_sglang.embedding.front import FrontDoor
from arctic_sglang.embedding.placement import Place, places, replica_arguments, usable_gpus
from arctic_sglang.embedding.replicas import Replicas

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 30
_IPC = "ipc://"
_NO_UPDATE = (
    "with --embedding-replicas the weights cannot be changed while the server runs: they would reach one instance "
    "alone; start the server with the new ones"
)


class SchedulerWorker:
    """A scheduler process of its own; see `replicas.Worker`.

    Args:
        server_args: of the instance.
        gpu: its GPU among the visible ones.
        name: for messages.
    """

    def __init__(self, server_args: Any, gpu: int, name: str) -> None:
        self.broken = False
        self._is_ready = False
        self._error: str | None = None
        self._ports = vendor.PortArgs.init_new(server_args)
        with ExitStack() as undo:
            undo.callback(self._unlink)
            context = zmq.Context.instance()
            self._out = vendor.get_zmq_socket(context, zmq.PUSH, self._ports.scheduler_input_ipc_name, True)
            undo.callback(self._out.close, linger=0)
            self._out.setsockopt(zmq.LINGER, 0)
            context = zmq.asyncio.Context.instance()
            self._in = vendor.get_zmq_socket(context, zmq.PULL, self._ports.tokenizer_ipc_name, True)
            undo.callback(self._in.close, linger=0)
            spawn = multiprocessing.get_context("spawn")
            self._pipe, theirs = spawn.Pipe(duplex=False)
            undo.callback(self._pipe.close)
            with theirs, vendor.maybe_reindex_device_id(gpu) as device:
                self._process = spawn.Process(
                    target=replica.run, args=(server_args, self._ports, device, name, theirs), name=name
                )
                self._process.start()
            self._close = undo.pop_all()  # all went well: `kill` closes them
        self.pid = self._process.pid or 0

    def send(self, message: Any) -> None:
        """Hand a message over; does not wait, does not raise."""
        try:
            vendor.sock_send(self._out, message, zmq.NOBLOCK)
        except zmq.ZMQError:  # nobody is at the other end
            self.broken = True

    async def receive(self) -> Any:
        """Wait for the next message from the process."""
        return await vendor.async_sock_recv(self._in)

    def ready(self) -> bool:
        """Whether the process has said that it can embed."""
        self._read()
        return self._is_ready

    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def reason(self) -> str:
        """Why it ended, as far as is known."""
        self._read()
        if self._error is not None:
            return self._error
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"signal {-code}" + (
                "; if nobody sent it, the system may have run out of memory" if code == -9 else ""
            )
        return f"exit code {code}; see its messages above"

    def kill(self) -> None:
        """End the process without waiting for its end, and close the sockets."""
        self._process.kill()
        self._close.close()

    def join(self) -> None:
        """Wait until a killed process is gone."""
        self._process.join(_JOIN_SECONDS)

    def _unlink(self) -> None:
        for name in vars(self._ports).values():
            if isinstance(name, str) and name.startswith(_IPC):
                with suppress(OSError):
                    Path(name.removeprefix(_IPC)).unlink()

    def _read(self) -> None:
        with suppress(EOFError, OSError):  # it ended, or its pipe was closed
            while self._pipe.poll():
                message = self._pipe.recv()
                self._is_ready = self._is_ready or message["status"] == "ready"
                self._error = message.get("error")


def start(front: FrontDoor, server_args: Any) -> Replicas | None:
    """Begin the processes of `--embedding-replicas`; None for a single instance.

    Args:
        front: where their answers go.
        server_args: the first instance's.
    """
    count = server_args.embedding_replicas
    if count == 1:
        return None
    where = _places(server_args)
    arguments = _replica_server_args(server_args)
    names = [f"embedding replica {number}" for number in range(1, count)]

    def launch(number: int) -> SchedulerWorker:
        return SchedulerWorker(arguments, where[number + 1].gpu, names[number])

    replicas = Replicas(front, launch, names)
    replicas.start()
    logger.info("arctic-sglang: %d instances embed, on %s", count, _told(where, server_args.device))
    return replicas


def after_launch(result: Any, *_args: Any, **_kwargs: Any) -> None:
    """The start of a server waits for its replicas.

    Raises:
        ReplicaStartError: one of them did not start.
    """
    replicas = of(result[0])
    if replicas is not None:
        replicas.wait()


def after_handle_loop(_result: None, manager: Any) -> None:
    """With the tokenizer manager's own loop begins the replicas' service."""
    replicas = of(manager)
    if replicas is not None:
        replicas.attach()


def after_config(result: dict[str, Any], manager: Any, _base: dict[str, Any]) -> dict[str, Any] | None:
    """The server's information tells what its embedding instances do."""
    front = getattr(manager, "arctic_front", None)
    if front is None:
        return None
    replicas = of(manager)
    return result | {
        "embedding": front.status() | {"replicas": None if replicas is None else replicas.status()}
    }


async def around_update_from_disk(
    stock: Callable[..., Awaitable[Any]], manager: Any, *args: Any, **kwargs: Any
) -> Any:
    """SGLang's answer has three parts here: done or not, a message, and how many requests it paused."""
    return (False, _NO_UPDATE, 0) if of(manager) is not None else await stock(manager, *args, **kwargs)


async def around_update(stock: Callable[..., Awaitable[Any]], manager: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse new weights, which would reach the first instance alone."""
    return (False, _NO_UPDATE) if of(manager) is not None else await stock(manager, *args, **kwargs)


def before_shutdown(self: Any) -> None:
    """What ends with the engine is not started again."""
    replicas = of(getattr(self, "tokenizer_manager", None))
    if replicas is not None:
        replicas.close()


def of(manager: Any) -> Replicas | None:
    """The replicas behind a tokenizer manager, if it has any."""
    return getattr(manager, "arctic_replicas", None)


def _places(args: Any) -> list[Place]:
    return places(
        args.embedding_replicas, usable_gpus(vendor.device_count(), args.base_gpu_id, args.gpu_id_step)
    )


def _replica_server_args(args: Any) -> Any:
    # Not copy.deepcopy: arguments that are unpickled or copied act on the process where they arrive.
    copied = object.__new__(type(args))
    copied.__dict__.update(copy.deepcopy(vars(args)))
    graphs = copy.deepcopy(args.cuda_graph_config)
    graphs.decode.backend = graphs.prefill.backend = (
        "disabled"  # of SGLang's own batches, which it never runs
    )
    copied.override("arctic-sglang", cuda_graph_config=graphs, **replica_arguments())
    return copied


def _told(where: list[Place], device: str) -> str:
    """The places in words: "GPU 0 (2 instances), GPU 1"."""
    if device == "cpu":
        return "the CPU"
    sharing = {place.gpu: place.sharing for place in where}
    told = ", ".join(f"GPU {gpu}" + (f" ({n} instances)" if n > 1 else "") for gpu, n in sharing.items())
    if max(sharing.values()) == 1:
        return told
    mps = env.mps_pipes()
    side_by_side = (
        f"CUDA MPS runs ({mps}), so they compute side by side" if mps else "no CUDA MPS: they take turns"
    )
    return f"{told}; {side_by_side}"
