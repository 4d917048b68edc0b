"""The small files of a checkpoint before SGLang has read any: pooling, and whether the model only embeds."""

import json
from pathlib import Path
from typing import Any

from arctic_sglang import env
from arctic_sglang.compat import vendor
from arctic_sglang.embedding.checkpoint import FILES, UnsupportedCheckpointError

_NO_MODEL = ("none", "dummy")  # SGLang's names for arguments without a model


def folder(model_path: str, revision: str | None) -> Path:
    """The checkpoint's folder; for a name on the hub, a folder with its small pooling files.

    Raises:
        UnsupportedCheckpointError: the files cannot be fetched.
    """
    path = Path(model_path)
    if path.is_dir():
        return path
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_path, revision=revision, allow_patterns=list(FILES)))
    except (httpx.HTTPError, OSError, ValueError) as error:  # of the network; of the hub; a name that is none
        msg = f"the pooling files of {model_path} cannot be fetched ({type(error).__name__}: {error})"
        raise UnsupportedCheckpointError(msg) from error


def embeds_unasked(args: Any) -> bool:
    """Whether SGLang makes an embedding server of the model though `--is-embedding` was not given.

    SGLang does so for architectures that do nothing else, when it has read config.json: after pooling, window and
    caches have been decided.

    Args:
        args: SGLang's server arguments, before they have read the model.
    """
    config = _model_config(args)
    text = config.get("text_config") or config
    gemma = text.get("model_type") == "gemma3_text" and bool(text.get("use_bidirectional_attention"))
    return vendor.resolve_embedding_model_spec(
        config.get("architectures"), is_embedding_requested=False, is_embedding_gemma=gemma
    ).auto_enable_embedding


def _model_config(args: Any) -> dict[str, Any]:
    """config.json with what the command line changes in it; empty where it cannot be had here."""
    import httpx

    path = Path(args.model_path)
    try:
        if path.is_dir():
            file = path / "config.json"
        elif path.exists() or args.model_path.lower() in _NO_MODEL or env.modelscope():  # one file, GGUF say
            return {}
        else:
            file = _of_the_hub(args.model_path, args.revision)
        config = json.loads(file.read_text(encoding="utf-8"))
        return {**config, **json.loads(args.json_model_override_args)}
    except (httpx.HTTPError, OSError, TypeError, ValueError):
        return {}  # not there, or broken: SGLang has its own words for it


def _of_the_hub(name: str, revision: str | None) -> Path:
    """config.json of a repository; what is cached is enough for what is asked here, and needs no network."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(cached, str):
        cached = hf_hub_download(name, "config.json", revision=revision)
    return Path(cached)
