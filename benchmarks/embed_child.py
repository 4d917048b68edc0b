"""An embedding engine in a process of its own, asked to embed rows over a pipe. Run by `embed_speed.py`.

Arms: `ours` is `batch_sdk`'s engine with `enable_fast_embedding`, `stock` plain `sglang.Engine`. Roads:

- `sdk` and `sdk_ids`: an Arrow table of strings, or of lists of token ids, to an Arrow table of vectors (`ours`);
- `engine` and `engine_ids`: the same rows through SGLang's own interface: `Engine.encode` on strings, and the
  request object that it makes with token ids in it. What stock SGLang answers with is lists of floats, and turning
  them into arrays is not in its time.
"""

import asyncio
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from embed_model import Rows, Texts, read_tokenizer
from engine_child import own_output

PAUSE_SECONDS = 0.005  # between the single rows of `fair`


class Watch:
    """What a stretch of time cost: processor seconds by process, and how busy the GPU said it was.

    The driver's figure is the share of its last sampling period in which any kernel ran.
    """

    def __init__(self) -> None:
        self._busy: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Watch":
        self._before = _processor_seconds()
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        after = _processor_seconds()
        self._stop.set()
        self._thread.join()
        self.cores = {
            name: round((after[name] - self._before.get(name, 0.0)) / self.seconds, 2) for name in after
        }

    @property
    def gpu_busy(self) -> float | None:
        """Median in percent; None without a GPU."""
        return float(np.median(self._busy)) if self._busy else None

    def _sample(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._stop.wait(0.1):
                self._busy.append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        except Exception as error:  # noqa: BLE001  whatever the driver lacks, the times are still good
            print(f"no figures of the GPU: {error}", file=sys.stderr)


def _processor_seconds() -> dict[str, float]:
    """User and system time of this process and of those that it began, by what they call themselves."""
    this = psutil.Process()
    found: dict[str, float] = {}
    for process in [this, *this.children(recursive=True)]:
        try:
            name = "front" if process == this else " ".join(process.cmdline()).strip()[:40] or process.name()
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


class Arm:
    """One engine and the rows that it is given.

    Args:
        arm: "ours" or "stock".
        model: folder of the model.
        options: keywords of the engine.
    """

    def __init__(self, arm: str, model: Path, options: dict[str, Any]) -> None:
        self._tokenizer = read_tokenizer(model / "tokenizer.json")
        self._texts = Texts(self._tokenizer)
        self._made: dict[int, Rows] = {}
        self._sdk: Any = None
        if arm == "ours":
            import batch_sdk

            self._sdk = batch_sdk.create_engine("sglang", model=str(model), task="embed", options=options)
            self._sdk.start()
            self._engine = self._sdk._engine
        else:
            import sglang

            self._engine = sglang.Engine(
                model_path=str(model), is_embedding=True, log_level="error", **options
            )

    def about(self) -> dict[str, Any]:
        """What decides the speed."""
        args = self._engine.server_args
        names = ("device", "dtype", "attention_backend", "chunked_prefill_size", "max_prefill_tokens",
                 "max_running_requests", "disable_radix_cache", "tokenizer_worker_num", "enable_fast_embedding",
                 "embedding_step_tokens", "embedding_replicas")  # fmt: skip
        settings = {name: getattr(args, name, None) for name in names}
        return {"arguments": type(args).__name__, "settings": settings}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Measures one thing; `kind` names it, the rest are its arguments."""
        kind = {"embed": self.embed, "tokenize": self.tokenize, "fair": self.fair}[question.pop("kind")]
        return kind(**question)

    def embed(self, road: str, rows: int, tokens: int, **options: Any) -> dict[str, Any]:
        """Embeds rows of one length once."""
        made = self._rows(rows, tokens)
        work = self._work(road, made, options)
        with Watch() as watch:
            found = work()
        count, vectors = _vectors(found, road)
        if count != rows or not np.isfinite(vectors).all():
            message = f"{count} vectors for {rows} rows, or some that are not numbers"
            raise RuntimeError(message)
        return {
            "seconds": watch.seconds, "tokens": made.tokens, "rows": rows, "cores": watch.cores,
            "gpu_busy": watch.gpu_busy, "first": vectors[0, :4].round(4).tolist(),
        }  # fmt: skip

    def tokenize(self, rows: int, tokens: int) -> dict[str, Any]:
        """The tokeniser alone, on all cores, with nothing done to what it makes."""
        texts = self._rows(rows, tokens).texts
        with Watch() as watch:
            for first in range(0, rows, 8192):
                self._tokenizer.encode_batch_fast(texts[first : first + 8192])
        return {"seconds": watch.seconds, "tokens": rows * tokens, "rows": rows, "cores": watch.cores}

    def fair(self, rows: int, tokens: int) -> dict[str, Any]:
        """Milliseconds that single rows take, one after another, alone and while a request of `rows` runs."""
        made = self._rows(rows, tokens)

        async def one(text: str) -> float:
            started = time.perf_counter()
            await self._engine.async_encode(text)
            return 1000 * (time.perf_counter() - started)

        async def mixed() -> dict[str, Any]:
            alone = [await one(text) for text in made.texts[:50]]
            started = time.perf_counter()
            large = asyncio.ensure_future(self._engine.async_encode(made.texts))
            await asyncio.sleep(0)
            beside = []
            while not large.done():
                beside.append(await one(made.texts[len(beside) % rows]))
                await asyncio.sleep(PAUSE_SECONDS)
            await large
            return {"alone_ms": alone, "beside_ms": beside, "large_seconds": time.perf_counter() - started}

        return self._engine.loop.run_until_complete(mixed())

    def close(self) -> None:
        """Ends the engine."""
        (self._sdk.close if self._sdk is not None else self._engine.shutdown)()

    def _rows(self, rows: int, tokens: int) -> Rows:
        if tokens not in self._made or len(self._made[tokens].texts) < rows:
            self._made = {tokens: self._texts.rows(rows, tokens)}  # one length at a time: they are large
        return self._made[tokens].first(rows)

    def _work(self, road: str, rows: Rows, options: dict[str, Any]) -> Callable[[], Any]:
        if road.startswith("sdk"):
            import batch_sdk

            table, column = rows.table(), "ids" if road == "sdk_ids" else "text"
            return lambda: batch_sdk.embed(
                table, column=column, model=self._sdk, keep=[], progress=False, **options
            )
        if road == "engine":
            return lambda: self._engine.encode(rows.texts)
        from sglang.srt.managers.io_struct import EmbeddingReqInput

        ids = rows.ids.tolist()
        manager, loop = self._engine.tokenizer_manager, self._engine.loop
        return lambda: loop.run_until_complete(
            anext(manager.generate_request(EmbeddingReqInput(input_ids=ids), None))
        )


def _vectors(found: Any, road: str) -> tuple[int, np.ndarray]:
    """How many vectors there are, and the first of them and the last.

    Raises:
        RuntimeError: a row has an error, or the column is not a list of fixed size.
    """
    if not road.startswith("sdk"):
        return len(found), np.array([answer["embedding"] for answer in [*found[:9], *found[-9:]]], np.float32)
    column = found["embedding"]
    errors = len(found) - found["error"].null_count
    if errors or not pa.types.is_fixed_size_list(column.type):
        first = next((error for error in found["error"].to_pylist() if error), None)
        message = f"{errors} rows have an error, the first {first}; the column is {column.type}"
        raise RuntimeError(message)
    ends = [*column.slice(0, 9).to_pylist(), *column.slice(max(0, len(column) - 9)).to_pylist()]
    return len(column), np.array(ends, np.float32)


def serve(channel: Any, arm: str, model: str, options: str) -> None:
    """Starts the engine, says what it is, answers questions until the pipe closes."""
    engine = Arm(arm, Path(model), json.loads(options))
    print(json.dumps(engine.about(), default=str), file=channel, flush=True)
    for line in sys.stdin:
        try:
            answer = engine.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001  one figure less, and the next may be fine
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=channel, flush=True)
    engine.close()


if __name__ == "__main__":
    serve(own_output(), *sys.argv[1:])
