"""Answers to chapter 01 that readers give: every one must fail its check (tests/test_exercises.py).

A callable stands for a reader's function; anything else for a reader's value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

INF = torch.inf


def the_library_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def exp_overflows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT / q.shape[-1] ** 0.5).exp().tril()
    return scores / scores.sum(-1, keepdim=True) @ v


def only_the_diagonal(p: Tensor, t: Tensor) -> Tensor:
    return p * (1 - p) * t


def mean_without_p(p: Tensor, t: Tensor) -> Tensor:
    return p * t - (p * t).sum(-1, keepdim=True)


def _future(T: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).triu(1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


# 1.2


def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(_future(q.shape[-2]), -INF).softmax(-1) @ v


def scale_by_d(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1]
    return scores.masked_fill(_future(q.shape[-2]), -INF).softmax(-1) @ v


def mask_after_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).softmax(-1).masked_fill(_future(q.shape[-2]), 0) @ v


def diagonal_masked_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(0)
    return _scores(q, k).masked_fill(future, -INF).softmax(-1) @ v


def wrong_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(_future(q.shape[-2]), -INF).softmax(-2) @ v


def zero_is_not_hidden(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(_future(q.shape[-2]), 0).softmax(-1) @ v


def no_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).softmax(-1) @ v


def upside_down(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(_future(q.shape[-2]).T, -INF).softmax(-1) @ v


def heads_not_kept(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(_future(q.shape[-2]), -INF).softmax(-1).mean(1, True) @ v


# 1.3


def diagonal_only(p: Tensor, t: Tensor) -> Tensor:
    return p * t


def sign_turned(p: Tensor, t: Tensor) -> Tensor:
    return p * ((p * t).sum(-1, keepdim=True) - t)


def plain_mean(p: Tensor, t: Tensor) -> Tensor:
    return p * (t - t.mean(-1, keepdim=True))


def all_rows_together(p: Tensor, t: Tensor) -> Tensor:
    return p * (t - (p * t).sum())


def down_the_columns(p: Tensor, t: Tensor) -> Tensor:
    return p * (t - (p * t).sum(0, keepdim=True))


def with_the_matrix(p: Tensor, t: Tensor) -> Tensor:
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return (jacobian @ t[:, :, None])[:, :, 0]


# 1.4

Block = tuple[Tensor, Tensor, Tensor]


def maximum_not_carried(a: Block, b: Block) -> Block:
    factor = (b[0] - a[0]).exp()
    return a[0], a[1] + factor * b[1], a[2] + factor[:, None] * b[2]


def sums_not_rescaled(a: Block, b: Block) -> Block:
    return torch.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]


def output_not_rescaled(a: Block, b: Block) -> Block:
    m = torch.maximum(a[0], b[0])
    s = a[1] * (a[0] - m).exp() + b[1] * (b[0] - m).exp()
    return m, s, a[2] + b[2]


def overflows(a: Block, b: Block) -> Block:
    m = torch.maximum(a[0], b[0])
    ea, eb = a[0].exp(), b[0].exp()
    o = (a[2] * ea[:, None] + b[2] * eb[:, None]) / m.exp()[:, None]
    return m, (a[1] * ea + b[1] * eb) / m.exp(), o


def factor_upside_down(a: Block, b: Block) -> Block:
    m = torch.maximum(a[0], b[0])
    ea, eb = (m - a[0]).exp(), (m - b[0]).exp()
    return m, a[1] * ea + b[1] * eb, a[2] * ea[:, None] + b[2] * eb[:, None]


def divided_too_early(a: Block, b: Block) -> Block:
    m = torch.maximum(a[0], b[0])
    ea, eb = (a[0] - m).exp(), (b[0] - m).exp()
    s = a[1] * ea + b[1] * eb
    return m, s, (a[2] * ea[:, None] + b[2] * eb[:, None]) / s[:, None]


def one_maximum_for_all_rows(a: Block, b: Block) -> Block:
    m = torch.maximum(a[0], b[0]).max().expand_as(a[0])
    ea, eb = (a[0] - m).exp(), (b[0] - m).exp()
    return m, a[1] * ea + b[1] * eb, a[2] * ea[:, None] + b[2] * eb[:, None]


# 1.5


def _halves(
    x: Tensor, positions: Tensor, base: float, power: float = 2.0, sign: float = 1.0
) -> Tensor:
    D = x.shape[-1]
    angle = positions[:, None] * base ** (-power * torch.arange(D // 2, dtype=x.dtype) / D)
    a, b = x[:, : D // 2], x[:, D // 2 :]
    cos, sin = angle.cos(), sign * angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def adjacent_pairs(x: Tensor, positions: Tensor, base: float) -> Tensor:
    turned = _halves(torch.cat([x[:, 0::2], x[:, 1::2]], -1), positions, base)
    return torch.stack(turned.chunk(2, -1), -1).flatten(-2)


def one_position_too_far(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return _halves(x, positions + 1, base)


def rows_for_positions(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return _halves(x, torch.arange(len(x)), base)


def clockwise(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return _halves(x, positions, base, sign=-1.0)


def factor_two_forgotten(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return _halves(x, positions, base, power=1.0)


def one_sign_lost(x: Tensor, positions: Tensor, base: float) -> Tensor:
    D = x.shape[-1]
    angle = positions[:, None] * base ** (-2 * torch.arange(D // 2, dtype=x.dtype) / D)
    a, b = x[:, : D // 2], x[:, D // 2 :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos + b * sin, b * cos + a * sin], -1)


_COST = {"flops": 154_618_822_656, "score_bytes": 2_415_919_104, "kv_bytes": 12_582_912}
_WHY = {
    "independent": 0.5,
    "aligned": 1,
    "divided_by_d": "uniform",
    "not_divided": "one-hot",
}

WRONG: dict[str, list[Any]] = {
    "1.1": [
        {"weights": [0.9, 0.1], "output": [7.2, 0.4]},  # no scale
        {"weights": [0.634, 0.366], "output": [5.07, 1.46]},  # divided by d
        {"weights": [3, 1], "output": [24, 4]},  # not normalised
        {"weights": [2 * math.log(3), 0], "output": [8, 0]},  # scores for weights
        {"weights": [0.25, 0.75], "output": [2, 3]},  # swapped
        {"weights": [0.75, 0.25], "output": [8, 4]},  # values added
        {"weights": [0.75, 0.25], "output": [4, 2]},  # plain mean
        {"weights": [0.75, 0.25], "output": ...},  # half an answer
        {"weights": 0.75, "output": [6, 1]},
        [0.75, 0.25],
        "three quarters",
    ],
    "1.2": [
        the_library_itself,
        exp_overflows,
        no_scale,
        scale_by_d,
        mask_after_softmax,
        diagonal_masked_out,
        wrong_axis,
        zero_is_not_hidden,
        no_mask,
        upside_down,
        heads_not_kept,
        lambda q, k, v: q,
        lambda q, k: q,
        0.5,
    ],
    "1.3": [
        only_the_diagonal,
        mean_without_p,
        diagonal_only,
        sign_turned,
        plain_mean,
        all_rows_together,
        down_the_columns,
        with_the_matrix,
        lambda p, t: t,
    ],
    "1.4": [
        maximum_not_carried,
        sums_not_rescaled,
        output_not_rescaled,
        overflows,
        factor_upside_down,
        divided_too_early,
        one_maximum_for_all_rows,
        lambda a, b: a,
        lambda a, b: a[2] + b[2],
    ],
    "1.5": [
        adjacent_pairs,
        one_position_too_far,
        rows_for_positions,
        clockwise,
        factor_two_forgotten,
        one_sign_lost,
        lambda x, positions, base: x,
    ],
    "1.6": [
        {**_COST, "flops": _COST["flops"] / 2},  # one product only
        {**_COST, "flops": _COST["flops"] / 9},  # one head
        {**_COST, "score_bytes": _COST["score_bytes"] / 4},  # numbers, not bytes
        {**_COST, "score_bytes": _COST["score_bytes"] / 3},  # G for H
        {**_COST, "score_bytes": _COST["score_bytes"] / 2**30},  # GiB for bytes
        {**_COST, "kv_bytes": _COST["kv_bytes"] * 3},  # H for G
        {**_COST, "kv_bytes": _COST["kv_bytes"] / 2},  # K only
        {**_COST, "kv_bytes": "12 MB"},
        {"flops": _COST["flops"]},
        154_618_822_656,
    ],
    "1.7": [
        {**_WHY, "independent": 1},  # the variance
        {**_WHY, "aligned": 0.5},  # as if terms cancelled
        {**_WHY, "divided_by_d": "one-hot"},
        {**_WHY, "divided_by_d": "unchanged"},
        {**_WHY, "not_divided": "uniform"},
        {**_WHY, "not_divided": "it explodes"},
        {"independent": 0.5},
        "because of the variance",
    ],
}
