"""SGLang's model config for an embedding checkpoint."""

import json
from types import SimpleNamespace

import httpx
import pytest

from arctic_sglang.compat import checkpoint_files
from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError
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


def test_a_network_that_fails_is_sglangs_to_report(monkeypatch):
    """The hub falls back to its cache for some faults alone; others are neither OSError nor ValueError."""
    import huggingface_hub

    for error in (httpx.ProxyError("403"), httpx.ReadError("reset"), httpx.RemoteProtocolError("closed")):

        def fails(*_args, error=error, **_kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
        given = SimpleNamespace(model_path="me/chat", revision=None, json_model_override_args="{}")
        assert not checkpoint_files.embeds_unasked(given)
        with pytest.raises(UnsupportedCheckpointError, match="me/chat cannot be fetched"):
            checkpoint_files.folder("me/chat", None)


def test_what_lies_here_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    def asked(name, *_args, **_kwargs):
        pytest.fail(f"asked for {name}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    cached = tmp_path / "cached.json"
    cached.write_text(json.dumps({"architectures": ["BertModel"]}))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_args, **_kwargs: str(cached))
    given = SimpleNamespace(model_path="me/bert", revision=None, json_model_override_args="{}")
    assert checkpoint_files.embeds_unasked(given)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.gguf").touch()
    monkeypatch.chdir(tmp_path)
    given.model_path = "models/x.gguf"
    assert not checkpoint_files.embeds_unasked(given)


@pytest.mark.parametrize("name", ["none", "DUMMY", "s3://bucket/model", "no such/folder/of mine"])
def test_what_is_not_on_the_hub_is_sglangs_to_find(name):
    given = SimpleNamespace(model_path=name, revision=None, json_model_override_args="{}")
    assert not checkpoint_files.embeds_unasked(given)
