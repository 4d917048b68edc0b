"""The config.json of a draft head's checkpoint, by Snowflake's keys. Pure: no torch.

Three kinds share one file format (`model_type` "mlp_speculator"), told apart by `architectures` and `method`:

- `lstm`: ArcticLSTMSpeculatorPreTrainedModel with method "sum_lstm";
- `rnn`: the same architecture with method "sum_rnn", which is also what a missing method means;
- `mlp`: ArcticMLPSpeculatorPreTrainedModel, and IBM's MLPSpeculatorPreTrainedModel, the same equations
  (https://arxiv.org/abs/2404.19124).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["lstm", "rnn", "mlp"]

_RECURRENT = ("ArcticLSTMSpeculatorPreTrainedModel", "MLPVariantSpeculatorPreTrainedModel")
_MLP = ("ArcticMLPSpeculatorPreTrainedModel", "MLPSpeculatorPreTrainedModel")
_METHODS: dict[str, Kind] = {"sum_lstm": "lstm", "sum_rnn": "rnn"}
_DTYPES = ("float32", "float16", "bfloat16")


class SpeculatorConfigError(ValueError):
    """The config does not describe a draft head that can be built; the message names the key."""


@dataclass(frozen=True, slots=True)
class SpeculatorConfig:
    """What a draft head is made of.

    Attributes:
        kind: which equations.
        input_hidden_dim: width of the target model's last hidden state.
        inner_dim: widths of the norms after each step, the last being the state's. One width unless `kind` is "rnn".
        proj_dim: widths of the layers that the state goes through.
        emb_dim: widths of the layers that the token's embedding goes through.
        n_predict: tokens that the head was trained to draft.
        vocab_size: of the target model.
        scale_input: whether the hidden state is normalised first.
        tie_weights: whether all steps share their weights (but for the first projection).
        tie_lstm_embs: whether the four gates of an LSTM share one embedding.
        architecture: as the file names it.
        base_model: the target model, as the file names it.
        dtype: of the checkpoint's tensors.
    """

    kind: Kind
    input_hidden_dim: int
    inner_dim: tuple[int, ...]
    proj_dim: tuple[int, ...]
    emb_dim: tuple[int, ...]
    n_predict: int
    vocab_size: int
    scale_input: bool = False
    tie_weights: bool = True
    tie_lstm_embs: bool = True
    architecture: str = _RECURRENT[0]
    base_model: str = ""
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_fit(self)

    @property
    def state_dim(self) -> int:
        """Width of what the vocabulary head reads."""
        return self.inner_dim[-1]

    @property
    def max_steps(self) -> int | None:
        """The longest draft the weights allow; None: any, since later steps share theirs."""
        shared = self.tie_weights and (self.kind == "lstm" or self.n_predict > 1)
        return None if shared else self.n_predict

    @property
    def emb_scale(self) -> float:
        """What an embedding is multiplied with before it is added to the state.

        The state then makes up half of the magnitude after `n_predict` steps (https://arxiv.org/abs/2404.19124).
        """
        state_weight = 0.5 ** (0.5 / self.n_predict)
        return math.sqrt((1 - state_weight**2) * self.inner_dim[0] / 2) / state_weight

    @classmethod
    def lstm(cls, hidden: int, inner: int, vocab: int, n_predict: int = 3, **more: Any) -> "SpeculatorConfig":
        """An LSTM head with one width throughout, as Snowflake's recipes have it; `more` are further fields."""
        return cls("lstm", hidden, (inner,), (inner,), (inner,), n_predict, vocab, **more)

    @classmethod
    def read(cls, folder: str | Path) -> "SpeculatorConfig":
        """From the config.json in `folder`.

        Raises:
            SpeculatorConfigError: there is none, or it does not fit.
        """
        path = Path(folder) / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{path} cannot be read ({error}); a draft head's folder holds config.json and its weights"
            raise SpeculatorConfigError(msg) from error
        try:
            return cls.parse(content)
        except SpeculatorConfigError as error:
            msg = f"{path}: {error}"
            raise SpeculatorConfigError(msg) from error

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "SpeculatorConfig":
        """From the content of a config.json."""
        architecture = _architecture(content.get("architectures"))
        kind = _kind(architecture, content.get("method") or "sum_rnn")
        n_predict = _integer(content, "n_predict")
        _check_top_k(content.get("top_k_tokens_per_head"), n_predict)
        emb, inner = _widths(content, "emb_dim"), _widths(content, "inner_dim")
        if kind == "mlp":
            # Here emb_dim is the width of the target's hidden state, and 0 stands for the same width inside.
            hidden = int(content.get("input_hidden_dim") or emb[0])
            if len(emb) > 1 or hidden != emb[0]:
                msg = f"an MLP head's emb_dim is the target's hidden width, one number; given {content['emb_dim']!r}"
                raise SpeculatorConfigError(msg)
            inner = emb if inner == (0,) else inner
            proj = emb = inner
        else:
            hidden, proj = _integer(content, "input_hidden_dim"), _widths(content, "proj_dim")
        return cls(
            kind, hidden, inner, proj, emb, n_predict,
            vocab_size=_integer(content, "vocab_size"),
            scale_input=_boolean(content, "scale_input"),
            tie_weights=_boolean(content, "tie_weights"),
            tie_lstm_embs=_boolean(content, "tie_lstm_embs"),
            architecture=architecture,
            base_model=str(content.get("base_model_name_or_path") or ""),
            dtype=str(content.get("torch_dtype") or content.get("dtype") or "bfloat16").removeprefix("torch."),
        )  # fmt: skip

    def content(self) -> dict[str, Any]:
        """The content of a config.json that `parse` takes and Snowflake's loader does."""
        common: dict[str, Any] = {
            "architectures": [self.architecture],
            "base_model_name_or_path": self.base_model,
            "model_type": "mlp_speculator",
            "n_candidates": self.n_predict,
            "n_predict": self.n_predict,
            "scale_input": self.scale_input,
            "tie_weights": self.tie_weights,
            "top_k_tokens_per_head": [1] * self.n_predict,
            "torch_dtype": self.dtype,
            "vocab_size": self.vocab_size,
        }
        if self.kind == "mlp":
            return {**common, "emb_dim": self.input_hidden_dim, "inner_dim": self.inner_dim[0]}
        dims = {"inner_dim": self.inner_dim, "proj_dim": self.proj_dim, "emb_dim": self.emb_dim}
        return {
            **common,
            "input_hidden_dim": self.input_hidden_dim,
            **{key: ".".join(map(str, widths)) for key, widths in dims.items()},
            "tie_lstm_embs": self.tie_lstm_embs,
            "method": "sum_lstm" if self.kind == "lstm" else "sum_rnn",
        }


def _architecture(given: Any) -> str:
    # Snowflake's MLP recipe writes a string where transformers has a list of one.
    names = [given] if isinstance(given, str) else given
    known = _RECURRENT + _MLP
    if not isinstance(names, list) or len(names) != 1 or names[0] not in known:
        msg = f"architectures is {given!r}; wanted is one of {', '.join(known)}"
        raise SpeculatorConfigError(msg)
    return names[0]


def _kind(architecture: str, method: Any) -> Kind:
    if architecture in _MLP:
        return "mlp"
    if method not in _METHODS:
        msg = f"method is {method!r}; wanted is one of {', '.join(_METHODS)}"
        raise SpeculatorConfigError(msg)
    return _METHODS[method]


def _integer(content: Mapping[str, Any], key: str) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{key} is {'missing' if value is None else repr(value)}; wanted is a whole number"
        raise SpeculatorConfigError(msg)
    return value


def _boolean(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        msg = f"{key} is {value!r}; wanted is true or false"
        raise SpeculatorConfigError(msg)
    return value


def _widths(content: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """A width, or several with dots between: 4096, "4096", "4096.4096"."""
    value = content.get(key)
    parts = str(value).split(".")
    if isinstance(value, bool) or not isinstance(value, int | str) or not all(p.isdigit() for p in parts):
        said = "missing" if value is None else repr(value)
        msg = f'{key} is {said}; wanted is a width, or widths with dots between as in "4096.4096"'
        raise SpeculatorConfigError(msg)
    return tuple(map(int, parts))


def _check_top_k(given: Any, n_predict: int) -> None:
    if given is not None and (not isinstance(given, list) or len(given) != n_predict):
        msg = f"top_k_tokens_per_head is {given!r}; wanted is a list of n_predict = {n_predict} numbers"
        raise SpeculatorConfigError(msg)


def _check_sizes(config: SpeculatorConfig) -> None:
    sizes = {
        "input_hidden_dim": config.input_hidden_dim,
        "n_predict": config.n_predict,
        "vocab_size": config.vocab_size,
        **{
            key: min(widths, default=0)
            for key, widths in (
                ("inner_dim", config.inner_dim),
                ("proj_dim", config.proj_dim),
                ("emb_dim", config.emb_dim),
            )
        },
    }
    for key, size in sizes.items():
        if size < 1:
            msg = f"{key} is {size}; wanted is at least 1"
            raise SpeculatorConfigError(msg)
    if config.dtype not in _DTYPES:
        msg = f"torch_dtype is {config.dtype!r}; wanted is one of {', '.join(_DTYPES)}"
        raise SpeculatorConfigError(msg)


def _check_fit(config: SpeculatorConfig) -> None:
    """Widths that have to agree, since the tensors are added or normalised."""
    inner, proj, emb = config.inner_dim, config.proj_dim, config.emb_dim
    said = f"inner_dim {inner}, proj_dim {proj}, emb_dim {emb}"
    if config.kind != "rnn" and (len(inner), len(proj), len(emb)) != (1, 1, 1):
        msg = f'only method "sum_rnn" has several widths; given {said}'
        raise SpeculatorConfigError(msg)
    if not proj[-1] == emb[-1] == inner[0]:
        msg = f"the last proj_dim, the last emb_dim and the first inner_dim are added, so must be equal; given {said}"
        raise SpeculatorConfigError(msg)
    if len(set(proj)) > 1 or len(set(emb)) > 1:
        # In Snowflake's module the norm of a further layer has that layer's width but comes before it.
        msg = f"all widths of proj_dim must be equal, and all of emb_dim; given {said}"
        raise SpeculatorConfigError(msg)
    if config.kind == "lstm" and not config.tie_weights:
        msg = 'tie_weights is false; method "sum_lstm" shares its weights between steps: tie_weights must be true'
        raise SpeculatorConfigError(msg)
