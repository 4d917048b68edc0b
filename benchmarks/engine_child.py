"""An SGLang engine in a process of its own, told what to generate over a pipe. Run by other benchmarks.

The child keeps its standard output for itself before SGLang is imported: whatever SGLang and its processes
print goes to the log, and the pipe carries one line of JSON for each question and answer.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import common

ABOUT = (
    "device", "dtype", "quantization", "kv_cache_dtype", "attention_backend", "prefill_attention_backend",
    "decode_attention_backend", "sampling_backend", "tp_size", "page_size", "chunked_prefill_size",
    "max_prefill_tokens", "max_running_requests", "mem_fraction_static", "disable_radix_cache",
    "disable_overlap_schedule", "dp_size", "load_balance_method", "disable_custom_all_reduce",
)  # fmt: skip

# Of the first engine of those that start together, the others' come behind it; below the ports that the system hands
# out. SGLang by itself asks for a free one long before it binds it, and two may be given the same.
FIRST_PORT = 25100


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Random prompts that are sent at once.

    Attributes:
        requests: prompts.
        tokens_in: tokens of each.
        tokens_out: tokens of each answer.
        temperature: of the sampling.
        seed: prompts of the same seed are the same; None: new ones each time.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    temperature: float = 0.0
    seed: int | None = None


class Piped:
    """The asking side of a process that first says what it is, then answers each line of JSON with one.

    Args:
        command: what to run.
        environment: variables to add.
        log: file that gets everything else that it and its processes print.
        limit: seconds that one answer may take, the start included; the process is ended after that.

    Raises:
        RuntimeError: it did not start.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, limit: float) -> None:
        self.log, self.limit = log, limit
        started = time.perf_counter()
        with log.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.about = self._answer()
        self.about["startup_seconds"] = round(time.perf_counter() - started, 2)

    def ask(self, question: Any) -> Any:
        """Sends a question and waits for the answer.

        Raises:
            RuntimeError: the process ended, or took too long; the message has the end of its log.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def close(self) -> None:
        """Ends the engine, and whatever of it is left; waits, so that the GPU is free afterwards."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(60)
        self._kill()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        timer = threading.Timer(self.limit, self._kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)  # its own end says more than ours
        self._kill()
        tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        message = "\n".join(
            [f"the engine ended with {self.process.returncode}; the end of {self.log}:", *tail]
        )
        raise RuntimeError(message)

    def _kill(self) -> None:
        """Ends the child's whole process group; waits up to ten seconds until none of it is left."""
        for _ in range(100):
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            self.process.poll()
            time.sleep(0.1)
        self.process.wait()


