"""Reads and writes draft heads in the format of Snowflake's checkpoints: config.json and pytorch_model.bin.

Weights may lie in safetensors files too, which take precedence. Names are those of `layout`, with or without the prefix
"speculator.".
"""

import json
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from speculative.speculators.config import SpeculatorConfig
from speculative.speculators.layout import Entry, entries
from speculative.speculators.modules import Speculator, build
from speculative.speculators.shard import WHOLE, VocabShard

_PREFIX = "speculator."
_BIN, _SAFETENSORS = "pytorch_model.bin", "model.safetensors"


class SpeculatorCheckpointError(ValueError):
    """The tensors of a checkpoint are not those of its config; the message names each."""


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    shard: VocabShard | None = None,
) -> Speculator:
    """The draft head in a folder, ready to draft (`eval`, no gradients).

    Args:
        path: the folder.
        dtype: of the parameters; None: as the config says.
        device: where they go.
        shard: which part of the vocabulary's head to keep; None: all.

    Raises:
        SpeculatorConfigError: config.json is missing or does not fit.
        SpeculatorCheckpointError: the tensors are missing or do not fit.
    """
    folder = Path(path)
    config = SpeculatorConfig.read(folder)
    with torch.device("meta"):
        speculator = build(config, shard or WHOLE)
    kept = getattr(torch, config.dtype) if dtype is None else dtype
    speculator = speculator.to(kept).to_empty(device=device)
    with ExitStack() as files, torch.no_grad():
        _fill(speculator, _Tensors(folder, files), folder)
    return speculator.eval().requires_grad_(False)


def save(
    speculator: Speculator, path: str | Path, dtype: torch.dtype | None = None, *, safetensors: bool = False
) -> None:
    """Writes a draft head into a folder, which is made if need be.

    Args:
        speculator: whole, not a shard.
        path: the folder; files of the same names are overwritten.
        dtype: what to write; None: the parameters' own.
        safetensors: write model.safetensors in place of pytorch_model.bin. It cannot hold a tensor under two names,
            so shared ones get their first name alone.

    Raises:
        ValueError: it is a shard.
    """
    if speculator.shard.size > 1:
        msg = f"part {speculator.shard.rank} of {speculator.shard.size} of a draft head cannot be saved; save the whole"
        raise ValueError(msg)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(speculator.named_parameters())
    kept = next(iter(parameters.values())).dtype if dtype is None else dtype
    written: dict[tuple[str, int], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for entry in entries(speculator.config, _shapes(speculator)):
        key = (entry.parameter, entry.part)
        if key not in written:
            part = _part(parameters[entry.parameter].detach(), entry)
            written[key] = part.to("cpu", kept, copy=True).contiguous()
        if entry.written and (entry.required or not safetensors):
            tensors[entry.name] = written[key]
    if safetensors:
        save_file(tensors, folder / _SAFETENSORS, metadata={"format": "pt"})
        (folder / _BIN).unlink(missing_ok=True)
    else:
        torch.save(tensors, folder / _BIN)
        (folder / _SAFETENSORS).unlink(missing_ok=True)
    content = replace(speculator.config, dtype=str(kept).removeprefix("torch.")).content()
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class _Tensors:
    """The tensors of a folder's weight files, by name without the prefix; read when asked for."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._sources: dict[str, tuple[Any, str]] = {}
        paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        if not paths:
            msg = f"{folder} has no weights: neither {_BIN} nor {_SAFETENSORS} is there"
            raise SpeculatorCheckpointError(msg)
        for path in paths:
            if path.suffix == ".safetensors":
                source: Any = files.enter_context(safe_open(path, framework="pt"))
                names: Iterable[str] = source.keys()
            else:
                # Only the newer of torch's two formats can be mapped instead of read.
                source = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
                names = [name for name, value in source.items() if isinstance(value, Tensor)]
            for name in names:
                self._sources[name.removeprefix(_PREFIX)] = (source, name)

    def names(self) -> set[str]:
        return set(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        source, known_as = self._sources[name]
        if isinstance(source, dict):
            return tuple(source[known_as].shape)
        return tuple(source.get_slice(known_as).get_shape())

    def get(self, name: str) -> Tensor:
        source, known_as = self._sources[name]
        return source[known_as] if isinstance(source, dict) else source.get_tensor(known_as)


def _fill(speculator: Speculator, tensors: _Tensors, folder: Path) -> None:
    wanted = entries(speculator.config, _shapes(speculator))
    _check_names(wanted, tensors, folder)
    parameters = dict(speculator.named_parameters())
    first: dict[tuple[str, int], Entry] = {}
    for entry in wanted:
        before = first.setdefault((entry.parameter, entry.part), entry)
        if before is not entry:
            if entry.name in tensors.names() and not _same(tensors.get(before.name), tensors.get(entry.name)):
                msg = (
                    f"{folder}: {before.name} and {entry.name} differ, but the config says that they are shared"
                    " (tie_weights, tie_lstm_embs)"
                )
                raise SpeculatorCheckpointError(msg)
            continue
        source, target = tensors.get(entry.name), _part(parameters[entry.parameter], entry)
        if entry.parameter.startswith("head."):
            rows = speculator.shard.tokens(speculator.config.vocab_size)
            source = source[rows.start : rows.stop]
        target.copy_(source)


def _check_names(wanted: list[Entry], tensors: _Tensors, folder: Path) -> None:
    found = tensors.names()
    known = {entry.name for entry in wanted}
    missing = [entry.name for entry in wanted if entry.required and entry.name not in found]
    mis_shaped = [
        f"{entry.name} is {list(tensors.shape(entry.name))} and should be {list(entry.shape)}"
        for entry in wanted
        if entry.name in found and tensors.shape(entry.name) != entry.shape
    ]
    faults = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing),
            ("not known", sorted(found - known)),
            ("of another shape", mis_shaped),
        )
        if names
    ]
    if faults:
        msg = f"{folder}: the tensors are not those of its config.json. {'; '.join(faults)}"
        raise SpeculatorCheckpointError(msg)


def _shapes(speculator: Speculator) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters as the whole vocabulary has them."""
    vocab = speculator.config.vocab_size
    return {
        name: (vocab, *parameter.shape[1:]) if name.startswith("head.") else tuple(parameter.shape)
        for name, parameter in speculator.named_parameters()
    }


def _part(parameter: Tensor, entry: Entry) -> Tensor:
    return parameter.chunk(entry.parts, entry.axis)[entry.part]


def _same(left: Tensor, right: Tensor) -> bool:
    shared = left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
    return (shared and left.storage_offset() == right.storage_offset()) or torch.equal(left, right)
