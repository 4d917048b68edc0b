"""SGLang's model config for an embedding checkpoint."""

from types import SimpleNamespace

import pytest

from arctic_sglang.embedding.checkpoint import PoolingSpec
from arctic_sglang.embedding.model_config import after_from_server_args


def config(**hf):
    return SimpleNamespace(context_len=512, hf_config=SimpleNamespace(context_len=512, **hf))


def args(pooling, context_length=None):
    return SimpleNamespace(context_length=context_length, _arctic=SimpleNamespace(pooling=pooling))


@pytest.mark.parametrize(
    ("window", "given", "context"), [(512, None, 513), (None, None, 512), (256, 128, 512)]
)
def test_context_length(window, given, context):
    found = after_from_server_args(config(), args(PoolingSpec("mean", True, window), given), model_path="m")
    assert found.context_len == found.hf_config.context_len == context


def test_position_type_of_encoders():
    encoder, decoder = PoolingSpec("cls", True, is_encoder=True), PoolingSpec("last", True)
    assert after_from_server_args(config(), args(encoder)).hf_config.position_embedding_type == "absolute"
    assert not hasattr(after_from_server_args(config(), args(decoder)).hf_config, "position_embedding_type")
    said = config(position_embedding_type="relative_key")
    assert after_from_server_args(said, args(encoder)).hf_config.position_embedding_type == "relative_key"


def test_other_models_are_left_alone():
    for server_args in (args(None), SimpleNamespace(context_length=None)):
        found = after_from_server_args(config(), server_args)
        assert found.context_len == 512
        assert not hasattr(found.hf_config, "position_embedding_type")
