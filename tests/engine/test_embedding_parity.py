"""Vectors of batch_sdk over SGLang against sentence-transformers, on the same weights, in float32."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import batch_sdk

HELD_OUT = Path(__file__).parents[2] / "examples" / "tiny_lm" / "heldout.jsonl"
ODD = [
    "", " ", "\n\t", "a", ".", "Grüße aus Zürich", "日本語の文章です。", "🙂🙃" * 10, "a" * 3000, "é" * 600,
    "\u200b\u200d", "مرحبا بالعالم", "word " * 254, "word " * 255, "word " * 300, "1 2 3 " * 400, "ﬁ ½ ²", "NULL",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """2,000: odd ones, sentences, whole functions (some longer than the window of 256 tokens), and pieces of them."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    found = [*ODD, *(row["doc"] for row in rows[:91])]
    found += ["\n\n".join(row["code"] for row in rows[i : i + 1 + i % 4]) for i in range(91)]
    for begin in range(0, 4000, 40):
        found += [row["code"][begin : begin + 15 + 2 * (i % 20)] for i, row in enumerate(rows)]
    # Pieces may be cut anywhere, also where nothing is left: those are the odd ones' matter.
    return [text for at, text in enumerate(found) if at < 200 or text.strip()][:2000]


def embed(texts, engine, **options):
    table = batch_sdk.embed(
        pa.table({"text": texts}), column="text", model=engine, truncate=True, progress=False, **options
    )
    assert table["error"].null_count == len(texts)
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False)), table["prompt_tokens"].to_numpy()


@pytest.mark.parametrize("rows", [600, pytest.param(2000, marks=pytest.mark.full)])
def test_equal_to_sentence_transformers(texts, minilm_embedder, minilm_dir, rows):
    from sentence_transformers import SentenceTransformer

    texts = texts[:rows]
    assert len(texts) == rows
    assert len(set(texts)) > 0.9 * rows, "too many texts are the same"
    vectors, tokens = embed(texts, minilm_embedder)
    assert (tokens == 256).sum() > 20, "too few texts reach the window"
    reference = SentenceTransformer(minilm_dir, device="cpu")
    expected = reference.encode(texts, batch_size=32)
    cosine = (vectors * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)
    worst = int(cosine.argmin())
    assert cosine.min() > 0.99999, f"cosine {cosine.min():.6f} for {texts[worst][:60]!r}"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_vectors_do_not_depend_on_the_batch(texts, minilm_embedder):
    together, _ = embed(texts[:60], minilm_embedder, block_rows=32)
    alone, _ = embed(texts[:60], minilm_embedder, block_rows=1)
    assert np.abs(together - alone).max() < 1e-5


@pytest.fixture(params=["mean", "lasttoken"])
def decoder_dir(request, tiny_model_dir, tmp_path) -> str:
    """The tiny decoder as a sentence-transformers checkpoint of this pooling, normalised, window 128."""
    for file in Path(tiny_model_dir).iterdir():
        (tmp_path / file.name).symlink_to(file)
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": kind + "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": kind + "Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": kind + "Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 256, "pooling_mode": request.param}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return str(tmp_path)


@pytest.mark.full  # decoders are in test_embedding_models too, with the last token
@pytest.mark.parametrize("ranks", [1, 2])
def test_decoders_equal_sentence_transformers(decoder_dir, texts, ranks):
    from sentence_transformers import SentenceTransformer

    some = [text for text in texts[18:60] if text]
    reference = SentenceTransformer(decoder_dir, device="cpu", model_kwargs={"dtype": "float32"})
    expected = reference.encode(some, batch_size=1)
    options = {"tp_size": ranks}
    with batch_sdk.create_engine("sglang", model=decoder_dir, task="embed", options=options) as engine:
        vectors, tokens = embed(some, engine)
    assert tokens.max() <= 128
    assert (vectors * expected).sum(axis=1).min() > 0.9999
