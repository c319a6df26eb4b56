"""Scaled dot-product attention: the function chapter 01 derives and every later chapter calls."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, padding: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, several queries sharing a key/value head.

    q is (B, H, T, D); k and v are (B, G, S, D), H a multiple of G. Returns (B, H, T, D).
    Where `causal`, the T queries are the last T of the S positions, so one function serves
    prefill (T = S), decode (T = 1) and chunked prefill (anything between).
    `padding` (B, S) is True at keys that are only filling; no query looks at them.

    Source: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 for the grouping.
    Raises ValueError if H is not a multiple of G, or if causal queries outnumber the positions.
    """
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    if H % G:
        raise ValueError(f"{H} query heads cannot share {G} key/value heads evenly")
    if causal and T > S:
        raise ValueError(f"{T} causal queries cannot be the last of only {S} positions")
    q = q.reshape(B, G, H // G, T, D)
    scores = q @ k[:, :, None].mT * D**-0.5  # (B, G, H/G, T, S)
    if causal and T > 1:
        # Query i stands at position S - T + i; forgetting the offset breaks only T < S.
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(future, -torch.inf)
    if padding is not None:
        # Subtle: not -inf. A query that is itself filling may have nothing else to look at, and a
        # row of -inf is nan, which the next layer's zero weights do not remove (0 · nan is nan).
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(padding[:, None, None, None, :], lowest)
    return (scores.softmax(-1) @ v[:, :, None]).reshape(B, H, T, D)
