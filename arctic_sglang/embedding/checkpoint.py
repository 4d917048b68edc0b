"""Reads how a sentence-transformers checkpoint makes an embedding of a text. No torch.

The files are sentence-transformers' own: `modules.json` lists the modules in order, the Transformer's
`sentence_bert_config.json` has the window, `N_Pooling/config.json` the pooling, `N_Dense/config.json` a Dense layer
after it, `config_sentence_transformers.json` the prompts and the size to cut vectors to.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Mode = Literal["cls", "mean", "last"]

# What this module and SGLang's start need of a checkpoint, as patterns for the hub's client.
FILES = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
    "*_Dense/pytorch_model.bin",
)
# Classes of torch.nn that a Dense module may name, all of them without arguments.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU")

# Flags of 1_Pooling/config.json before sentence-transformers 5.2, which writes "pooling_mode": "mean".
_FLAGS: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ENCODERS = (
    "Bert",
    "Roberta",
    "XLMRoberta",
    "Camembert",
    "DistilBert",
    "MPNet",
    "ModernBert",
    "NewModel",
    "Contriever",
)
# Their position table begins at the padding token's id + 1.
_PADDED_POSITIONS = ("Roberta", "XLMRoberta", "Camembert", "MPNet")
_SPELLINGS = {"lasttoken": "last", "last_token": "last", "cls_token": "cls", "mean_tokens": "mean"}
# Modules whose input and output are the vector of a text; others name what they work on instead.
_VECTOR = (None, "sentence_embedding")


class UnsupportedCheckpointError(ValueError):
    """The checkpoint asks for something that cannot be followed; the message names it."""


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A Dense module: activation(vector @ weight.T + bias).

    Attributes:
        in_features: width of the vector before it.
        out_features: width after it.
        bias: whether there is one.
        activation: one of `ACTIVATIONS`.
        weights: path of a file with `linear.weight` `[out_features, in_features]` and `linear.bias`.
    """

    in_features: int
    out_features: int
    bias: bool
    activation: str
    weights: str


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """How one vector is made of a text's token vectors: pool, Dense layers, cut, normalise.

    Attributes:
        mode: the first token's vector, the mean of all, or the last token's.
        normalize: whether the vector is scaled to length 1.
        max_input_tokens: window of the model, special tokens included; None: SGLang's context length.
        max_positions: tokens that the model has positions for; None: not said.
        is_encoder: whether every token sees the whole text.
        dense: layers between pooling and normalisation, in order.
        prompts: text to put in front, by name.
        default_prompt_name: whose text goes in front where none is asked for.
        include_prompt: whether a prompt's tokens are pooled too.
        truncate_dim: components to keep where a request does not say; None: all.
    """

    mode: Mode
    normalize: bool
    max_input_tokens: int | None = None
    max_positions: int | None = None
    is_encoder: bool = False
    dense: tuple[DenseSpec, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict, hash=False)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    truncate_dim: int | None = None

    @property
    def context_length(self) -> int | None:
        """SGLang's context length that admits just the window; None to leave it alone.

        SGLang takes texts shorter than its context length, hence the one more.
        """
        return None if self.max_input_tokens is None else self.max_input_tokens + 1

    @property
    def needs_whole_text(self) -> bool:
        """Whether the vectors of all tokens must come from one forward pass."""
        return self.is_encoder or self.mode != "last"


def prompt_text(spec: PoolingSpec | None, name: str | None) -> str:
    """The text that goes in front of every text, as `SentenceTransformer.encode(prompt_name=name)` puts it there.

    Args:
        spec: of the checkpoint; None: it has no sentence-transformers files, and so no prompts.
        name: one of `spec.prompts`; None: the checkpoint's default, which may be none.

    Raises:
        ValueError: no prompt has this name, or the checkpoint leaves a prompt's tokens out of the pooling.
    """
    wanted = spec.default_prompt_name if name is None and spec is not None else name
    if wanted is None:
        return ""
    if spec is None or wanted not in spec.prompts:
        known = ", ".join(map(repr, spec.prompts if spec is not None else ())) or "none"
        msg = f"prompt name {wanted!r} is not one of the checkpoint's prompts; it has: {known}"
        raise ValueError(msg)
    text = spec.prompts[wanted]
    if text and not spec.include_prompt and spec.mode != "last":
        msg = (
            f"the checkpoint's pooling has include_prompt false: it leaves out the tokens of prompt {wanted!r},"
            " which arctic-sglang cannot do; name a prompt without text, if there is one"
        )
        raise ValueError(msg)
    return text


