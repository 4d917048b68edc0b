"""Pools packed token vectors into one vector per text. Torch alone."""

import torch

from arctic_sglang.embedding.checkpoint import Mode


def pool(mode: Mode, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One vector per text.

    Sums are taken in float32 per text, so a text's vector does not depend on its neighbours in the batch
    (a running sum over the batch, differenced, does).

    Args:
        mode: first token, mean, or last token.
        hidden: `[tokens, width]`, any float dtype, texts packed one after another.
        lengths: `[texts]`, integer: tokens of each text, none of them 0; their sum is `tokens`.

    Returns:
        `[texts, width]`, float32.
    """
    ends = torch.cumsum(lengths, dim=0)
    if mode == "last":
        return hidden[ends - 1].float()
    if mode == "cls":
        return hidden[ends - lengths].float()
    text_of_token = torch.repeat_interleave(
        torch.arange(len(lengths), device=hidden.device), lengths, output_size=hidden.shape[0]
    )
    sums = torch.zeros(len(lengths), hidden.shape[1], dtype=torch.float32, device=hidden.device)
    sums.index_add_(0, text_of_token, hidden.float())
    return sums / lengths.unsqueeze(1)


def pool_slow(mode: Mode, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The specification of `pool`, one text at a time."""
    texts = torch.split(hidden.float(), lengths.tolist())
    pick = {"cls": lambda t: t[0], "last": lambda t: t[-1], "mean": lambda t: t.mean(dim=0)}[mode]
    return torch.stack([pick(text) for text in texts])
