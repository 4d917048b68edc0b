"""SGLang in this process: `sglang.Engine`, driven row by row.

The engine's tokenizer side lives in this process on an asyncio loop; schedulers and detokenizer are child
processes. What `submit` takes is tokenised ahead in a thread and becomes one task a request as tokens leave
room (`Intake`); `wait` runs the loop until one of them is done. While it waits it looks after the child
processes: a dead one is an `EngineError` within a second or so, never a hang.
"""

from __future__ import annotations

import asyncio
import atexit
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil

from arctic_sglang.embedding.rows import TokenRows
from batch_sdk.engines import children
from batch_sdk.engines.base import (
    EmbedRequest,
    EmbedResult,
    Engine,
    EngineInfo,
    GenerateRequest,
    GenerateResult,
    Request,
    Result,
    Task,
)
from batch_sdk.engines.intake import Intake
from batch_sdk.engines.sglang_answers import asked, generated
from batch_sdk.engines.sglang_embedding import Embedder, FastEmbedder, PlainEmbedder
from batch_sdk.engines.tasks import TaskPool, refuse_running_loop
from batch_sdk.engines.tokenizing import prompt_ids
from batch_sdk.errors import EngineDiedError, EngineError, OptionError, RowError, RowErrorKind
from batch_sdk.truncation import truncated
from batch_sdk.vectors import is_unit_length

_PROBE = "hello"
# The scheduler's bound keeps five tokens free for output, and one for good measure; embeddings are not held
# to it.
_ROOM_TO_GENERATE = 6
# A KV cache full of rows in work, and as much again on its way.
_CACHES_OF_TOKENS = 2
# Twice a server's on a GPU: a job has no small requests that would wait for a step's end, and longer steps bridge
# what the tokenizer's threads take from the scheduler's core (an H200 with 16 cores does a tenth more).
_BULK_STEP_TOKENS = 32_768
_SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
# Options that this class decides on: name -> what decides it.
_OWN_OPTIONS = {"model_path": "model=...", "model": "model=...", "is_embedding": "generate() or embed()"}


