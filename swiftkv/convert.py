"""Makes the SwiftKV version of a model, before any training: `python -m swiftkv.convert --help`.

The added projections start as the base's own of the same layer (keys and values: their mean over a group), the
added norm as the cut layer's. So what distillation has to repair is only that upper keys and values see the
state of the cut. The weights are streamed; the model is never loaded.

Exit codes: 0 done, 2 the request makes no sense.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from swiftkv import checkpoint, names
from swiftkv.checkpoint import Checkpoint
from swiftkv.config import CONFIGS
from swiftkv.errors import SwiftKVError
from swiftkv.layout import ARCHITECTURES, Layout
from swiftkv.names import Use

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def convert(
    model: str | Path,
    num_key_value_layers: int,
    out: str | Path,
    *,
    key_value_group_size: int = 1,
    link: bool = False,
) -> Path:
    """Writes a folder that loads as a SwiftKV model, and still holds its base.

    Args:
        model: the base: a folder, or a name of the hub.
        num_key_value_layers: layers, from the first, that keep keys and values of their own.
        out: the folder to write; it must not exist or be empty.
        key_value_group_size: upper layers that share one pair of keys and values.
        link: relative symbolic links to the base's files in place of copies.

    Returns:
        `out`.

    Raises:
        SwiftKVError: the base or the numbers do not fit, or `out` has something in it.
    """
    out = Path(out)
    checkpoint.check_out(out)
    base = Checkpoint.open(model)
    _check(base)
    config = {
        **base.config,
        "num_key_value_layers": num_key_value_layers,
        "key_value_group_size": key_value_group_size,
    }
    try:
        layout = Layout.of(config)
    except ValueError as error:
        raise SwiftKVError(str(error)) from error
    _check_depth(base, layout)
    family = base.config["model_type"]
    config |= {"model_type": CONFIGS[family].model_type, "architectures": [ARCHITECTURES[family]]}
    return checkpoint.write(base, initial(base, layout), out, config=config, link=link)


def initial(base: Checkpoint, layout: Layout) -> dict[str, torch.Tensor]:
    """The added tensors before training, in the base's dtype.

    Raises:
        SwiftKVError: the base lacks a tensor.
    """
    attention = f"model.layers.{layout.cut}.self_attn"
    wanted = names.added(
        layout,
        bias=f"{attention}.q_proj.bias" in base.names,
        head_norm=f"{attention}.q_norm.weight" in base.names,
    )
    return {name: _start(name, base, layout) for name in wanted}


def _start(name: str, base: Checkpoint, layout: Layout) -> torch.Tensor:
    read = names.read(name, layout)
    if read.use is Use.BASE:
        return base.tensor(f"model.layers.{layout.cut}.input_layernorm.weight")
    size = 1 if read.use is Use.QUERY else layout.group_size
    group = range(read.layer, read.layer + size)
    parts = [base.tensor(f"model.layers.{i}.self_attn.{read.module}.{read.suffix}") for i in group]
    return torch.stack(parts).float().mean(0).to(parts[0].dtype) if size > 1 else parts[0]


def _check(base: Checkpoint) -> None:
    config, family = base.config, base.config.get("model_type")
    if "num_key_value_layers" in config or str(family).endswith("_swiftkv"):
        raise SwiftKVError(f"{base.folder} is a SwiftKV model already")
    if family not in CONFIGS:
        known = ", ".join(CONFIGS)
        raise SwiftKVError(f"model type {family} is not supported; SwiftKV is made of {known}")
    if config.get("quantization_config") or config.get("compression_config"):
        raise SwiftKVError(f"{base.folder} is quantised; convert the model in bf16, and quantise the result")
    if _slides(config):
        raise SwiftKVError(f"{base.folder} uses a sliding window, which SwiftKV does not support")


def _check_depth(base: Checkpoint, layout: Layout) -> None:
    """Weights of layers that config.json does not know are of another model, and nobody would run them."""
    numbers = [int(match[1]) for name in base.names if (match := _LAYER.match(name))]
    deepest = max(numbers, default=-1)
    if deepest >= layout.layers:
        raise SwiftKVError(
            f"num_hidden_layers is {layout.layers} in {base.folder / checkpoint.CONFIG}, and the weights have "
            f"{deepest + 1} layers; config.json is another model's"
        )


def _slides(config: dict[str, Any]) -> bool:
    return bool(config.get("use_sliding_window")) or "sliding_attention" in (config.get("layer_types") or ())


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m swiftkv.convert",
        description="Make the SwiftKV version of a Llama, Qwen2 or Qwen3 model, ready for swiftkv.distill.",
    )
    parser.add_argument("--model", required=True, help="folder or hub name of the base")
    parser.add_argument(
        "--num-key-value-layers", type=int, required=True, metavar="N",
        help="layers, from the first, that keep their own keys and values; half of them is usual",
    )  # fmt: skip
    parser.add_argument(
        "--key-value-group-size", type=int, default=1, metavar="N",
        help="upper layers that share one pair of keys and values (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--link", action="store_true", help="link to the base's files by relative symbolic links, do not copy"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        out = convert(
            args.model, args.num_key_value_layers, args.out,
            key_value_group_size=args.key_value_group_size, link=args.link,
        )  # fmt: skip
    except SwiftKVError as error:
        print(f"swiftkv.convert: error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
