"""Reads a folder of safetensors without loading a model, and writes it again with SwiftKV's tensors.

A SwiftKV folder is its base's: the base's shards byte for byte, one more shard with what was added, an index
over all, and a config.json with another model type. So the base can still be run from it (it is the teacher),
and a folder of links costs only the added tensors.
"""

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file

from swiftkv.config import CONFIGS
from swiftkv.errors import SwiftKVError
from swiftkv.layout import Layout

ADDED = "model-swiftkv.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
REPORT = "distillation.json"
_SINGLE = "model.safetensors"
# transformers reads a file of that name alone and never looks at the index, so in a folder of several it is this
_SINGLE_RENAMED = "model-base.safetensors"
_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".ot", ".npz",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of weights, opened by its headers alone.

    Attributes:
        folder: where it is.
        config: its config.json.
        shards: each weights file's name: the tensors in it, and the bytes of each.
    """

    folder: Path
    config: dict[str, Any]
    shards: dict[str, dict[str, int]]

    @classmethod
    def open(cls, model: str | Path) -> "Checkpoint":
        """Opens a folder, or downloads a model of the hub and opens that.

        Args:
            model: a folder, or a name of the hub.

        Raises:
            SwiftKVError: there is no such model, or no config.json or safetensors in it.
        """
        folder = locate(model)
        shards = {name: _sizes(folder / name) for name in _shard_names(folder)}
        return cls(folder, _read_json(folder / CONFIG), shards)

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return {name for tensors in self.shards.values() for name in tensors}

    @property
    def layout(self) -> Layout:
        """The layers of this SwiftKV model.

        Raises:
            SwiftKVError: it is none.
        """
        if self.config.get("model_type") not in {config.model_type for config in CONFIGS.values()}:
            msg = (
                f"{self.folder} is no SwiftKV model (model_type {self.config.get('model_type')}); "
                "make one with python -m swiftkv.convert"
            )
            raise SwiftKVError(msg)
        try:
            return Layout.of(self.config)
        except ValueError as error:
            raise SwiftKVError(f"{self.folder / CONFIG}: {error}") from error

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor to the CPU, in the dtype of the file.

        Raises:
            SwiftKVError: the weights have no tensor of this name.
        """
        for shard, tensors in self.shards.items():
            if name in tensors:
                with safe_open(self.folder / shard, framework="pt") as file:
                    return file.get_tensor(name)
        raise SwiftKVError(f"the weights in {self.folder} have no {name}")

    def samples(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Reads of each of these tensors its middle row, or all where it is a vector.

        Args:
            names: those that are not there are left out.
        """
        wanted = set(names)
        for shard, tensors in self.shards.items():
            if found := sorted(wanted & tensors.keys()):
                with safe_open(self.folder / shard, framework="pt") as file:
                    for name in found:
                        rows = file.get_slice(name)
                        count, *others = rows.get_shape() or [1]
                        middle = count // 2
                        yield name, rows[middle : middle + 1] if others else file.get_tensor(name)

    @property
    def identity(self) -> str:
        """Differs between models, as far as their configs and the samples of their tensors do; not between copies."""
        found = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, row in sorted(self.samples(self.names), key=lambda sample: sample[0]):
            found.update(f"{name} {row.dtype} {tuple(row.shape)} ".encode())
            found.update(row.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def locate(model: str | Path) -> Path:
    """The folder of a model: the folder itself, or a download of the hub's.

    Raises:
        SwiftKVError: there is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or str(model).count("/") > 1:
        raise SwiftKVError(f"{model} is no folder")
    try:
        # only the top folder: some repositories keep other formats below it
        ignored = ["*/*", *(f"*{suffix}" for suffix in sorted(_WEIGHTS - {".safetensors"}))]
        return Path(snapshot_download(str(model), ignore_patterns=ignored))
    except (OSError, ValueError) as error:  # the hub's errors and the network's are OSError
        reason = str(error).strip().splitlines()[0]
        raise SwiftKVError(f"{model} is no folder, and no model of the hub could be had: {reason}") from error


def check_out(out: Path) -> None:
    """Refuses a folder that has something in it.

    Raises:
        SwiftKVError: it has, or it is a file.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise SwiftKVError(f"{out} exists and is not empty; name another folder, or remove it")


def write(
    source: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    out: Path,
    *,
    config: Mapping[str, Any] | None = None,
    link: bool = False,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes a folder: `source` with these tensors added, or in place of its own of the same names.

    It is made under another name beside `out` and renamed, so `out` is whole or not there.

    Args:
        source: the folder whose weights and small files are taken.
        tensors: what goes into the added shard.
        out: the folder to write; it must not exist or be empty.
        config: the new config.json; default: the source's.
        link: relative symbolic links to the source's files in place of copies.
        files: more text files, by name.

    Raises:
        SwiftKVError: `out` has something in it.
    """
    out = Path(out)
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        partial.chmod(0o755)  # mkdtemp's is for its owner alone
        _write_weights(source, tensors, partial, link)
        _write_json(partial / CONFIG, config or source.config)
        for path in _small_files(source.folder):
            _place(path, partial / path.name, link)
        for name, text in (files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _write_weights(source: Checkpoint, tensors: Mapping[str, torch.Tensor], folder: Path, link: bool) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for shard, sizes in source.shards.items():
        kept = {name: size for name, size in sizes.items() if name not in tensors}
        if not kept:
            continue
        name = _SINGLE_RENAMED if shard == _SINGLE else shard
        if len(kept) == len(sizes):
            _place(source.folder / shard, folder / name, link)
        else:  # a checkpoint that was not made here: loaders read every tensor of a shard, so none may be stale
            _save({key: source.tensor(key) for key in kept}, folder / name)
        weight_map |= dict.fromkeys(kept, name)
        total += sum(kept.values())
    _save(tensors, folder / ADDED)
    weight_map |= dict.fromkeys(tensors, ADDED)
    total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX, index)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"}
    )
    path.chmod(0o644)  # save_file's is for its owner alone


