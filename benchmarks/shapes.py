"""The models that are measured, each plain and cut for SwiftKV: sizes with dummy weights, or a checkpoint."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugin_overhead import LLAMA_8B

from swiftkv.cost import Shape
from swiftkv.layout import ARCHITECTURES, Layout

LLAMA_70B = {
    **LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
TOY = {
    **LLAMA_8B, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1024, "max_position_embeddings": 4096,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A model's sizes and where SwiftKV cuts it.

    Attributes:
        title: its name in tables.
        config: its config.json, plain.
        cut: the first upper layer.
        folder: of a checkpoint with weights; None: dummy ones.
    """

    title: str
    config: dict[str, Any]
    cut: int
    folder: Path | None = None

    @property
    def weights(self) -> str:
        """What the weights are, as results say it: "dummy" or "checkpoint"."""
        return "checkpoint" if self.folder else "dummy"

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of `sglang.Engine` by which it has these weights."""
        return {"load_format": "auto" if self.folder else "dummy"}

    def place(self, folder: Path) -> Path:
        """The folder that an engine is given: the checkpoint, or `folder`, which gets a config.json."""
        if self.folder:
            return self.folder
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return Shape.of(self.config)

    def layout(self, cut: int | None = None, group_size: int = 1) -> Layout:
        """Its layers with SwiftKV; at another cut, or with AcrossKV, if asked."""
        return Layout(self.config["num_hidden_layers"], cut or self.cut, group_size)

    def swiftkv_config(self, layout: Layout) -> dict[str, Any]:
        """The config.json of the SwiftKV model."""
        base = self.config["model_type"]
        return {
            **self.config, "architectures": [ARCHITECTURES[base]], "model_type": f"{base}_swiftkv",
            "num_key_value_layers": layout.cut, "key_value_group_size": layout.group_size,
        }  # fmt: skip


MODELS = {
    "llama-3.1-8b": Model("Llama-3.1-8B", LLAMA_8B, 16),
    "llama-3.1-70b": Model("Llama-3.1-70B", LLAMA_70B, 40),
    "llama-3.3-70b": Model("Llama-3.3-70B", LLAMA_70B, 40),
    "qwen2.5-7b": Model("Qwen2.5-7B", QWEN_7B, 21),
    "toy": Model("toy", TOY, 3),
}


def swiftkv_folder(source: Model, layout: Layout, folder: Path, made: Model | None = None) -> Path:
    """The folder with the SwiftKV model of a model.

    Args:
        source: the plain model; a checkpoint is converted, untrained.
        layout: its layers with SwiftKV.
        folder: that does not exist, or has what this has written before.
        made: a checkpoint that has been made of it, which is taken instead.

    Raises:
        SwiftKVError: a SwiftKV model cannot be made of the checkpoint.
    """
    if made or folder.exists():
        return made.folder if made else folder
    if source.folder:
        from swiftkv.convert import convert  # torch, which many benchmarks do without

        return convert(source.folder, layout.cut, folder, key_value_group_size=layout.group_size, link=True)
    return Model(source.title, source.swiftkv_config(layout), layout.cut).place(folder)


def checkpoint(text: str) -> Model:
    """A model with its weights, cut in the middle for SwiftKV; the type of a command line's `--model`.

    Raises:
        argparse.ArgumentTypeError: it is no folder with the config.json of a text model.
    """
    folder = Path(text).resolve()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{text}: a folder with config.json and weights is wanted ({type(error).__name__}: {error})"
        raise argparse.ArgumentTypeError(message) from error
    missing = [name for name in ("vocab_size", "num_hidden_layers") if name not in config]
    if missing:
        message = (
            f"{text}: config.json has no {' and no '.join(missing)}; the folder of a text model is wanted"
        )
        raise argparse.ArgumentTypeError(message)
    return Model(folder.name, config, config["num_hidden_layers"] // 2, folder)


def add_source(options: argparse.ArgumentParser) -> None:
    """Adds `--shape` and `--model`, of which one may be given."""
    which = options.add_mutually_exclusive_group()
    which.add_argument("--shape", choices=MODELS, default="llama-3.1-8b", help="sizes, with dummy weights")
    which.add_argument(
        "--model", type=checkpoint, metavar="FOLDER", help="a checkpoint with its weights instead"
    )


def settle_source(args: argparse.Namespace) -> None:
    """Sets `source`, the model that was chosen, and makes `shape` its name: of the sizes, or of the folder."""
    args.source = args.model or MODELS[args.shape]
    if args.model:
        args.shape = args.model.title


def title(shape: str) -> str:
    """The name in tables of a result's `shape`."""
    return MODELS[shape].title if shape in MODELS else shape
