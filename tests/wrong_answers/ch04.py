"""Answers to chapter 04 that readers give: every one must fail its check (tests/test_exercises.py).

A callable stands for a reader's function; anything else for a reader's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcourse.data.vocabulary import EOS, PAD

INF = torch.inf
Masks = tuple[Tensor, Tensor, Tensor]


# 4.1


def _masks(source: Tensor, target: Tensor) -> Masks:
    T = target.shape[1]
    filling = (source == PAD)[:, None]
    return filling, torch.ones(T, T, dtype=torch.bool).triu(1), filling


def padding_on_the_side_of_the_queries(source: Tensor, target: Tensor) -> Masks:
    return (source == PAD)[:, :, None], *_masks(source, target)[1:]


def causal_encoder(source: Tensor, target: Tensor) -> Masks:
    S = source.shape[1]
    filling, future, cross = _masks(source, target)
    return filling | torch.ones(S, S, dtype=torch.bool).triu(1), future, cross


def nothing_hidden_in_the_encoder(source: Tensor, target: Tensor) -> Masks:
    filling, future, cross = _masks(source, target)
    return torch.zeros_like(filling), future, cross


def diagonal_hidden(source: Tensor, target: Tensor) -> Masks:
    filling, _, cross = _masks(source, target)
    T = target.shape[1]
    return filling, torch.ones(T, T, dtype=torch.bool).triu(0), cross


def past_hidden(source: Tensor, target: Tensor) -> Masks:
    filling, future, cross = _masks(source, target)
    return filling, future.T, cross


def decoder_hides_filling_only(source: Tensor, target: Tensor) -> Masks:
    filling, _, cross = _masks(source, target)
    return filling, (target == PAD)[:, None], cross


def causal_cross(source: Tensor, target: Tensor) -> Masks:
    filling, future, _ = _masks(source, target)
    T, S = target.shape[1], source.shape[1]
    return filling, future, filling | torch.ones(T, S, dtype=torch.bool).triu(1)


def cross_without_padding(source: Tensor, target: Tensor) -> Masks:
    filling, future, _ = _masks(source, target)
    return filling, future, torch.zeros_like(filling)


def target_padding_for_the_cross(source: Tensor, target: Tensor) -> Masks:
    filling, future, _ = _masks(source, target)
    return filling, future, (target == PAD)[:, None]


def true_means_visible(source: Tensor, target: Tensor) -> Masks:
    filling, future, cross = _masks(source, target)
    return ~filling, ~future, ~cross


def minus_infinity(source: Tensor, target: Tensor) -> Masks:
    filling, future, cross = _masks(source, target)
    return filling, torch.zeros(future.shape).masked_fill(future, -INF), cross


# 4.2

Weights = Mapping[str, Tensor]


def _heads(y: Tensor, D: int) -> Tensor:
    return y.unflatten(-1, (-1, D)).transpose(1, 2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Weights,
    padding: Tensor | None,
    *,
    scale: float | None = None,
    axis: int = -1,
) -> Tensor:
    H, G = q.shape[1], k.shape[1]
    k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -INF)
    return (scores.softmax(axis) @ v).transpose(1, 2).flatten(2) @ w["o"]


def _projected(x: Tensor, source: Tensor, w: Weights, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    D = x.shape[-1] // heads
    return _heads(x @ w["q"], D), _heads(source @ w["k"], D), _heads(source @ w["v"], D)


def keys_and_values_from_the_decoder(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    return _attend(*_projected(x, x, w, heads), w, None)


def queries_from_the_source(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    return _attend(*_projected(source, source, w, heads), w, padding)


def asker_and_answerer_swapped(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    return _attend(*_projected(source, x, w, heads), w, None)


def padding_ignored(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    return _attend(*_projected(x, source, w, heads), w, None)


def padding_upside_down(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    return _attend(*_projected(x, source, w, heads), w, ~padding)


def padding_after_the_softmax(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    weights = weights.masked_fill(padding[:, None, None], 0)
    return (weights @ v).transpose(1, 2).flatten(2) @ w["o"]


def scaled_by_the_width(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    parts = _projected(x, source, w, heads)
    return _attend(*parts, w, padding, scale=x.shape[-1] ** -0.5)


def not_scaled(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    return _attend(*_projected(x, source, w, heads), w, padding, scale=1.0)


def repeated_like_tiles(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    k, v = (t.repeat(1, heads // t.shape[1], 1, 1) for t in (k, v))
    return _attend(q, k, v, w, padding)


def heads_not_shared(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    q, k, v = (
        y.unflatten(-1, (heads, -1)).transpose(1, 2)
        for y in (x @ w["q"], source @ w["k"], source @ w["v"])
    )
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(padding[:, None, None], -INF)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w["o"]


def one_wide_head(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    q, k, v = x @ w["q"], source @ w["k"], source @ w["v"]
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(padding[:, None], -INF)
    return scores.softmax(-1) @ v @ w["o"]


def output_not_mixed(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    eye = {**w, "o": torch.eye(x.shape[-1])}
    return _attend(*_projected(x, source, w, heads), eye, padding)


def softmax_over_the_queries(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(padding[:, None, None], -INF)
    return (scores.softmax(-2) @ v).transpose(1, 2).flatten(2) @ w["o"]


def filling_with_score_zero(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(padding[:, None, None], 0)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w["o"]


def keys_and_values_exchanged(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    return _attend(q, v, k, w, padding)


def heads_joined_as_they_lie(
    x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor
) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(padding[:, None, None], -INF)
    return (scores.softmax(-1) @ v).reshape(x.shape) @ w["o"]


def the_library(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    q, k, v = _projected(x, source, w, heads)
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=~padding[:, None, None])
    return y.transpose(1, 2).flatten(2) @ w["o"]


def the_room(x: Tensor, source: Tensor, w: Weights, heads: int, padding: Tensor) -> Tensor:
    from llmcourse.models.attention import attend

    y = attend(*_projected(x, source, w, heads), causal=False, padding=padding)
    return y.transpose(1, 2).flatten(2) @ w["o"]


# 4.4


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = logits.log_softmax(-1)
    return -log_p.gather(-1, target[..., None])[..., 0], -log_p.mean(-1), target != PAD


def filling_counted(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, _ = _parts(logits, target)
    return ((1 - amount) * hit + amount * spread).mean()


def filling_in_the_mean(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    return (((1 - amount) * hit + amount * spread) * real).mean()


def summed(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    return ((1 - amount) * hit + amount * spread)[real].sum()


def not_smoothed(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, _, real = _parts(logits, target)
    return hit[real].mean()


def shared_among_the_others(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    V = logits.shape[-1]
    others = (V * spread - hit) / (V - 1)
    return ((1 - amount) * hit + amount * others)[real].mean()


def sum_over_the_vocabulary(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    return ((1 - amount) * hit + amount * spread * logits.shape[-1])[real].mean()


def shares_exchanged(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    return (amount * hit + (1 - amount) * spread)[real].mean()


def target_kept_whole(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    return (hit + amount * spread)[real].mean()


def sign_turned(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    return -((1 - amount) * hit + amount * spread)[real].mean()


def sentence_by_sentence(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, spread, real = _parts(logits, target)
    each = ((1 - amount) * hit + amount * spread) * real
    return (each.sum(1) / real.sum(1)).mean()


def log_of_a_softmax(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    log_p = logits.softmax(-1).log()
    hit, real = -log_p.gather(-1, target[..., None])[..., 0], target != PAD
    return ((1 - amount) * hit - amount * log_p.mean(-1))[real].mean()


def logits_as_they_are(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, real = -logits.gather(-1, target[..., None])[..., 0], target != PAD
    return ((1 - amount) * hit - amount * logits.mean(-1))[real].mean()


def softmax_over_the_positions(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    log_p, real = logits.log_softmax(1), target != PAD
    hit = -log_p.gather(-1, target[..., None])[..., 0]
    return ((1 - amount) * hit - amount * log_p.mean(-1))[real].mean()


def pad_gets_no_share(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    hit, _, real = _parts(logits, target)
    spread = -logits.log_softmax(-1)[..., PAD + 1 :].mean(-1)
    return ((1 - amount) * hit + amount * spread)[real].mean()


def the_library_loss(logits: Tensor, target: Tensor, amount: float) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=amount
    )


# 4.5

Step = Callable[[list[int]], list[float]]


def greedy(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < longest and EOS not in tokens:
        log_p = step(tokens)
        tokens.append(log_p.index(max(log_p)))
    return [token for token in tokens if token != EOS]


def _search(
    step: Step,
    width: int,
    penalty: float,
    longest: int,
    *,
    rank: Callable[[list[int], float], float] | None = None,
    dropped: bool = False,
    first: bool = False,
    grow: Callable[[float, float], float] = lambda score, log_p: score + log_p,
) -> list[int]:
    def due(tokens: list[int], score: float) -> float:
        return score / ((5 + len(tokens)) / 6) ** penalty

    order = rank or due
    beam: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(longest):
        grown = [] if dropped else [h for h in beam if EOS in h[0]]
        for tokens, score in beam:
            if EOS not in tokens:
                grown += [([*tokens, v], grow(score, p)) for v, p in enumerate(step(tokens))]
        if not grown:
            break
        beam = sorted(grown, key=lambda h: order(*h), reverse=True)[:width]
        if first and any(EOS in tokens for tokens, _ in beam):
            beam = [h for h in beam if EOS in h[0]]
            break
    return [token for token in beam[0][0] if token != EOS]


def ended_ones_dropped(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest, dropped=True)


def last_step_only(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest, grow=lambda score, log_p: log_p)


def probabilities_added(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest, grow=lambda score, log_p: score + math.exp(log_p))


def no_penalty(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest, rank=lambda tokens, score: score)


def divided_by_the_length(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(
        step, width, penalty, longest, rank=lambda t, score: score / max(1, len(t)) ** penalty
    )


def multiplied(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(
        step, width, penalty, longest, rank=lambda t, s: s * ((5 + len(t)) / 6) ** penalty
    )


def stops_at_the_first_end(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest, first=True)


def one_step_early(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest - 1)


def one_step_more(step: Step, width: int, penalty: float, longest: int) -> list[int]:
    return _search(step, width, penalty, longest + 1)


_BLEU = {"tokens": 1, "right": 0.368, "swapped": 0.5}
_WHY: dict[str, Any] = {
    "transformer_training": 1,
    "lstm_training": "T",
    "generating": "T",
    "scoring": 1,
    "own_words": "T",
}

WRONG: dict[str, list[Any]] = {
    "4.1": [
        padding_on_the_side_of_the_queries,
        causal_encoder,
        nothing_hidden_in_the_encoder,
        diagonal_hidden,
        past_hidden,
        decoder_hides_filling_only,
        causal_cross,
        cross_without_padding,
        target_padding_for_the_cross,
        true_means_visible,
        minus_infinity,
        lambda source, target: source == PAD,
        lambda source: source,
        "three masks",
    ],
    "4.2": [
        keys_and_values_from_the_decoder,
        queries_from_the_source,
        asker_and_answerer_swapped,
        padding_ignored,
        padding_upside_down,
        padding_after_the_softmax,
        scaled_by_the_width,
        not_scaled,
        repeated_like_tiles,
        heads_not_shared,
        one_wide_head,
        output_not_mixed,
        softmax_over_the_queries,
        filling_with_score_zero,
        keys_and_values_exchanged,
        heads_joined_as_they_lie,
        the_library,
        the_room,
        lambda x, source, w, heads, padding: x,
    ],
    "4.4": [
        filling_counted,
        filling_in_the_mean,
        summed,
        not_smoothed,
        shared_among_the_others,
        sum_over_the_vocabulary,
        shares_exchanged,
        target_kept_whole,
        sign_turned,
        sentence_by_sentence,
        log_of_a_softmax,
        logits_as_they_are,
        softmax_over_the_positions,
        pad_gets_no_share,
        the_library_loss,
        lambda logits, target, amount: logits,
    ],
    "4.5": [
        greedy,
        ended_ones_dropped,
        last_step_only,
        probabilities_added,
        no_penalty,
        divided_by_the_length,
        multiplied,
        stops_at_the_first_end,
        one_step_early,
        one_step_more,
        lambda step, width, penalty, longest: [],
        lambda step, width, penalty, longest: 3,
    ],
    "4.3": [
        {**_BLEU, "tokens": 6},  # characters
        {**_BLEU, "tokens": 7},
        {"tokens": 1, "right": 0.5, "swapped": 0.368},  # exchanged
        {**_BLEU, "tokens": 2},  # the full stop cut off
        {**_BLEU, "right": 1},  # precision alone
        {**_BLEU, "right": 0.5},  # the ratio for the penalty
        {**_BLEU, "right": 0.61},  # the exponent upside down
        {**_BLEU, "swapped": 0.368},  # as if it were symmetric
        {**_BLEU, "swapped": 1},
        {**_BLEU, "swapped": 0.184},  # a penalty where none is due
        {**_BLEU, "right": 36.8},  # in per cent
        {"tokens": 1},
        0.37,
    ],
    "4.6": [
        {**_WHY, "transformer_training": "T"},
        {**_WHY, "lstm_training": 1},
        {**_WHY, "generating": 1},
        {**_WHY, "scoring": "T"},
        {**_WHY, "own_words": 1},
        {**_WHY, "generating": "it depends"},
        {"generating": "T"},
        "because it is autoregressive",
    ],
}
