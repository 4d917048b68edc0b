"""`arctic-recommend`: which flags to serve a model with.

Exit codes: 0 an answer, 2 the question makes no sense or the model does not fit.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arctic_sglang.embedding.checkpoint import FILES, PoolingSpec, UnsupportedCheckpointError, read_pooling
from arctic_sglang.recommend.answer import KINDS, Question, Traffic, kind_of
from arctic_sglang.recommend.policy import recommend
from arctic_sglang.recommend.show import FORMATS, show
from arctic_sglang.recommend.sizes import GIB, Model

_SMALL = ("config.json", "hf_quant_config.json", "*.safetensors.index.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 2 with one error."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        gpus, gpu_gib = _gpus(args.gpus, args.gpu_memory)
        traffic = _traffic(args)
        model = read_model(args.model, args.revision, embeds=traffic.kind == "embeddings")
        if args.weights is not None:
            model = replace(model, file_bytes=int(args.weights * GIB))
        question = Question(model, gpus, gpu_gib, traffic, args.quantization, args.draft_head)
        print(show(recommend(question), args.format))
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arctic-recommend",
        description="Flags to serve a model with, each with its reason. Starts nothing and loads no weights.",
    )
    parser.add_argument("--model", required=True, help="folder with config.json, or a name on the hub")
    parser.add_argument("--revision", help="of a model on the hub")
    parser.add_argument("--gpus", type=int, help="GPUs of one host (those of this machine)")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="of each (the least of this machine's)"
    )
    parser.add_argument(
        "--traffic", choices=list(KINDS), help="what comes in; without it, the three numbers say it (mixed)"
    )
    parser.add_argument("--requests-at-once", type=int, metavar="N", help="as measured, at a busy time")
    parser.add_argument("--tokens-in", type=int, metavar="N", help="of a prompt")
    parser.add_argument("--tokens-out", type=int, metavar="N", help="of an answer")
    parser.add_argument("--quantization", choices=["fp8"], help="quantise a checkpoint in bf16 or fp16")
    parser.add_argument(
        "--draft-head", metavar="PATH", help="an Arctic draft head for this model: folder or name"
    )
    parser.add_argument(
        "--weights", type=float, metavar="GIB", help="size of all weights, where it cannot be told"
    )
    parser.add_argument("--format", choices=FORMATS, default="command", help="of the answer (command)")
    return parser


def _traffic(args: argparse.Namespace) -> Traffic:
    """Traffic as a kind, numbers, or a kind with numbers of one's own.

    Raises:
        ValueError: some numbers were given, and not all.
    """
    numbers = {
        "--requests-at-once": args.requests_at_once,
        "--tokens-in": args.tokens_in,
        "--tokens-out": 0 if args.traffic == "embeddings" and args.tokens_out is None else args.tokens_out,
    }
    missing = [name for name, value in numbers.items() if value is None]
    if args.requests_at_once is None and args.tokens_in is None and args.tokens_out is None:
        return KINDS[args.traffic or "mixed"]
    if missing:
        msg = f"measured traffic without {' and '.join(missing)}; give all three, or --traffic alone"
        raise ValueError(msg)
    requests, tokens_in, tokens_out = numbers.values()
    kind = args.traffic or kind_of(requests, tokens_in, tokens_out)
    return Traffic(kind, requests, tokens_in, tokens_out, measured=True)


def _gpus(count: int | None, gib: float | None) -> tuple[int, float]:
    """Number and memory (GiB) of the GPUs, this machine's where they were not given.

    Raises:
        ValueError: they were not given, and there are none.
    """
    if count is not None and gib is not None:
        return count, gib
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        missing = [flag for flag, value in (("--gpus N", count), ("--gpu-memory GIB", gib)) if value is None]
        msg = f"this machine has no GPU to look at; give {' and '.join(missing)} of those that will serve the model"
        raise ValueError(msg)
    if gib is None:
        least = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(there))
        gib = round(least / GIB, 1)
    return count or there, gib


def read_model(path: str, revision: str | None = None, *, embeds: bool = False) -> Model:
    """A checkpoint's small files, from its folder or from the hub.

    Args:
        path: folder with config.json, or a name on the hub.
        revision: of a model on the hub.
        embeds: whether its sentence-transformers files are wanted too.

    Raises:
        ValueError: there is no such folder and no such model, or its config.json is none.
    """
    folder = Path(path) if Path(path).is_dir() else _fetched(path, revision, embeds)
    config = _json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("architectures"):
        msg = f"{folder / 'config.json'} names no architectures; give the folder of a checkpoint that SGLang serves"
        raise ValueError(msg)
    other = folder / "hf_quant_config.json"  # where ModelOpt says how it quantised
    if other.is_file() and not config.get("quantization_config"):
        config["quantization_config"] = {"quant_method": "modelopt"}
    pooling: PoolingSpec | UnsupportedCheckpointError | None = None
    if embeds:
        try:
            pooling = read_pooling(folder)
        except UnsupportedCheckpointError as error:
            pooling = error
    return Model(path, config, _file_bytes(folder), pooling)


def _fetched(name: str, revision: str | None, embeds: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [*_SMALL, *(FILES if embeds else ())]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        msg = (
            f"--model {name}: there is no such folder, and config.json cannot be fetched from the hub "
            f"({type(error).__name__}: {error}); give a folder with config.json"
        )
        raise ValueError(msg) from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{file} cannot be read ({type(error).__name__}: {error}); give the folder of a checkpoint"
        raise ValueError(msg) from error


def _file_bytes(folder: Path) -> int | None:
    """Bytes of all weights: as the index says, else as the files are; None where there are neither."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        size = (_json(index).get("metadata") or {}).get("total_size")
        if size:
            return int(size)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None


if __name__ == "__main__":
    sys.exit(main())
