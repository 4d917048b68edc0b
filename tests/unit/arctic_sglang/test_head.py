"""What comes after the transformer, against its slow twin and sentence-transformers' own modules."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from arctic_sglang.embedding.checkpoint import ACTIVATIONS, DenseSpec, PoolingSpec
from arctic_sglang.embedding.head import EmbeddingHead, head_slow, load_dense

LENGTHS = torch.tensor([3, 1, 7, 2])
WIDTH = 24


def weights(folder, out, into, bias=True, suffix=".safetensors"):
    torch.manual_seed(out)
    tensors = {"linear.weight": torch.randn(out, into)} | ({"linear.bias": torch.randn(out)} if bias else {})
    file = folder / f"{into}-{out}{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, file)
    return str(file)


@pytest.fixture
def hidden():
    torch.manual_seed(0)
    return torch.randn(int(LENGTHS.sum()), WIDTH)


@pytest.fixture
def dense(tmp_path):
    return (
        DenseSpec(WIDTH, 40, False, "Identity", weights(tmp_path, 40, WIDTH, bias=False)),
        DenseSpec(40, 16, True, "Tanh", weights(tmp_path, 16, 40, suffix=".bin")),
    )


@pytest.mark.parametrize("mode", ["cls", "mean", "last"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dimensions", [None, 5])
def test_equals_slow_twin(dense, hidden, mode, normalize, dimensions):
    for layers in ((), dense):
        spec = PoolingSpec(mode, normalize, dense=layers)
        head = EmbeddingHead(spec, "cpu")
        found = head.finish(head(hidden, LENGTHS), dimensions)
        expected = head_slow(spec, hidden, LENGTHS, dimensions)
        assert found.shape == (len(LENGTHS), dimensions or (16 if layers else WIDTH))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_equals_sentence_transformers(dense, hidden):
    from sentence_transformers.models import Dense, Normalize, Pooling

    features = {
        "token_embeddings": torch.nn.utils.rnn.pad_sequence(hidden.split(LENGTHS.tolist()), batch_first=True),
        "attention_mask": (torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]).long(),
    }
    modules = [Pooling(WIDTH, "mean")]
    for layer in dense:
        activation = getattr(torch.nn, layer.activation)()
        module = Dense(layer.in_features, layer.out_features, layer.bias, activation)
        module.linear.load_state_dict(load_dense(layer)[0].state_dict())
        modules.append(module)
    for module in (*modules, Normalize()):
        features = module(features)
    head = EmbeddingHead(PoolingSpec("mean", True, dense=dense), "cpu")
    torch.testing.assert_close(head.finish(head(hidden, LENGTHS)), features["sentence_embedding"])


def test_a_request_goes_before_the_checkpoints_own_cut(hidden):
    head = EmbeddingHead(PoolingSpec("mean", True, truncate_dim=8), "cpu")
    vectors = head(hidden, LENGTHS)
    assert head.finish(vectors).shape[1] == 8
    assert head.finish(vectors, 12).shape[1] == 12
    torch.testing.assert_close(head.finish(vectors).norm(dim=1), torch.ones(len(LENGTHS)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_one(tmp_path, name):
    layer = load_dense(DenseSpec(4, 3, True, name, weights(tmp_path, 3, 4)))
    assert layer(torch.randn(2, 4)).shape == (2, 3)


def test_weights_of_another_shape(tmp_path):
    with pytest.raises(ValueError, match=r"has .*\(3, 4\).*asks for .*\(3, 5\)"):
        load_dense(DenseSpec(5, 3, True, "Tanh", weights(tmp_path, 3, 4)))


def test_bfloat16_is_pooled_in_float32(dense, hidden):
    spec = PoolingSpec("mean", True, dense=dense)
    head = EmbeddingHead(spec, "cpu")
    half = hidden.bfloat16()
    torch.testing.assert_close(
        head.finish(head(half, LENGTHS)), head_slow(spec, half, LENGTHS), atol=2e-6, rtol=1e-5
    )


def test_pooler_of_sglangs_batch(dense, hidden):
    from arctic_sglang.embedding.pooling import CheckpointPooler

    head = EmbeddingHead(PoolingSpec("mean", True, dense=dense), "cpu")
    pooler = CheckpointPooler(head)
    padded = torch.cat([hidden, torch.full((3, WIDTH), float("nan"))])

    def embeddings(dimensions):
        batch = SimpleNamespace(
            extend_seq_lens=LENGTHS, extend_seq_lens_cpu=LENGTHS.tolist(), dimensions=dimensions
        )
        return pooler(padded, batch).embeddings

    everything = head.finish(head(hidden, LENGTHS))
    torch.testing.assert_close(embeddings(None), everything)
    assert embeddings([5] * 4).shape == (4, 5)
    rows = embeddings([5, WIDTH, WIDTH, 5])
    assert [len(row) for row in rows] == [5, 16, 16, 5], "no dimensions named: SGLang sends the model's width"
    torch.testing.assert_close(rows[1], everything[1])
