"""Texts and chats to token ids, many at once, with a transformers tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from batch_sdk.engines.base import Prompt
from batch_sdk.errors import RowError, RowErrorKind


def prompt_ids(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int] | RowError]:
    """Tokenise prompts: plain texts with the tokenizer's special tokens, chats as its template says."""
    found: list[list[int] | RowError] = [[]] * len(prompts)
    plain: list[tuple[int, str]] = []
    chats: list[tuple[int, str]] = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            plain.append((index, prompt))
            continue
        try:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            found[index] = RowError(RowErrorKind.REJECTED, f"the model's chat template: {error}")
        else:
            chats.append((index, text))
    for texts, special in ((plain, True), (chats, False)):
        if texts:
            encoded = tokenizer([text for _, text in texts], add_special_tokens=special, verbose=False)
            for (index, _), ids in zip(texts, encoded["input_ids"], strict=True):
                found[index] = ids
    return found


def text_ids(
    tokenizer: Any, texts: Sequence[str], limit: int | None, end_token: int | None
) -> list[list[int]]:
    """Tokenise texts to embed.

    Args:
        tokenizer: transformers'.
        texts: any number.
        limit: tokens at which a text is cut; None cuts nothing.
        end_token: put behind every text that does not end with it; None is no token.
    """
    # The tokenizer's own truncation keeps the special token at the end, which a plain slice would lose.
    cut = {} if limit is None else {"truncation": True, "max_length": limit}
    ids: list[list[int]] = tokenizer(list(texts), verbose=False, **cut)["input_ids"]
    if end_token is None:
        return ids
    return [row if row and row[-1] == end_token else [*row, end_token] for row in ids]
