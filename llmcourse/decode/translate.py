"""Writing a translation with any encoder–decoder: greedily, or with a beam."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from llmcourse.data.vocabulary import BOS, EOS, PAD
from llmcourse.errors import CourseError


class State(Protocol):
    """What a translator remembers between steps."""

    def select(self, rows: Tensor) -> Any:
        """The state of other rows of the batch."""
        ...


class Translator(Protocol):
    """What `translate_greedy` and `translate_beam` ask of a model."""

    def start(self, source: Tensor) -> Any:
        """Read source ids (B, S)."""
        ...

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """Logits (B, V) after one more token (B,), and the new state."""
        ...


@torch.inference_mode()
def translate_greedy(model: Translator, source: Tensor, *, max_tokens: int = 48) -> list[list[int]]:
    """The likeliest next token, again and again, for each row of source ids (B, S).

    Rows end before EOS or after `max_tokens`. Raises CourseError for an empty source.
    """
    _check(source)
    state = model.start(source)
    token = source.new_full((len(source),), BOS)
    done = torch.zeros_like(token, dtype=torch.bool)
    written = []
    for _ in range(max_tokens):
        logits, state = model.step(state, token)  # (B, V)
        token = logits.argmax(-1).masked_fill(done, PAD)
        done = done | (token == EOS)
        written.append(token)
        if bool(done.all()):
            break
    return [_until_end(row) for row in torch.stack(written, 1).tolist()]


@torch.inference_mode()
def translate_beam(
    model: Translator,
    source: Tensor,
    *,
    width: int = 4,
    length_penalty: float = 1.0,
    max_tokens: int = 48,
) -> list[list[int]]:
    """The best of `width` hypotheses that are kept at each step, for each row of source ids (B, S).

    Hypotheses are ranked by log probability / ((5 + length) / 6) ** length_penalty; one that has
    ended stays in the beam at its score. Width 1 is greedy.
    Source: Wu et al. 2016 (GNMT), eq. 14, for the penalty.
    Raises CourseError for an empty source or a width below 1.
    """
    _check(source)
    if width < 1:
        raise CourseError(f"A beam has a width of 1 or more, not {width}.")
    B = len(source)
    state = model.start(source.repeat_interleave(width, 0))  # B * width rows
    first_row = torch.arange(B, device=source.device)[:, None] * width  # (B, 1)
    score = torch.full((B, width), -torch.inf, device=source.device)
    score[:, 0] = 0.0  # all beams are equal at the start: only one may be extended
    token = source.new_full((B, width), BOS)
    done = torch.zeros_like(token, dtype=torch.bool)
    written = source.new_zeros(B, width, 0)
    length = torch.zeros_like(token)
    for _ in range(max_tokens):
        logits, state = model.step(state, token.flatten())
        log_p = logits.log_softmax(-1).unflatten(0, (B, width))  # (B, W, V)
        log_p[done] = -torch.inf
        log_p[..., PAD] = torch.where(done, 0.0, -torch.inf)  # an ended one may only be carried on
        total = score[..., None] + log_p
        grown = (length + ~done)[..., None]
        ranked = total / ((5 + grown) / 6) ** length_penalty
        best = ranked.flatten(1).topk(width).indices  # (B, W)
        origin, token = best // log_p.shape[-1], best % log_p.shape[-1]
        state = state.select((first_row + origin).flatten())
        score = total.flatten(1).gather(1, best)
        length = (length + ~done).gather(1, origin)
        done = done.gather(1, origin) | (token == EOS)
        kept = written.gather(1, origin[..., None].expand(-1, -1, written.shape[-1]))
        written = torch.cat([kept, token[..., None]], -1)
        if bool(done.all()):
            break
    return [_until_end(row) for row in written[:, 0].tolist()]


def _until_end(row: list[int]) -> list[int]:
    return row[: row.index(EOS)] if EOS in row else row


def _check(source: Tensor) -> None:
    if source.ndim != 2 or source.shape[1] == 0 or bool((source == PAD).all(1).any()):
        raise CourseError("A source text is empty; each row needs at least one token.")
