import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import swiftkv.hf  # noqa: F401  makes the models known
from swiftkv import checkpoint
from swiftkv.checkpoint import ADDED, Checkpoint
from swiftkv.convert import convert, main
from swiftkv.errors import SwiftKVError


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def base(llama, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "base"))


def loads(folder: Path) -> torch.nn.Module:
    """Loads the folder, every tensor from its files and none left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_values(make_base, tmp_path, family, group):
    base = make_base(family, dtype=torch.bfloat16)
    folder = convert(base, 2, tmp_path / "out", key_value_group_size=group)
    old, added = load_file(base / "model.safetensors"), load_file(folder / ADDED)
    assert torch.equal(added["model.norm_swiftkv.weight"], old["model.layers.2.input_layernorm.weight"])
    kinds = {name.split("self_attn.")[1] for name in added if "self_attn" in name}
    assert ("q_proj_swiftkv.bias" in kinds) == (family == "qwen2")
    assert ("k_norm_swiftkv.weight" in kinds) == (family == "qwen3")
    for name, tensor in added.items():
        assert tensor.dtype == torch.bfloat16
        if "self_attn" not in name:
            continue
        layer, plain = int(name.split(".")[2]), name.replace("_swiftkv", "")
        layers = range(layer, layer + (1 if "q_" in name.split("self_attn.")[1] else group))
        parts = [old[plain.replace(f"layers.{layer}.", f"layers.{i}.")].float() for i in layers]
        torch.testing.assert_close(tensor, (sum(parts) / len(parts)).bfloat16(), atol=0, rtol=1e-2)
    loads(folder)


def test_everything_else_is_the_bases(llama, tmp_path):
    folder = convert(llama, 2, tmp_path / "out")
    assert (folder / "model-base.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (folder / name).read_bytes() == (llama / name).read_bytes()
    old, new = (json.loads((path / "config.json").read_text()) for path in (llama, folder))
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    assert changed == {
        "model_type": "llama_swiftkv", "architectures": ["LlamaSwiftKVForCausalLM"], "num_key_value_layers": 2,
        "key_value_group_size": 1,
    }  # fmt: skip
    index = json.loads((folder / checkpoint.INDEX).read_text())
    assert set(index["weight_map"]) == Checkpoint.open(folder).names
    sizes = sum(t.nbytes for path in folder.glob("*.safetensors") for t in load_file(path).values())
    assert index["metadata"]["total_size"] == sizes
    assert not list(tmp_path.glob(".*"))


def test_several_shards_and_tied_embeddings(make_base, tmp_path):
    base = make_base("qwen2", shard="300KB", tie_word_embeddings=True)
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 1
    folder = convert(base, 3, tmp_path / "out")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted([*shards, ADDED])
    model = loads(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_links(llama, tmp_path):
    link = tmp_path / "place" / "linked"
    convert(llama, 2, link, link=True)
    again = checkpoint.write(
        Checkpoint.open(link), load_file(link / ADDED), tmp_path / "place" / "again", link=True
    )
    shutil.rmtree(link)  # a folder of links to links would be broken now
    weights = again / "model-base.safetensors"
    assert weights.is_symlink()
    assert not weights.readlink().is_absolute()
    assert weights.resolve() == (llama / "model.safetensors").resolve()
    assert not (again / "config.json").is_symlink()
    loads(again)


def test_stale_tensors_in_a_bases_shard_are_left_out(llama, tmp_path):
    """As in checkpoints that keep all tensors in shards of their own making."""
    folder = convert(llama, 2, tmp_path / "out")
    merged = load_file(folder / "model-base.safetensors") | load_file(folder / ADDED)
    theirs = Path(shutil.copytree(llama, tmp_path / "theirs"))
    from safetensors.torch import save_file

    save_file(merged, theirs / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", theirs)
    new = {name: tensor + 1 for name, tensor in load_file(folder / ADDED).items()}
    out = checkpoint.write(Checkpoint.open(theirs), new, tmp_path / "again")
    assert not set(new) & set(load_file(out / "model-base.safetensors"))
    model = loads(out)
    assert torch.equal(model.model.norm_swiftkv.weight, new["model.norm_swiftkv.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deepseek_v2"}, "llama, qwen2, qwen3"),
        ({"model_type": "llama_swiftkv", "num_key_value_layers": 2}, "already"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"num_hidden_layers": 7}, "have no model.layers.6.self_attn.q_proj.weight"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5 in .*, and the weights have 6 layers"),
        ({"num_hidden_layers": "6"}, "num_hidden_layers is '6' in the config; it must be a whole number"),
        ({"num_hidden_layers": None}, "the config has no num_hidden_layers"),
    ],
)
def test_bases_that_do_not_fit(base, tmp_path, changes, message):
    edit(base, **changes)
    with pytest.raises(SwiftKVError, match=message):
        convert(base, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("cut", "group"), [(0, 1), (6, 1), (2, 3), (2, 0)])
def test_numbers_that_do_not_fit(base, tmp_path, cut, group):
    with pytest.raises(SwiftKVError, match="it must"):
        convert(base, cut, tmp_path / "out", key_value_group_size=group)


def test_no_safetensors(base, tmp_path):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(SwiftKVError, match="no safetensors"):
        convert(base, 2, tmp_path / "out")


def test_a_file_that_is_none(base, tmp_path):
    (base / "model.safetensors").write_bytes(b"git-lfs")
    with pytest.raises(SwiftKVError, match="no safetensors file"):
        convert(base, 2, tmp_path / "out")


@pytest.mark.parametrize("which", ["embed_tokens", "layers.5.self_attn.q_proj"])
def test_a_shard_that_is_cut_short(make_base, tmp_path, which):
    """Of an interrupted copy, whether a tensor is read of it or it is only copied."""
    base = make_base("llama", shard="300KB")
    index = json.loads((base / checkpoint.INDEX).read_text())["weight_map"]
    path = base / index[f"model.{which}.weight"]
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(SwiftKVError, match="is cut short"):
        convert(base, 2, tmp_path / "out")


@pytest.mark.parametrize("content", [{}, {"weight_map": None}, {"weight_map": {}}])
def test_an_index_without_files(make_base, tmp_path, content):
    base = make_base("llama", shard="300KB")
    (base / checkpoint.INDEX).write_text(json.dumps(content))
    with pytest.raises(SwiftKVError, match="has no weight_map"):
        convert(base, 2, tmp_path / "out")


def test_a_shard_that_is_missing(make_base, tmp_path):
    base = make_base("llama", shard="300KB")
    sorted(base.glob("*.safetensors"))[0].unlink()
    with pytest.raises(SwiftKVError, match="which is not there"):
        convert(base, 2, tmp_path / "out")


def test_out_is_in_use(base, tmp_path):
    (tmp_path / "out").mkdir()
    convert(base, 2, tmp_path / "out")  # empty is fine
    with pytest.raises(SwiftKVError, match="not empty"):
        convert(base, 2, tmp_path / "out")


def test_command_line(base, tmp_path, capsys):
    arguments = ["--model", str(base), "--num-key-value-layers", "2", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("swiftkv.convert: error: ")
    assert error.count("\n") == 1
    arguments[1], arguments[-1] = str(tmp_path / "nowhere"), str(tmp_path / "other")
    assert main(arguments) == 2
    assert "is no folder" in capsys.readouterr().err
