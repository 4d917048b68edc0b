"""Checkpoints of every architecture that embeds: batch_sdk over SGLang against sentence-transformers, float32."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import batch_sdk
from batch_sdk.errors import OptionError
from tests.engine.checkpoints import Checkpoint, write

HELD_OUT = Path(__file__).parents[2] / "examples" / "tiny_lm" / "heldout.jsonl"
ODD = [
    "", " ", "\n\t", "a", "Grüße aus Zürich", "日本語の文章です。", "🙂🙃" * 10, "a" * 3000, "\u200b\u200d",
    "مرحبا بالعالم",
]  # fmt: skip
PROMPTS = {"query": "Represent this sentence for searching relevant passages: ", "document": ""}

CHECKPOINTS = {
    "bert-cls": Checkpoint("bert", "pooling_mode_cls_token", 512, prompts=PROMPTS),
    # Pooling, two Dense layers, a default prompt and Matryoshka dimensions at once.
    "bert-dense": Checkpoint(
        "bert", "pooling_mode_mean_tokens", 64, ((96, "Tanh"), (48, "GELU")), PROMPTS, "query", (16, 48)
    ),
    "xlm-roberta": Checkpoint("xlm-roberta", "pooling_mode_cls_token", 512, prompts={"query": "query: "}),
    "qwen3": Checkpoint(
        "qwen3", "pooling_mode_lasttoken", 128, prompts={"query": "Instruct: Find what answers it\nQuery:"}
    ),
}
# On SGLang's own road and on that of `--enable-fast-embedding`: the latter is what batch_sdk takes unless told not to.
CASES = [
    pytest.param(
        (name, fast), id=f"{name}-{'fast' if fast else 'plain'}", marks=[] if often else [pytest.mark.full]
    )
    for name, fast, often in (
        ("bert-cls", False, False),
        ("bert-cls", True, False),
        ("bert-dense", False, False),
        ("bert-dense", True, True),
        ("xlm-roberta", False, False),
        ("xlm-roberta", True, True),
        ("qwen3", False, False),
        ("qwen3", True, True),
    )
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Odd ones, sentences, whole functions."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()[:45]]
    functions = [row["code"] for row in rows]
    return [*ODD, *(row["doc"] for row in rows), *functions, "\n".join(functions[:15])]


@pytest.fixture(scope="module", params=CASES)
def served(request, texts, tmp_path_factory):
    """(what the checkpoint has, sentence-transformers' model, engine of ours, on the fast road?) of one checkpoint."""
    from sentence_transformers import SentenceTransformer

    name, fast = request.param
    checkpoint = CHECKPOINTS[name]
    folder = write(checkpoint, tmp_path_factory.mktemp(name), texts)
    reference = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    options = {"dtype": "float32", "enable_fast_embedding": fast}
    with batch_sdk.create_engine("sglang", model=folder, task="embed", options=options) as engine:
        yield checkpoint, reference, engine, fast


def embed(texts, engine, **options):
    """Vectors of the rows without an error, and the whole table."""
    table = batch_sdk.embed(pa.table({"text": texts}), column="text", model=engine, progress=False, **options)
    return np.stack(table["embedding"].drop_null().to_numpy(zero_copy_only=False)), table


def assert_equal(vectors, expected):
    cosine = (
        (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    )
    assert cosine.min() > 0.99999, f"row {int(cosine.argmin())}: cosine {cosine.min():.7f}"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_equal_to_sentence_transformers(served, texts):
    checkpoint, reference, engine, _ = served
    expected = reference.encode(texts, batch_size=16)
    others = np.roll(expected, 1, axis=0)
    assert np.median((expected * others).sum(axis=1)) < 0.99, "texts too alike to show a difference"
    vectors, table = embed(texts, engine, truncate=True)
    assert table["error"].null_count == len(texts)
    assert max(table["prompt_tokens"].to_pylist()) == checkpoint.window
    assert_equal(vectors, expected)


def test_prompts(served, texts):
    checkpoint, reference, engine, _ = served
    plain = reference.encode(texts[:40], prompt="")
    for name in checkpoint.prompts:
        expected = reference.encode(texts[:40], prompt_name=name)
        vectors, _ = embed(texts[:40], engine, truncate=True, prompt_name=name)
        assert_equal(vectors, expected)
        same = np.allclose(expected, plain, atol=1e-5)
        assert same == (not checkpoint.prompts[name]), "the prompt makes no difference"
    with pytest.raises(OptionError, match="'passage' is not one of the checkpoint's prompts"):
        embed(texts[:1], engine, prompt_name="passage")


def test_the_whole_window_and_no_more(served):
    checkpoint, reference, engine, _ = served
    lengths = [checkpoint.window - 1, checkpoint.window, checkpoint.window + 1]
    texts = [_of_length(reference.tokenizer, length) for length in lengths]
    prompt = {"prompt_name": "document"} if checkpoint.default_prompt else {}
    vectors, table = embed(texts, engine, **prompt)
    assert table["prompt_tokens"].to_pylist() == [*lengths[:2], None]
    assert_equal(vectors, reference.encode(texts[:2], **prompt))
    error = table["error"].to_pylist()[2]
    assert error["kind"] == "too_long"
    assert error["message"].endswith(f"{lengths[2]} tokens, the model takes {checkpoint.window}")


def test_matryoshka_dimensions(served, texts):
    checkpoint, reference, engine, fast = served
    if not checkpoint.dimensions:
        pytest.skip("this checkpoint is not trained for it")
    some = [text[:30] for text in texts[10:20]]
    # SGLang's own road knows no prompts, the default one neither.
    prompt = {} if fast else {"prompt": ""}
    for width in checkpoint.dimensions:
        expected = reference.encode(some, **prompt, truncate_dim=width, normalize_embeddings=True)
        answers = engine._engine.encode(some, dimensions=width)
        vectors = np.array([answer["embedding"] for answer in answers])
        assert vectors.shape == (len(some), width)
        assert_equal(vectors, expected)
        # The SDK puts the default prompt in front on both roads, and cuts by itself.
        assert_equal(
            embed(some, engine, dimensions=width)[0],
            reference.encode(some, truncate_dim=width, normalize_embeddings=True),
        )


def _of_length(tokenizer, length):
    """A text of so many tokens, special ones included."""
    unit = " word"
    text = unit
    while len(tokenizer(text)["input_ids"]) < length:
        text += unit if len(tokenizer(text + unit)["input_ids"]) <= length else "."
    assert len(tokenizer(text)["input_ids"]) == length
    return text