def with_prompt(spec: PoolingSpec | None, name: str | None, texts: Sequence[str]) -> list[str]:
    """`texts`, each with `prompt_text(spec, name)` in front; raises what that raises."""
    prompt = prompt_text(spec, name)
    return [prompt + text for text in texts] if prompt else list(texts)


def read_pooling(folder: Path) -> PoolingSpec | None:
    """What the checkpoint in `folder` says, or None without a `modules.json`.

    Raises:
        UnsupportedCheckpointError: a module, pooling or option that is not known here.
    """
    modules_file = folder / "modules.json"
    if not modules_file.is_file():
        return None
    model = _read_json(folder / "config.json")
    architectures = model.get("architectures") or ()
    spec: PoolingSpec | None = None
    window: int | None = None
    for kind, path in _modules(modules_file):
        if kind == "Transformer":
            window = _window(path, model)
        elif kind == "Pooling":
            spec = _pooling(path / "config.json")
        elif spec is None:
            msg = f"{modules_file} has a {kind} module ahead of the Pooling module, which cannot be applied"
            raise UnsupportedCheckpointError(msg)
        elif kind == "Dense":
            if spec.normalize:
                msg = f"{modules_file} has a Dense module after Normalize; only one before it can be applied"
                raise UnsupportedCheckpointError(msg)
            before = spec.dense[-1].out_features if spec.dense else model.get("hidden_size")
            spec = replace(spec, dense=(*spec.dense, _dense(path, before)))
        else:
            _expect_vector(path / "config.json", kind)
            spec = replace(spec, normalize=True)
    if spec is None:
        msg = f"{modules_file} lists no Pooling module"
        raise UnsupportedCheckpointError(msg)
    positions = _positions(model)
    return replace(
        spec,
        max_input_tokens=min((n for n in (window, positions) if n is not None), default=None),
        max_positions=positions,
        is_encoder=any(name.startswith(_ENCODERS) for name in architectures),
        **_options(folder / "config_sentence_transformers.json"),
    )


def encoder_positions(model: dict[str, Any]) -> int | None:
    """Tokens that an encoder has positions for, whose table ends there; None for models that compute positions.

    Args:
        model: of config.json.
    """
    is_encoder = any(name.startswith(_ENCODERS) for name in model.get("architectures") or ())
    return _positions(model) if is_encoder else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise UnsupportedCheckpointError(msg) from error


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _modules(file: Path) -> list[tuple[str, Path]]:
    """Kind and folder of every module that does something, in order."""
    found = []
    for module in _read_json(file):
        name = str(module.get("type", ""))
        kind = name.rsplit(".", 1)[-1]
        ours = name.startswith("sentence_transformers.")
        if not ours or kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"):
            whose = kind if ours else name or "nameless"
            msg = f"{file} has a {whose} module, which arctic-sglang cannot apply"
            raise UnsupportedCheckpointError(msg)
        if kind != "Dropout":  # does nothing outside training
            found.append((kind, file.parent / str(module.get("path", ""))))
    return found


