"""Which features a start asks for."""

import dataclasses

import pytest

from arctic_sglang.config import ArcticConfig
from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError
from arctic_sglang.features import Facts, Feature, requested, wanted_pooling, wants_cpu, wants_swiftkv

GPU = Facts(accelerator="cuda", device=None, own_cpu_engine=False, is_embedding=False, pooling=None)
CPU = dataclasses.replace(GPU, accelerator=None)
MEAN = PoolingSpec(mode="mean", normalize=True, max_input_tokens=256, max_positions=512, is_encoder=True)
EMBEDDING = dataclasses.replace(GPU, is_embedding=True, pooling=MEAN)


def test_gpu_without_flags_asks_for_nothing():
    assert requested(ArcticConfig(), GPU) == frozenset()


def test_no_gpu_asks_for_the_cpu_runtime():
    assert requested(ArcticConfig(), CPU) == {Feature.CPU}
    assert requested(ArcticConfig(), dataclasses.replace(CPU, device="cpu")) == {Feature.CPU}


def test_another_device_is_left_alone():
    assert not wants_cpu(dataclasses.replace(CPU, device="npu"))


def test_sglangs_own_cpu_engine_is_left_alone():
    assert not wants_cpu(dataclasses.replace(CPU, own_cpu_engine=True))
    assert not wants_cpu(dataclasses.replace(GPU, own_cpu_engine=True, device="cpu"))


def test_cpu_beside_a_gpu_says_how():
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=''"):
        wants_cpu(dataclasses.replace(GPU, device="cpu"))


def test_checkpoint_decides_by_default():
    assert wanted_pooling(ArcticConfig(), EMBEDDING) is MEAN
    assert requested(ArcticConfig(), EMBEDDING) == {Feature.POOLING}


def test_no_sentence_transformers_files_leaves_stock():
    assert wanted_pooling(ArcticConfig(), dataclasses.replace(EMBEDDING, pooling=None)) is None


def test_stock_is_stock():
    config = ArcticConfig(embedding_pooling="stock")
    assert wanted_pooling(config, EMBEDDING) is None
    assert requested(config, EMBEDDING) == {Feature.FLAGS}


def test_named_pooling_overrides_the_checkpoint():
    assert wanted_pooling(ArcticConfig(embedding_pooling="cls"), EMBEDDING) == PoolingSpec(
        "cls", normalize=True
    )


def test_named_pooling_needs_an_embedding_server():
    with pytest.raises(ValueError, match="--is-embedding"):
        wanted_pooling(ArcticConfig(embedding_pooling="mean"), GPU)


def test_checkpoint_without_files_is_refused():
    with pytest.raises(ValueError, match=r"no modules\.json"):
        wanted_pooling(
            ArcticConfig(embedding_pooling="checkpoint"), dataclasses.replace(EMBEDDING, pooling=None)
        )


def test_what_cannot_be_followed_is_refused_not_ignored():
    facts = dataclasses.replace(EMBEDDING, pooling=UnsupportedCheckpointError("it has a Dense module"))
    with pytest.raises(ValueError, match=r"Dense.*--embedding-pooling stock"):
        wanted_pooling(ArcticConfig(), facts)
    assert wanted_pooling(ArcticConfig(embedding_pooling="stock"), facts) is None


def test_the_architecture_says_whether_a_model_is_a_swiftkv_model():
    assert wants_swiftkv(ArcticConfig(), ["LlamaSwiftKVForCausalLM"])
    assert wants_swiftkv(ArcticConfig(swiftkv_min_tokens=8), ["Qwen2SwiftKVForCausalLM"])
    assert not wants_swiftkv(ArcticConfig(), ["LlamaForCausalLM"])
    assert not wants_swiftkv(ArcticConfig(), ())


def test_a_swiftkv_flag_for_another_model_is_an_error():
    with pytest.raises(
        ValueError, match=r"--swiftkv-min-tokens was given.*LlamaForCausalLM.*swiftkv.convert"
    ):
        wants_swiftkv(ArcticConfig(swiftkv_min_tokens=8), ["LlamaForCausalLM"])


def test_another_swiftkv_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"DeepseekV2SwiftKVForCausalLM is not supported.*LlamaSwiftKV"):
        wants_swiftkv(ArcticConfig(), ["DeepseekV2SwiftKVForCausalLM"])


def test_the_vectorised_road_is_for_embedding_servers():
    config = ArcticConfig(enable_fast_embedding=True)
    assert Feature.EMBEDDING in requested(config, EMBEDDING)
    assert Feature.EMBEDDING not in requested(ArcticConfig(), EMBEDDING)
    with pytest.raises(ValueError, match="add --is-embedding"):
        requested(config, GPU)
