"""One job of one peer, for `batch_peers.py`: reads a folder of Parquet files, asks a server, writes Parquet.

Each peer is driven as its own documentation does it; the functions below are the whole of what a user writes. A peer's
packages are imported only by its function, so that every peer can have an interpreter of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = {
    "batch_sdk": ["arctic-sglang", "aiohttp", "pyarrow"],
    "batch_sdk_sglang": ["arctic-sglang", "sglang", "pyarrow"],
    "asyncio_aiohttp": ["aiohttp", "pyarrow"],
    "asyncio_openai": ["openai", "pyarrow"],
    "daft": ["daft", "openai"],
    "ray_http": ["ray", "aiohttp", "pyarrow"],
    "ray_sglang": ["ray", "sglang", "transformers", "pyarrow"],
}

CONCURRENCY = 64
BATCH = 16
# What these two peers have no argument for. Both default to more or to less than the concurrency of the others.
ENVIRONMENT = {
    "daft": {"DAFT_MAX_ASYNC_UDF_INFLIGHT_TASKS": str(CONCURRENCY // BATCH), "DO_NOT_TRACK": "1"},
    "ray_http": {"RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY": str(CONCURRENCY)},
}


@dataclass(frozen=True)
class Work:
    """What a peer is asked to do.

    Args:
        input: folder of Parquet files with the columns `id` and `body`.
        output: folder for the Parquet files with the same columns and `response`.
        concurrency: requests in flight at most; 0 leaves it to the peer.
        max_tokens: tokens of an answer at most.
        state: folder for what the peer keeps to go on after a kill; None: it runs as it does by default.
        tolerant: with the options that the peer's documentation has for rows that fail.
        file_rows: rows of an input file.
    """

    input: Path
    output: Path
    url: str
    model: str
    concurrency: int
    max_tokens: int
    state: Path | None
    tolerant: bool
    file_rows: int


def with_batch_sdk(work: Work) -> None:
    """`batch_sdk` with its http engine. Error rows and parts are what it does anyhow."""
    import batch_sdk

    batch_sdk.generate(
        str(work.input / "*.parquet"),
        prompt="Summarise: {{ body }}",
        model=work.model,
        engine="http",
        engine_options={"url": work.url, "max_concurrency": work.concurrency},
        output=str(work.output),
        max_new_tokens=work.max_tokens,
        temperature=0.0,
        rows_per_file=work.file_rows,
        resume=work.state is not None,
        progress=False,
    )


def with_batch_sdk_sglang(work: Work) -> None:
    """`batch_sdk` with SGLang in its own process, on the CPU; there is no server."""
    import batch_sdk

    batch_sdk.generate(
        str(work.input / "*.parquet"),
        prompt="Summarise: {{ body }}",
        model=work.model,
        engine_options={"device": "cpu"},
        output=str(work.output),
        max_new_tokens=work.max_tokens,
        temperature=0.0,
        rows_per_file=work.file_rows,
        progress=False,
    )


def _loop(work: Work, ask: Callable[[str], Any], opened: Any) -> None:
    """The plain loop: all rows behind a semaphore, the whole table written at the end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    async def one(gate: asyncio.Semaphore, body: str) -> str:
        async with gate:
            return await ask(f"Summarise: {body}")

    async def everything(bodies: list[str]) -> list[Any]:
        gate = asyncio.Semaphore(work.concurrency)
        async with opened():
            rows = (one(gate, body) for body in bodies)
            return await asyncio.gather(*rows, return_exceptions=work.tolerant)

    table = pq.read_table(work.input)
    answers = asyncio.run(everything(table["body"].to_pylist()))
    texts = [None if isinstance(answer, Exception) else answer for answer in answers]
    table = table.append_column("response", pa.array(texts, pa.string()))
    if work.tolerant:
        errors = [repr(answer) if isinstance(answer, Exception) else None for answer in answers]
        table = table.append_column("error", pa.array(errors, pa.string()))
    work.output.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, work.output / "part-0.parquet")


def with_asyncio_aiohttp(work: Work) -> None:
    """The loop with aiohttp."""
    import aiohttp

    session: Any = None

    def opened() -> Any:
        nonlocal session
        timeout = aiohttp.ClientTimeout(total=600)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        return session

    async def ask(prompt: str) -> str:
        async with session.post(f"{work.url}/v1/chat/completions", json=_payload(work, prompt)) as response:
            response.raise_for_status()
            return (await response.json())["choices"][0]["message"]["content"]

    _loop(work, ask, opened)


def with_asyncio_openai(work: Work) -> None:
    """The loop with OpenAI's own client, with its own retries (two)."""
    import openai

    client: Any = None

    def opened() -> Any:
        nonlocal client
        client = openai.AsyncOpenAI(base_url=f"{work.url}/v1", api_key="none")
        return client

    async def ask(prompt: str) -> str:
        answer = await client.chat.completions.create(**_payload(work, prompt))
        return answer.choices[0].message.content

    _loop(work, ask, opened)