class SGLangEngine(Engine):
    """A model in SGLang.

    Start it in the main thread: SGLang's children report failure by SIGQUIT, which only the main thread can
    be told to survive. `close` ends the processes that `start` began and no others.

    Args:
        model: path or hub name.
        task: "embed" starts SGLang with `is_embedding=True`, and with `enable_fast_embedding=True` unless the
            options say False.
        options: any other argument of `sglang.Engine`; passed through untouched. `log_level` is "error"
            unless given. `window_tokens` is ours: tokens of input that may be at SGLang at once; twice
            what its KV cache holds unless given, and 64 forward steps where embeddings take the fast road.

    Raises:
        OptionError: an option that `model` or `task` decides, or one that the SDK cannot work with.
    """

    def __init__(self, *, model: str, task: Task, options: dict[str, Any]) -> None:
        super().__init__(model=model, task=task, options=options)
        for name, decided_by in _OWN_OPTIONS.items():
            if name in options:
                raise OptionError(f"engine option {name!r}", f"this to be decided by {decided_by}")
        if options.get("skip_tokenizer_init"):
            raise OptionError("engine option skip_tokenizer_init=True", "an engine with its tokenizer")
        options = dict(options)
        self._window_tokens: int | None = options.pop("window_tokens", None)
        if self._window_tokens is not None and (
            type(self._window_tokens) is not int or self._window_tokens < 1
        ):
            raise OptionError(f"engine option window_tokens={self._window_tokens!r}", "a whole number from 1")
        self._options = {"log_level": "error", **options}
        self._engine: Any = None
        self._info: EngineInfo | None = None
        self._children: list[psutil.Process] = []
        self._vital: list[psutil.Process] = []
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._pool: TaskPool[Result] | None = None
        self._intake: Intake[Any, Result] | None = None
        self._embedder: Embedder | None = None

    @property
    def started(self) -> bool:
        """Whether the engine runs, as far as is known."""
        return self._info is not None

    @property
    def info(self) -> EngineInfo:
        """Facts about the loaded model."""
        if self._info is None:
            raise EngineError("info of an engine that is not started", "start() first")
        return self._info

    def start(self) -> None:
        """Load the model (many seconds) and answer one short request with it.

        Raises:
            EngineError: SGLang did not start or does not answer; its own messages are on stderr.
        """
        if self._engine is not None:
            raise EngineError("start() on a running engine", "start() once")
        refuse_running_loop()
        before = children.pids()
        try:
            with self._signals_survived():
                self._engine = self._launch()
                self._pool = TaskPool(self._engine.loop)
                self._embedder = self._make_embedder() if self.task == "embed" else None
                self._intake = self._make_intake(self._pool)
                self._children = children.since(before)
                self._vital = children.vital(self._engine, self._children)
                self._info = self._probe()
        finally:
            if self._info is None:
                # Whatever was raised, Ctrl-C included: a half-started engine has processes already.
                self._children = children.since(before)
                self.close()

    def _launch(self) -> Any:
        try:
            import sglang

            from arctic_sglang.compat import vendor, verify
            from arctic_sglang.features import Feature
        except ImportError as error:
            raise EngineError(
                f"sglang cannot be imported: {error}", remedy="pip install arctic-sglang"
            ) from error
        options: dict[str, Any] = {"model_path": self.model, **self._options}
        if self.task == "embed":
            options["is_embedding"] = True
            options.setdefault("enable_fast_embedding", True)
            if options["enable_fast_embedding"] and vendor.accelerator() is not None:
                options.setdefault("embedding_step_tokens", _BULK_STEP_TOKENS)
        if threading.current_thread() is threading.main_thread():
            # The default handler kills this whole process, output and all, when a child fails.
            options.setdefault("custom_sigquit_handler", signal.SIG_IGN)
        try:
            verify.require(Feature.BATCH)
            # SGLang reports the handler that it is given as an error; it is none.
            with children.without_log("sglang.srt.entrypoints.engine", "custom SIGQUIT handler"):
                return sglang.Engine(**options)
        # The boundary to SGLang: its start-up raises anything at all, and all of it means the same here.
        except Exception as error:
            raise EngineError(
                f"SGLang did not start: {type(error).__name__}: {error}", remedy="see its messages above"
            ) from error

    @contextmanager
    def _signals_survived(self) -> Iterator[None]:
        """Keep this process's own signal handlers: SGLang installs some that kill it, the last on first
        use."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._old_handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        yield
        for number in _SIGNALS:
            self._engine.loop.remove_signal_handler(number)
        signal.signal(signal.SIGTERM, self._old_handlers[signal.SIGTERM] or signal.SIG_DFL)
        # Ignored as long as the engine runs; `_check_alive` is what notices a dead child.
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)

    def _probe(self) -> EngineInfo:
        """Send one request: it shows that the engine works, how long its vectors are, and installs all
        handlers."""
        manager = self._engine.tokenizer_manager
        if (
            self._options.get("chat_template")
            and self._engine.template_manager.chat_template_name is not None
        ):
            raise OptionError(
                f"engine option chat_template={self._options['chat_template']!r}, a built-in name",
                "the path of a Jinja chat template",
            )
        embeds = self.task == "embed"
        request = EmbedRequest(0, [_PROBE]) if embeds else GenerateRequest(0, _PROBE, {"max_new_tokens": 1})
        self._info = EngineInfo(
            model=self.model,
            max_input_tokens=self._limit(),
            has_chat_template=bool(getattr(manager.tokenizer, "chat_template", None)),
        )
        try:
            self.submit([request])
            (result,) = self.wait()
        finally:
            info, self._info = self._info, None
        error = result.errors[0] if isinstance(result, EmbedResult) else result.error
        if error is not None:
            raise EngineError(f"the engine cannot do its first request: {error.message}")
        if not isinstance(result, EmbedResult) or self._embedder is None:
            return info
        decision = getattr(self._engine.server_args, "_arctic", None)
        checkpoint = None if decision is None else decision.pooling
        return replace(
            info,
            embedding_size=result.vectors.shape[1],
            # SGLang does not say whether its own pooling normalises: the vector of the probe shows it.
            unit_vectors=is_unit_length(result.vectors) if checkpoint is None else checkpoint.normalize,
            checkpoint=checkpoint,
            block_rows=self._embedder.block_rows,
        )

    def _make_embedder(self) -> Embedder:
        manager = self._engine.tokenizer_manager
        if self._engine.server_args.enable_fast_embedding:
            return FastEmbedder(manager)
        return PlainEmbedder(manager, self._limit())

    def _limit(self) -> int | None:
        if isinstance(self._embedder, FastEmbedder):
            return self._embedder.limit
        manager = self._engine.tokenizer_manager
        if self._engine.server_args.allow_auto_truncate:
            return None  # SGLang cuts long inputs itself, as asked
        # Both bounds of SGLang are exclusive: the tokenizer side's first, then the scheduler's.
        room = _ROOM_TO_GENERATE if self.task == "embed" else 0
        return min(manager.context_len - manager.num_reserved_tokens, manager.max_req_input_len + room) - 1

    def close(self) -> None:
        """End the engine's processes and wait until they are gone."""
        engine, self._engine, self._info = self._engine, None, None
        pool, self._pool = self._pool, None
        intake, self._intake = self._intake, None
        self._embedder = None
        if intake is not None:
            intake.close()
        if pool is not None:
            pool.forget()
        if engine is not None:
            # SGLang's own shutdown() kills all children of this process, whoever began them.
            atexit.unregister(engine.shutdown)
            engine.tokenizer_manager._subprocess_watchdog.stop()
            engine.send_to_rpc.close(linger=0)
            children.end_replicas(engine)
        children.kill(self._children)
        self._children, self._vital = [], []
        if engine is not None:
            children.close_loop(engine.loop)
        # In another thread (Polars runs and ends queries in its own) they stay as they are: SIGQUIT ignored.
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
        self._old_handlers = {}

    def _check_alive(self) -> None:
        dead = children.first_dead(self._vital)
        if dead is not None:
            raise EngineDiedError(
                f"a process of the engine died (pid {dead.pid})",
                remedy="see its messages above; if there are none, the system may have run out of memory",
            )
        if self._intake is not None:
            self._intake.check()

    def _make_intake(self, pool: TaskPool[Result]) -> Intake[Any, Result]:
        window = self._window_tokens
        if window is None and isinstance(self._embedder, FastEmbedder):
            window = self._embedder.window_tokens
        if window is None:
            facts = self._engine._scheduler_init_result.scheduler_infos[0]
            caches = _CACHES_OF_TOKENS * self._engine.server_args.dp_size
            window = caches * int(facts["max_total_num_tokens"])
        if self._embedder is not None:
            ways = {"tokenize": self._embedder.tokenize, "tokens": _row_tokens, "work": self._embedder.embed}
        else:
            ways = {"tokenize": self._prompt_ids, "tokens": _prompt_tokens, "work": self._generate}
        return Intake(self._engine.loop, pool, window_tokens=window, **ways)

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests on their way to SGLang; those that do not fit are answered without it."""
        if self._pool is None or self._intake is None:
            raise EngineError("submit() on an engine that is not started", "start() first")
        self._intake.add(requests)
        # One turn of the loop: the first slice is tokenised from now on, not from the next wait().
        self._pool.run(asyncio.sleep(0))

    def wait(self) -> list[Result]:
        """Run the loop until a request is done, looking after the child processes meanwhile."""
        if self._pool is None or self._intake is None or (self._pool.empty and self._intake.empty):
            raise EngineError("wait() with nothing in flight", "submit() first")
        return [_result(task) for task in self._pool.fetch(self._check_alive)]

    def abandon(self) -> None:
        """Cancel the tasks, and tell the scheduler to stop working on them."""
        if self._pool is None or self._intake is None or (self._pool.empty and self._intake.empty):
            return
        self._intake.forget()
        self._pool.forget()  # on embeddings' fast road this drops their blocks
        if not isinstance(self._embedder, FastEmbedder):
            self._engine.tokenizer_manager.abort_request(abort_all=True)

    def _prompt_ids(self, requests: Sequence[GenerateRequest]) -> list[list[int] | RowError]:
        return prompt_ids(self._engine.tokenizer_manager.tokenizer, [request.prompt for request in requests])

    async def _generate(self, request: GenerateRequest, ids: list[int] | RowError) -> GenerateResult:
        wanted = request.sampling["max_new_tokens"]
        left = ids if isinstance(ids, RowError) else self._cut(ids, request)
        error = left if isinstance(left, RowError) else self._too_long(len(left), wanted)
        if error is None:
            answer = await asked(
                self._engine.async_generate(
                    input_ids=left, sampling_params=dict(request.sampling), return_logprob=request.logprobs
                )
            )
            if not isinstance(answer, RowError):
                result = generated(request.position, answer, request.logprobs)
                return result._replace(prompt_truncated=len(ids) - len(left))
            error = answer
        return GenerateResult(request.position, None, None, None, None, error)

    def _cut(self, ids: list[int], request: GenerateRequest) -> list[int]:
        """Cut a prompt to what leaves room for the response, if the request says so and there is any room."""
        assert self._info is not None
        limit = self._info.max_input_tokens
        if request.on_too_long == "error" or limit is None:
            return ids
        room = min(limit, self._context() - request.sampling["max_new_tokens"])
        first = self._engine.tokenizer_manager.tokenizer.bos_token_id
        fixed = 1 if ids[:1] == [first] else 0
        return list(truncated(ids, room, request.on_too_long, fixed)) if room > 0 else ids

    def _context(self) -> int:
        manager = self._engine.tokenizer_manager
        return manager.context_len - manager.num_reserved_tokens

    def _too_long(self, tokens: int, max_new_tokens: int = 0) -> RowError | None:
        assert self._info is not None
        limit = self._info.max_input_tokens
        if limit is None:
            return None
        if tokens > limit:
            return RowError(RowErrorKind.TOO_LONG, f"the input has {tokens} tokens, the model takes {limit}")
        context = self._context()
        if tokens + max_new_tokens > context:
            return RowError(
                RowErrorKind.TOO_LONG,
                f"the input has {tokens} tokens and max_new_tokens is {max_new_tokens}, the context {context}",
            )
        return None


def _result(task: asyncio.Task[Result]) -> Result:
    error = task.exception()
    if error is not None:
        # What SGLang means as an answer to one row was caught in the task; this is something else.
        raise EngineDiedError(f"SGLang failed on a request: {type(error).__name__}: {error}") from error
    return task.result()


def _prompt_tokens(ids: list[int] | RowError) -> int:
    return 0 if isinstance(ids, RowError) else len(ids)


def _row_tokens(rows: TokenRows) -> int:
    return rows.tokens
