"""Claim: on rows that share long prefixes at random, prefix ordering beats table order.

A table of 5,000 rows, each one of 20 prefixes and a text of its own, in random order, run by one engine with
`order="table"` and with `order="prefix"`. It pays where the prefixes together are larger than the KV cache, so the
cache is held to `--cache-tokens` (40,000: what a GPU of 24 GB has left beside an 8B model in bf16).
`--cache-tokens 0` gives the engine all the memory it finds, where every prefix stays cached either way.

    python benchmarks/batch_prefix.py                                     # Llama-3.1-8B shape, one GPU
    python benchmarks/batch_prefix.py --shape toy --rows 200 --prefix-tokens 200 --cache-tokens 3000  # any machine
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batch_tables import Texts, write_model
from shapes import MODELS

import batch_sdk

BAR = 1.5
PREFIXES = 20


def measure(engine: Any, table: Path, args: Any, order: str, rows: int | None = None) -> dict[str, Any]:
    """Runs the table once; returns seconds and tokens."""
    engine._engine.flush_cache()
    output = table.with_name(f"{order}.parquet")
    started = time.perf_counter()
    summary = batch_sdk.generate(
        str(table), prompt="{{ prefix }}\n{{ text }}", chat=False, model=engine, output=output, overwrite=True,
        keep=["id"], order=order, window_rows=args.window_rows, max_new_tokens=args.answer_tokens, temperature=0,
        ignore_eos=True, progress=False, limit_rows=rows,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    ids = pq.read_table(output)["id"].to_pylist()
    if summary.error_rows or ids != list(range(rows or args.rows)):
        raise RuntimeError(f"not every row has its answer: {summary}")
    print(f"  {order}: {len(ids)} rows, {summary.prompt_tokens:,} tokens in, {seconds:.2f} s", flush=True)
    return {"seconds": seconds, "prompt_tokens": summary.prompt_tokens}


def run(args: Any, folder: Path) -> dict[str, Any]:
    """Starts the engine and measures."""
    model = MODELS[args.shape]
    texts = Texts(write_model(folder / "model", model.config))
    prefixes = [texts.piece(args.prefix_tokens) for _ in range(PREFIXES)]
    chosen = np.random.default_rng(1).integers(0, PREFIXES, args.rows)
    table = folder / "in.parquet"
    columns = {
        "id": range(args.rows),
        "prefix": [prefixes[index] for index in chosen],
        "text": [texts.piece(args.own_tokens) for _ in range(args.rows)],
    }
    pq.write_table(pa.table(columns), table)
    options = {"load_format": "dummy", **json.loads(args.engine_options)}
    if args.cache_tokens:
        options["max_total_tokens"] = args.cache_tokens
    found: dict[str, list[dict[str, Any]]] = {order: [] for order in args.orders}
    with batch_sdk.create_engine(
        "sglang", model=str(folder / "model"), task="generate", options=options
    ) as engine:
        capacity = engine._engine.get_server_info()["max_total_num_tokens"]
        print(f"cache of {capacity:,} tokens", flush=True)
        measure(engine, table, args, "prefix", min(args.rows, 200))
        for repeat in range(args.repeats):
            for order in args.orders if repeat % 2 == 0 else args.orders[::-1]:
                found[order].append(measure(engine, table, args, order))
    seconds = {
        order: common.summary([sample["seconds"] for sample in samples]) for order, samples in found.items()
    }
    return {
        "shape": args.shape, "weights": "dummy", "rows": args.rows, "prefixes": PREFIXES,
        "prefix_tokens": args.prefix_tokens, "own_tokens": args.own_tokens, "answer_tokens": args.answer_tokens,
        "window_rows": args.window_rows, "cache_tokens": capacity,
        "prompt_tokens": found[args.orders[0]][0]["prompt_tokens"],
        "engine_options": options, "seconds": seconds,
        "ratio": round(seconds["table"]["median"] / seconds["prefix"]["median"], 4) if len(seconds) == 2 else None,
        "bar": BAR,
    }  # fmt: skip


if __name__ == "__main__":
    parser = common.parser(__doc__)
    parser.add_argument("--shape", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--prefix-tokens", type=int, default=3_000)
    parser.add_argument("--own-tokens", type=int, default=100)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--cache-tokens", type=int, default=40_000)
    parser.add_argument("--window-rows", type=int, default=4_096)
    parser.add_argument("--orders", nargs="+", choices=("prefix", "table"), default=["prefix", "table"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--name", default="batch_prefix", help="of the JSON")
    parser.add_argument(
        "--engine-options", default="{}", metavar="JSON", help="more keywords of sglang.Engine"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        common.write(arguments.name, run(arguments, Path(temporary)), arguments.out, arguments.commit)
