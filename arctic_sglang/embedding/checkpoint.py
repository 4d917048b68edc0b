"""Reads how a sentence-transformers checkpoint makes an embedding of token vectors. No torch.

The files are sentence-transformers' own: `modules.json` lists the modules in order, the Transformer's
`sentence_bert_config.json` has the window, `1_Pooling/config.json` the pooling.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Mode = Literal["cls", "mean", "last"]

# Flags of 1_Pooling/config.json before sentence-transformers 5.2, which writes "pooling_mode": "mean".
_FLAGS: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ENCODERS = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "MPNet", "ModernBert", "NewModel", "Contriever")
_SPELLINGS = {"lasttoken": "last", "last_token": "last", "cls_token": "cls", "mean_tokens": "mean"}


class UnsupportedCheckpointError(ValueError):
    """The checkpoint asks for something that cannot be followed; the message names it."""


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """How one vector is made of a text's token vectors.

    Attributes:
        mode: the first token's vector, the mean of all, or the last token's.
        normalize: whether the vector is scaled to length 1.
        max_input_tokens: window of the model, special tokens included; None: SGLang's context length.
        max_positions: positions that the model has, from `config.json`; None: not said.
        is_encoder: whether every token sees the whole text.
    """

    mode: Mode
    normalize: bool
    max_input_tokens: int | None = None
    max_positions: int | None = None
    is_encoder: bool = False

    @property
    def context_length(self) -> int | None:
        """SGLang's `context_length` that admits just the window; None to leave it alone.

        SGLang takes texts shorter than its context length, hence the one more, where the model has room.
        """
        if self.max_input_tokens is None:
            return None
        wanted = self.max_input_tokens + 1
        return wanted if self.max_positions is None or wanted <= self.max_positions else None

    @property
    def needs_whole_text(self) -> bool:
        """Whether the vectors of all tokens must come from one forward pass."""
        return self.is_encoder or self.mode != "last"


def read_pooling(folder: Path) -> PoolingSpec | None:
    """What the checkpoint in `folder` says, or None without a `modules.json`.

    Raises:
        UnsupportedCheckpointError: a module or pooling that is not known here.
    """
    modules_file = folder / "modules.json"
    if not modules_file.is_file():
        return None
    spec: PoolingSpec | None = None
    window: int | None = None
    normalize = False
    for module in _read_json(modules_file):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = folder / str(module.get("path", ""))
        if kind == "Transformer":
            window = _window(path)
        elif kind == "Pooling":
            spec = PoolingSpec(mode=_mode(path / "config.json"), normalize=False)
        elif kind == "Normalize":
            normalize = True
        else:
            msg = f"{modules_file} has a {kind or 'nameless'} module, which arctic-sglang cannot apply yet"
            raise UnsupportedCheckpointError(msg)
    if spec is None:
        msg = f"{modules_file} lists no Pooling module"
        raise UnsupportedCheckpointError(msg)
    model = _read_json(folder / "config.json")
    return PoolingSpec(
        mode=spec.mode,
        normalize=normalize,
        max_input_tokens=window,
        max_positions=model.get("max_position_embeddings"),
        is_encoder=any(name.startswith(_ENCODERS) for name in model.get("architectures") or ()),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise UnsupportedCheckpointError(msg) from error


def _window(folder: Path) -> int | None:
    file = folder / "sentence_bert_config.json"
    if not file.is_file():
        return None
    value = _read_json(file).get("max_seq_length")
    return int(value) if value else None


def _mode(file: Path) -> Mode:
    config = _read_json(file)
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
    else:
        modes = [mode for key, mode in _FLAGS.items() if config.get(key)]
    modes = [_SPELLINGS.get(mode, mode) for mode in modes]
    if len(modes) != 1 or modes[0] not in ("cls", "mean", "last"):
        msg = f"{file} asks for pooling {' + '.join(modes) or 'of no kind'}; cls, mean and last are known"
        raise UnsupportedCheckpointError(msg)
    return modes[0]