class Child(Piped):
    """An engine that generates from random prompts.

    Args:
        model: folder with the config.json.
        options: keywords of `sglang.Engine`.
        plugins: value of SGLANG_PLUGINS: "arctic", or a name that does not exist, which means none.
        log: file that gets everything SGLang prints.
        limit: seconds that one answer may take, the start included; the child is ended after that.
        turn: a file; of engines that share it one starts at a time, so that each sees the memory that is left.
        environment: variables to add.

    Raises:
        RuntimeError: the engine did not start.
    """

    def __init__(
        self, model: Path, options: dict[str, Any], plugins: str, log: Path, limit: float = 600, *,
        turn: Path | None = None, environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        command = [sys.executable, __file__, str(model), json.dumps(options), str(turn or "")]
        super().__init__(command, {"SGLANG_PLUGINS": plugins, **(environment or {})}, log, limit)

    def fell_back(self) -> bool:
        """Whether SGLang had no implementation of the model and took transformers' own, which is slower."""
        return "falling back to Transformers" in self.log.read_text(encoding="utf-8", errors="replace")

    def seconds(self, requests: int, tokens_in: int, tokens_out: int) -> float:
        """Time of one batch of random prompts, from the call to the last token of the last request."""
        return self.run(Batch(requests, tokens_in, tokens_out))["seconds"]

    def run(self, batch: "Batch") -> dict[str, Any]:
        """One batch: `seconds`, and of speculation `accept_length`, tokens a step, or None."""
        return self.ask(dataclasses.asdict(batch))


def plugins(*, stock: bool) -> str:
    """SGLANG_PLUGINS: an empty list means "all" to SGLang, a name that does not exist none.

    On a machine without a GPU stock SGLang does not start; there it is this plugin with no flag given.
    """
    return "none" if stock and not common.hardware().startswith("CPU") else "arctic"


def check_plugins(arm: str, arguments: str, *, stock: bool) -> None:
    """Compares an engine's class of arguments with that of `plugins`.

    Raises:
        RuntimeError: the engine is not the one that was asked for.
    """
    expected = "ServerArgs" if plugins(stock=stock) == "none" else "ArcticServerArgs"
    if arguments != expected:
        message = f"the {arm} engine has {arguments}, not {expected}: is the plugin installed?"
        raise RuntimeError(message)


def own_output() -> TextIO:
    """Keeps this process's standard output for its answers; whatever else it prints goes to the log."""
    pipe = os.fdopen(os.dup(1), "w")  # not inherited by SGLang's processes, so the pipe ends with this one
    os.dup2(2, 1)
    return pipe


def about(engine: Any) -> dict[str, Any]:
    """What an engine says of itself: its memory and the settings that decide its speed."""
    info = engine.get_server_info()
    state = info["internal_states"][0]
    graphs = state.get("cuda_graph_config") or {}
    return {
        "arguments": type(engine.server_args).__name__,
        "memory_gib_of_first_rank": state.get("memory_usage"),
        "max_total_num_tokens": info.get("max_total_num_tokens"),
        "cuda_graphs": {
            phase: {name: graph.get(name) for name in ("backend", "max_bs")}
            for phase, graph in graphs.items()
        },
        "shift": state.get("shift"),
        "settings": {name: state.get(name, info.get(name)) for name in ABOUT},
    }


def answer(engine: Any, batch: Batch, vocab: int, draw: random.Random) -> dict[str, Any]:
    """Runs a batch.

    Raises:
        RuntimeError: an answer has another length than was asked for.
    """
    source = draw if batch.seed is None else random.Random(batch.seed)
    ids = [[source.randrange(3, vocab) for _ in range(batch.tokens_in)] for _ in range(batch.requests)]
    sampling = {"temperature": batch.temperature, "max_new_tokens": batch.tokens_out, "ignore_eos": True}
    started = time.perf_counter()
    answers = engine.generate(input_ids=ids, sampling_params=sampling)
    seconds = time.perf_counter() - started
    infos = [found["meta_info"] for found in answers]
    lengths = {info["completion_tokens"] for info in infos}
    if lengths != {batch.tokens_out}:
        message = f"{batch.tokens_out} tokens were asked for, and there are answers of {sorted(lengths)}"
        raise RuntimeError(message)
    steps = sum(info.get("spec_verify_ct", 0) for info in infos)
    accept = batch.requests * batch.tokens_out / steps if steps else None
    return {"seconds": seconds, "accept_length": accept}


@contextlib.contextmanager
def in_turn(file: str) -> Iterator[None]:
    """Waits until no other process is within, of those that name the same file; no waiting without a name."""
    if not file:
        yield
        return
    with open(file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def serve(model: str, options: dict[str, Any], turn: str, channel: TextIO) -> None:
    """The answering side: one engine; a batch a line, until the pipe closes."""
    import sglang

    with in_turn(turn):
        engine = sglang.Engine(
            model_path=model,
            skip_tokenizer_init=True,
            **{"load_format": "dummy", "disable_radix_cache": True} | options,
        )
    vocab = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    print(json.dumps(about(engine), default=str), file=channel, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, Batch(**json.loads(line)), vocab, draw)), file=channel, flush=True)
    engine.shutdown()


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], own_output())