def _place(source: Path, target: Path, link: bool) -> None:
    if link:
        # past the source's own links, which may go away; relative, so that both folders can move together
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    else:
        shutil.copyfile(source, target)


def _small_files(folder: Path) -> Iterable[Path]:
    """Tokenizer, generation config, chat template, licences: all that is neither weights nor rewritten."""
    for path in sorted(folder.iterdir()):
        rewritten = path.name in (CONFIG, REPORT) or path.name.endswith(".index.json")
        if path.is_file() and not path.name.startswith(".") and not rewritten and path.suffix not in _WEIGHTS:
            yield path


def _shard_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SwiftKVError(f"{folder / INDEX} has no weight_map, which says in which file each tensor is")
        names = sorted(set(weight_map.values()))
    elif (folder / _SINGLE).is_file():
        names = [_SINGLE]
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if len(names) != 1:
            found = "several safetensors files and no index" if names else "no safetensors file"
            raise SwiftKVError(f"{folder} has {found}; weights are read as safetensors only")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise SwiftKVError(f"{folder / INDEX} names {missing[0]}, which is not there")
    return names


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each tensor, from the file's header: 8 bytes of its length, then JSON.

    https://huggingface.co/docs/safetensors/index#format
    """
    there = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, there)))
        spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        sizes = {name: last - first for name, (first, last) in spans.items()}
        wanted = 8 + length + max((last for _, last in spans.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise SwiftKVError(f"{path} is no safetensors file") from error
    if there < wanted:
        msg = f"{path} is cut short: it has {there:,} bytes and its header tells of {wanted:,}; copy it again"
        raise SwiftKVError(msg)
    return sizes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SwiftKVError(f"there is no {path.name} in {path.parent}") from None
    except (ValueError, TypeError) as error:
        raise SwiftKVError(f"{path} is not JSON: {error}") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
