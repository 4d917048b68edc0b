"""Embeddings with Shift Parallelism against sentence-transformers: both roads, every mode, on ranks of a CPU."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import batch_sdk
from tests.engine.checkpoints import Checkpoint, write

HELD_OUT = Path(__file__).parents[2] / "examples" / "tiny_lm" / "heldout.jsonl"
TOLERANCE = 2e-5  # of a component; float32 on both sides, vectors of length 1
# Family, pooling, the vectorised road, ranks of the base tensor parallelism, of a sequence group, threshold.
CASES = [
    ("qwen3", "lasttoken", False, 1, 2, "24"), ("qwen3", "mean_tokens", True, 1, 2, "24"),
    ("qwen3", "mean_tokens", False, 1, 2, None), ("mistral", "lasttoken", False, 1, 2, "24"),
]  # fmt: skip


@dataclass
class Served:
    engine: Any
    reference: Any
    threshold: str | None

    def steps(self):
        return self.engine._engine.get_server_info()["internal_states"][0]["shift"]["steps"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """One token, sentences, and functions that are cut into chunks where pooling allows it."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()[:20]]
    return ["a", "", *(row["doc"] for row in rows), *(row["code"] for row in rows)]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}-tp{p[3]}-sp{p[4]}-{p[5]}")
def served(request, texts, tmp_path_factory):
    from sentence_transformers import SentenceTransformer

    family, pooling, fast, tp, sp, threshold = request.param
    checkpoint = Checkpoint(family, f"pooling_mode_{pooling}", 256)
    folder = write(checkpoint, tmp_path_factory.mktemp(family), texts)
    reference = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    options = {
        "dtype": "float32", "enable_fast_embedding": fast, "tp_size": tp, "ulysses_sequence_parallel_size": sp,
        "chunked_prefill_size": 64, "max_total_tokens": 8192,
    }  # fmt: skip
    if threshold is not None:
        options |= {"enable_shift_parallel": True, "shift_parallel_threshold": threshold}
    with batch_sdk.create_engine("sglang", model=folder, task="embed", options=options) as engine:
        yield Served(engine, reference, threshold)


@pytest.mark.full
def test_vectors_are_those_of_sentence_transformers(served, texts):
    before = served.steps()
    expected = served.reference.encode(texts, batch_size=1)
    for block_rows in (1, 16):  # short rows alone are steps of few tokens
        table = batch_sdk.embed(
            pa.table({"text": texts}), column="text", model=served.engine, truncate=True, progress=False,
            block_rows=block_rows,
        )  # fmt: skip
        assert table["error"].null_count == len(texts)
        vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
        assert np.abs(vectors - expected).max() < TOLERANCE
    steps = {mode: count - before[mode] for mode, count in served.steps().items()}
    assert steps["sp"] > 0
    assert (steps["tp"] > 0) == (served.threshold is not None)
