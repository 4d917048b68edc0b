"""Claim: a whole `batch_sdk` job, Parquet to Parquet, runs at the speed of SGLang's own offline benchmark.

One engine, two arms in turn. `sglang` is the function that `python -m sglang.benchmark.offline_throughput` runs,
given the rows' token ids all at once, so that nothing of it is spent on tokenising or tables. `sdk` is
`batch_sdk.generate` from a Parquet file to a Parquet file, with a template, tokenising, and every column it writes. The
radix cache is emptied before each.

    python benchmarks/batch_thin.py                         # Llama-3.1-8B shape, 20,000 rows, one GPU
    python benchmarks/batch_thin.py --shape toy --rows 200  # any machine, to see that it runs

Prompts are of 200 to 2,000 tokens, most of them short (log-normal around 350), answers of 64. Both arms run
`--warm-up` rows first, then all rows, `--repeats` times.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batch_tables import Texts, write_model
from shapes import MODELS

import batch_sdk

BAR = 0.97
ANSWER_TOKENS = 64


class IdsBackend:
    """Stands where the offline benchmark has its engine, and hands its prompts on as token ids."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def generate(self, prompt: list[list[int]], **options: Any) -> Any:
        """`sglang.Engine.generate` on ids."""
        return self._engine.generate(input_ids=prompt, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def lengths(rows: int, longest: int) -> np.ndarray:
    """Tokens of each prompt."""
    draw = np.random.default_rng(0).lognormal(np.log(350), 0.6, rows)
    return np.clip(draw, min(200, longest), longest).astype(int)


def measure(engine: Any, table: Path, ids: list[list[int]], rows: int, arm: str) -> dict[str, float]:
    """Runs the first rows once; returns seconds and tokens."""
    inner = engine._engine
    inner.flush_cache()
    if arm == "sglang":
        from sglang.benchmark.datasets.common import DatasetRow
        from sglang.benchmark.offline_throughput import throughput_test_once

        requests = [DatasetRow(row, len(row), ANSWER_TOKENS) for row in ids[:rows]]
        found = throughput_test_once("engine", IdsBackend(inner), requests, True, {}, False)
        seconds = found["total_latency"]
        tokens = found["total_input_tokens"] + found["total_output_tokens"]
    else:
        output = table.with_name("out.parquet")
        started = time.perf_counter()
        summary = batch_sdk.generate(
            str(table), prompt="{{ text }}", chat=False, model=engine, output=output, overwrite=True, keep=["id"],
            limit_rows=rows, max_new_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True, progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if summary.error_rows or pq.read_metadata(output).num_rows != rows:
            raise RuntimeError(f"not every row has an answer: {summary}")
        tokens = summary.prompt_tokens + summary.completion_tokens
    print(
        f"  {arm}: {rows} rows, {tokens:,} tokens in {seconds:.2f} s: {tokens / seconds:,.0f} tokens/s",
        flush=True,
    )
    return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds}


def run(args: Any, folder: Path, finish: Callable[[dict[str, Any]], None]) -> None:
    """Starts the engine and measures."""
    model = MODELS[args.shape]
    tokenizer = write_model(folder / "model", model.config)
    longest = min(2000, model.config["max_position_embeddings"] - 200)
    texts = Texts(tokenizer)
    column = [texts.piece(int(count)) for count in lengths(args.rows, longest)]
    ids = tokenizer(column)["input_ids"]
    table = folder / "in.parquet"
    pq.write_table(pa.table({"id": range(args.rows), "text": column}), table)
    counts = [len(row) for row in ids]
    print(
        f"{args.rows} rows of {min(counts)} to {max(counts)} tokens, {np.mean(counts):.0f} on average",
        flush=True,
    )
    options = {"load_format": "dummy", **json.loads(args.engine_options)}
    started = time.perf_counter()
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    with batch_sdk.create_engine(
        "sglang", model=str(folder / "model"), task="generate", options=options
    ) as engine:
        print(f"started in {time.perf_counter() - started:.1f} s", flush=True)
        for arm in args.arms[::-1]:
            measure(engine, table, ids, min(args.warm_up, args.rows), arm)
        for repeat in range(args.repeats):
            for arm in args.arms if repeat % 2 == 0 else args.arms[::-1]:
                found[arm].append(measure(engine, table, ids, args.rows, arm))
        tokens = {sample["tokens"] for samples in found.values() for sample in samples}
        if len(tokens) != 1:
            raise RuntimeError(f"the arms counted other tokens: {sorted(tokens)}")
    rates = {arm: common.summary([sample["rate"] for sample in samples]) for arm, samples in found.items()}
    finish(
        {
            "shape": args.shape, "weights": "dummy", "rows": args.rows, "prompt_tokens": sum(counts),
            "prompt_tokens_least": min(counts), "prompt_tokens_most": max(counts), "answer_tokens": ANSWER_TOKENS,
            "engine_options": options, "tokens_per_second": rates,
            "ratio": round(rates["sdk"]["median"] / rates["sglang"]["median"], 4) if len(rates) == 2 else None,
            "bar": BAR,
        }
    )  # fmt: skip


if __name__ == "__main__":
    parser = common.parser(__doc__)
    parser.add_argument("--shape", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=1_500)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=("sglang", "sdk"), default=["sglang", "sdk"])
    parser.add_argument(
        "--engine-options", default="{}", metavar="JSON", help="more keywords of sglang.Engine"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(
            arguments,
            Path(temporary),
            lambda result: common.write("batch_thin", result, arguments.out, arguments.commit),
        )