def _payload(work: Work, prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": work.model, "messages": messages, "max_tokens": work.max_tokens, "temperature": 0.0}


def with_daft(work: Work) -> None:
    """Daft's `prompt` with its OpenAI provider: on its native runner, on Ray where it keeps checkpoints.

    `into_batches` and `DAFT_MAX_ASYNC_UDF_INFLIGHT_TASKS` (see `ENVIRONMENT`) bound the rows in flight.
    """
    import daft
    from daft.functions import format, prompt

    checkpoint = None
    if work.state is not None:
        import ray

        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        daft.set_runner_ray()
        checkpoint = daft.CheckpointConfig(store=daft.CheckpointStore(work.state.as_uri()), on="id")
    daft.set_provider("openai", base_url=f"{work.url}/v1", api_key="none")
    options: dict[str, Any] = {"on_error": "ignore"} if work.tolerant else {}
    response = prompt(
        format("Summarise: {}", daft.col("body")),
        provider="openai",
        model=work.model,
        use_chat_completions=True,
        max_tokens=work.max_tokens,
        temperature=0.0,
        **options,
    )
    table = daft.read_parquet(str(work.input / "*.parquet"), checkpoint=checkpoint)
    if work.concurrency:
        table = table.into_batches(BATCH)
    table.with_column("response", response).write_parquet(str(work.output))


def with_ray_http(work: Work) -> None:
    """Ray Data LLM's HTTP processor. `ENVIRONMENT` says how many batches its actor works on at once."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    _ray(work)
    config = HttpRequestProcessorConfig(
        url=f"{work.url}/v1/chat/completions", batch_size=BATCH, max_retries=3 if work.tolerant else 0
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {"payload": _payload(work, f"Summarise: {row['body']}")},
        postprocess=lambda row: {
            "id": row["id"],
            "body": row["body"],
            "response": row["http_response"]["choices"][0]["message"]["content"],
        },
    )
    processor(ray.data.read_parquet(str(work.input))).write_parquet(str(work.output))


def with_ray_sglang(work: Work) -> None:
    """Ray Data LLM's SGLang processor on the CPU; there is no server. It asks for a GPU, so one is declared to Ray."""
    import ray
    from ray.data.llm import SGLangEngineProcessorConfig, build_processor

    _ray(work, num_gpus=1)
    config = SGLangEngineProcessorConfig(
        model_source=work.model,
        engine_kwargs={"device": "cpu"},
        batch_size=BATCH,
        should_continue_on_error=work.tolerant,
    )
    sampling = {"max_new_tokens": work.max_tokens, "temperature": 0.0}
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": f"Summarise: {row['body']}"}],
            "sampling_params": sampling,
        },
        postprocess=lambda row: {"id": row["id"], "body": row["body"], "response": row["generated_text"]},
    )
    processor(ray.data.read_parquet(str(work.input))).write_parquet(str(work.output))


def _ray(work: Work, **resources: int) -> None:
    import ray

    # Logical CPUs only say what may be scheduled: the SGLang processor's four actors take one each, and leave a
    # reader none if there are four. The cluster is its own, whatever else runs on this machine.
    ray.init(
        "local", num_cpus=8 if resources else 4, include_dashboard=False, log_to_driver=False, **resources
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if work.tolerant:
        context.max_errored_blocks = -1
    if work.state is not None:
        from ray.data.checkpoint import CheckpointConfig

        context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=str(work.state))


PEERS: dict[str, Callable[[Work], None]] = {
    "batch_sdk": with_batch_sdk,
    "asyncio_aiohttp": with_asyncio_aiohttp,
    "asyncio_openai": with_asyncio_openai,
    "daft": with_daft,
    "ray_http": with_ray_http,
    "batch_sdk_sglang": with_batch_sdk_sglang,
    "ray_sglang": with_ray_sglang,
}


def versions(peer: str) -> dict[str, str]:
    """Versions of the packages that a peer needs.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    return {name: importlib.metadata.version(name) for name in PACKAGES[peer]}


def main() -> None:
    """Runs one job, or says which versions there are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("peer", choices=PEERS)
    options.add_argument("--versions", action="store_true")
    options.add_argument("--work", help="the fields of `Work` as JSON")
    args = options.parse_args()
    if args.versions:
        print(json.dumps(versions(args.peer)))
        return
    fields = json.loads(args.work)
    for name in ("input", "output", "state"):
        fields[name] = fields[name] and Path(fields[name])
    PEERS[args.peer](Work(**fields))


if __name__ == "__main__":
    main()