def _window(folder: Path, model: dict[str, Any]) -> int | None:
    """As sentence-transformers 5 and 6 choose it: their own file's, else the tokenizer's within the positions."""
    file = folder / "sentence_bert_config.json"
    config = _read_optional(file)
    tokenizer = _read_optional(folder / "tokenizer_config.json")
    if config.get("do_lower_case") and not _lowers_case(folder, tokenizer):
        msg = f"{file} has do_lower_case true for a tokenizer that keeps case, which arctic-sglang cannot change"
        raise UnsupportedCheckpointError(msg)
    given = config.get("processor_kwargs") or config.get("tokenizer_args") or {}
    said = given.get("model_max_length") or config.get("max_seq_length")
    if said:
        return int(said)
    limits = [tokenizer.get("model_max_length"), model.get("max_position_embeddings")]
    # Tokenizers without a limit say 1e30, XLNet says -1.
    return min((int(n) for n in limits if n is not None and 0 < n < 1e9), default=None)


def _lowers_case(folder: Path, tokenizer: dict[str, Any]) -> bool:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return bool(tokenizer.get("do_lower_case"))
    steps = [_read_json(file).get("normalizer") or {}]
    while steps:
        step = steps.pop()
        if step.get("type") == "Lowercase" or step.get("lowercase"):
            return True
        steps += step.get("normalizers") or []
    return False


def _positions(model: dict[str, Any]) -> int | None:
    """Tokens that the model has positions for; RoBERTa's table holds two more rows than that."""
    rows = model.get("max_position_embeddings")
    if rows is None or rows < 1:
        return None
    if any(name.startswith(_PADDED_POSITIONS) for name in model.get("architectures") or ()):
        padding = model.get("pad_token_id")
        return int(rows) - (1 if padding is None else padding) - 1
    return int(rows)


def _pooling(file: Path) -> PoolingSpec:
    config = _read_json(file)
    return PoolingSpec(
        mode=_mode(config, file), normalize=False, include_prompt=bool(config.get("include_prompt", True))
    )


def _mode(config: dict[str, Any], file: Path) -> Mode:
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


def _dense(folder: Path, width: int | None) -> DenseSpec:
    file = folder / "config.json"
    config = _expect_vector(file, "Dense")
    if config.get("use_residual"):
        msg = f"{file} has use_residual true, which arctic-sglang cannot apply"
        raise UnsupportedCheckpointError(msg)
    # What sentence-transformers takes where the file does not say.
    path = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    activation = path.rsplit(".", 1)[-1]
    if not path.startswith("torch.nn.") or activation not in ACTIVATIONS:
        msg = f"{file} has the activation {path}; known are torch.nn's {', '.join(ACTIVATIONS)}"
        raise UnsupportedCheckpointError(msg)
    weights = next(
        (p for p in (folder / "model.safetensors", folder / "pytorch_model.bin") if p.is_file()), None
    )
    if weights is None:
        msg = f"{folder} has neither model.safetensors nor pytorch_model.bin, the weights of a Dense module"
        raise UnsupportedCheckpointError(msg)
    try:
        sizes = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{file} does not say in_features and out_features as numbers"
        raise UnsupportedCheckpointError(msg) from error
    if width not in (None, sizes[0]):
        msg = f"{file} has in_features {sizes[0]}, and what comes before it gives {width}"
        raise UnsupportedCheckpointError(msg)
    return DenseSpec(*sizes, bool(config.get("bias", True)), activation, str(weights))


def _expect_vector(file: Path, kind: str) -> dict[str, Any]:
    """The config of a module that has to work on the text's vector; Normalize need not have a file."""
    config = _read_json(file) if kind == "Dense" else _read_optional(file)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in _VECTOR:
            msg = (
                f"{file} has {key} {config[key]!r}; only a {kind} module on sentence_embedding can be applied"
            )
            raise UnsupportedCheckpointError(msg)
    return config


def _options(file: Path) -> dict[str, Any]:
    """The fields of `PoolingSpec` that the whole model's config has."""
    config = _read_optional(file)
    prompts = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        msg = f"{file} has default_prompt_name {default!r}, which is not one of its prompts"
        raise UnsupportedCheckpointError(msg)
    return {
        "prompts": prompts,
        "default_prompt_name": default,
        "truncate_dim": config.get("truncate_dim"),
    }
