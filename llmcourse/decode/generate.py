"""Generation, one token at a time: without a cache (slow, the baseline) and with one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from llmcourse.decode.cache import KVCache
from llmcourse.errors import CourseError
from llmcourse.models.llama import Llama


def greedy(logits: Tensor) -> int:
    """The most likely token of logits (V,); of equal ones the lower id."""
    return int(logits.argmax())


def generate_plain(
    model: Llama, ids: list[int], *, max_tokens: int, end_ids: Collection[int] = ()
) -> Iterator[int]:
    """The most likely next token, again and again; every step reads the whole text anew.

    Yields up to `max_tokens` ids and stops before an id of `end_ids`.
    Raises CourseError for an empty prompt or a text longer than the model's context.
    """
    device = check_prompt(model, ids, max_tokens)
    text = list(ids)
    for _ in range(max_tokens):
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor([text], device=device))  # (1, S, C)
            token = greedy(model.lm_head(hidden[0, -1]))
        if token in end_ids:
            return
        text.append(token)
        yield token


def generate_cached(
    model: Llama,
    ids: list[int],
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    choose: Callable[[Tensor], int] = greedy,
) -> Iterator[int]:
    """The same tokens as `generate_plain`; after the prompt a step computes one position only.

    `choose` picks the next token by its logits (V,).
    """
    device = check_prompt(model, ids, max_tokens)
    dtype = model.embed_tokens.weight.dtype
    cache = KVCache(model.config, max_tokens=len(ids) + max_tokens, dtype=dtype, device=device)
    new = list(ids)
    for _ in range(max_tokens):
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor([new], device=device), cache)  # (1, T, C)
            token = choose(model.lm_head(hidden[0, -1]))
        if token in end_ids:
            return
        new = [token]
        yield token


def check_prompt(model: Llama, ids: list[int], max_tokens: int) -> torch.device:
    """The device to put a prompt on; raises CourseError if it is empty or does not fit."""
    if not ids:
        raise CourseError("The prompt is empty; give at least one token.")
    room = model.config.max_position_embeddings
    if len(ids) + max_tokens > room:
        raise CourseError(
            f"A prompt of {len(ids):,} tokens and {max_tokens:,} new ones do not fit in the model's "
            f"context of {room:,}; shorten the prompt or ask for fewer."
        )
    return model.embed_tokens.weight.device
