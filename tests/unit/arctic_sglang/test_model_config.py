"""SGLang's model config for an embedding checkpoint."""

import json
from types import SimpleNamespace

import pytest

from arctic_sglang.compat import checkpoint_files
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


@pytest.mark.parametrize(
    ("config", "overrides", "embeds"),
    [
        ({"architectures": ["BertModel"]}, {}, True),
        ({"architectures": ["XLMRobertaModel"]}, {}, True),
        ({"architectures": ["MistralModel"]}, {}, True),
        (
            {"architectures": ["G"], "model_type": "gemma3_text", "use_bidirectional_attention": True},
            {},
            True,
        ),
        ({"architectures": ["Qwen3ForCausalLM"]}, {}, False),
        ({"architectures": ["Qwen3ForCausalLM"]}, {"architectures": ["BertModel"]}, True),
        ({}, {}, False),
        (None, {}, False),
    ],
)
def test_models_that_sglang_serves_as_embedders_unasked(tmp_path, config, overrides, embeds):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    given = SimpleNamespace(
        model_path=str(tmp_path), revision=None, json_model_override_args=json.dumps(overrides)
    )
    assert checkpoint_files.embeds_unasked(given) is embeds


@pytest.mark.parametrize("name", ["none", "DUMMY", "s3://bucket/model", "no such/folder/of mine"])
def test_what_is_not_on_the_hub_is_sglangs_to_find(name):
    given = SimpleNamespace(model_path=name, revision=None, json_model_override_args="{}")
    assert not checkpoint_files.embeds_unasked(given)
