"""SGLang's model config, made to fit what an embedding checkpoint says."""

from typing import Any


def after_from_server_args(config: Any, server_args: Any, *_args: Any, **_kwargs: Any) -> Any:
    """Gives an embedding model its whole window, and an encoder the position type that its config leaves out.

    SGLang's context length is one more than the longest text. A model with as many positions as its window has
    (BERT's 512) would lose the last token of a full window: SGLang refuses a context length over the positions.

    Args:
        config: the `ModelConfig` that SGLang made.
        server_args: ours, or SGLang's own before they are.
    """
    decision = getattr(server_args, "_arctic", None)
    spec = None if decision is None else decision.pooling
    if spec is None:
        return config
    if server_args.context_length is None and spec.context_length is not None:
        config.context_len = config.hf_config.context_len = spec.context_length
    # transformers 5 neither writes nor fills it in; SGLang's encoders read it, and serve "absolute" alone.
    if spec.is_encoder and not hasattr(config.hf_config, "position_embedding_type"):
        config.hf_config.position_embedding_type = "absolute"
    return config
