"""The vectorised road's forward step alone, with no front door and no scheduler around it. Run by `embed_speed.py`.

SGLang loads the model as its scheduler does, in a process that counts as one, and the step is what the lane there
runs. Questions over the pipe:

- `core`: tokens/s of steps of rows of one length, launched one after another as the lane does, vectors left on the GPU;
- `profile`: which kernels a step's time goes to, by torch's profiler.
"""

import json
import multiprocessing
import sys
from typing import Any

import numpy as np
import sglang.srt.managers.scheduler  # noqa: F401  by this import the plugin knows a scheduler's process
import torch
from embed_kernels import timed
from engine_child import own_output
from sglang.benchmark.one_batch import load_model

KERNELS = 14
NAME_LENGTH = 80


class Bench:
    """A loaded model and the core that serves it.

    Args:
        server_args: SGLang's.
        port_args: SGLang's.
    """

    def __init__(self, server_args: Any, port_args: Any) -> None:
        from arctic_sglang.embedding.bert import BertCore
        from arctic_sglang.embedding.core import GeneralCore

        runner = load_model(server_args, port_args, 0, 0)[0].torch_runner
        self.device = torch.device(runner.device, 0) if runner.device == "cuda" else torch.device("cpu")
        kind = BertCore if BertCore.serves(runner.model) else GeneralCore
        self.core = kind(runner.model, self.device, runner.dtype)
        graphs = getattr(self.core, "graphs", None)
        if graphs is not None:
            with torch.inference_mode():
                graphs.capture()
        self._vocabulary = runner.model_config.vocab_size

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Measures one thing."""
        return {"core": self.speed, "profile": self.profile}[question.pop("kind")](**question)

    def speed(self, tokens: int, step_tokens: int, seconds: float) -> dict[str, float]:
        """Tokens/s with the host's part of a step, and without it (the same step again and again)."""
        from arctic_sglang.embedding.step import Step

        rows = self._rows(tokens, step_tokens)
        with torch.inference_mode():
            whole = timed(lambda: self.core(rows), seconds, self.device)
            step = Step.of(rows, self.device, self.core.first_position, self.core.pad_id)
            device = timed(lambda: self.core.pooled(step), seconds, self.device)
        return {"tokens_per_second": rows.tokens / whole, "without_host": rows.tokens / device}

    def profile(self, tokens: int, step_tokens: int) -> dict[str, Any]:
        """Shares of the time of five steps: GPU kernels by name, on a CPU torch's operators."""
        from torch.profiler import ProfilerActivity, profile

        rows = self._rows(tokens, step_tokens)
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
        with torch.inference_mode(), profile(activities=activities) as seen:
            for _ in range(5):
                self.core(rows)
            if on_gpu:
                torch.cuda.synchronize()
        name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        spent = {event.key: getattr(event, name) for event in seen.key_averages()}
        whole = sum(spent.values()) or 1.0
        most = sorted(spent.items(), key=lambda item: -item[1])[:KERNELS]
        return {
            "milliseconds_a_step": whole / 5000,
            "shares": {key[:NAME_LENGTH]: round(value / whole, 4) for key, value in most},
        }

    def _rows(self, tokens: int, step_tokens: int) -> Any:
        from arctic_sglang.embedding.rows import TokenRows

        lengths = np.full(max(1, step_tokens // tokens), tokens, np.int32)
        ids = np.random.default_rng(0).integers(999, self._vocabulary, int(lengths.sum()), np.int32)
        return TokenRows(ids, lengths)


def work(server_args: Any, port_args: Any, channel: Any) -> None:
    """The process that counts as a scheduler."""
    bench = Bench(server_args, port_args)
    channel.send({"core": type(bench.core).__name__, "device": str(bench.device)})
    while True:
        channel.send(bench.answer(channel.recv()))


def serve(channel: Any, model: str, options: str) -> None:
    """Passes questions on to that process until the pipe closes."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import PortArgs, ServerArgs

    settings = {"is_embedding": True, "enable_fast_embedding": True, **json.loads(options)}
    server_args = ServerArgs(model_path=model, **settings)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
        target=work, args=(server_args, PortArgs.init_new(server_args), theirs), daemon=True
    )
    process.start()
    theirs.close()  # so that the end of that process is the end of the pipe
    print(json.dumps(ours.recv()), file=channel, flush=True)
    for line in sys.stdin:
        ours.send(json.loads(line))
        print(json.dumps(ours.recv()), file=channel, flush=True)


if __name__ == "__main__":
    serve(own_output(), *sys.argv[1:])
