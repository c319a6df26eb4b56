"""Answers to chapter 06 that readers give: every one must fail its check (tests/test_exercises.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcourse.data.gguf import half_split
from llmcourse.decode.sampling import top_p
from llmcourse.models.layers import RMSNorm

# 6.1


def mean_subtracted(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, None, eps)


def eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps)


def no_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / x.pow(2).mean(-1, keepdim=True).sqrt()


def no_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def sum_for_mean(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()


def no_root(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps)


def over_everything(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean() + eps).sqrt()


def keepdim_forgotten(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1) + eps).sqrt()


def the_room_itself(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


def the_course_class(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = RMSNorm(x.shape[-1], eps)
    norm.weight.data = weight
    return norm(x)


def fixed_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def over_axis_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(1, keepdim=True) + eps).sqrt()


def variance(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.var(-1, keepdim=True) + eps).sqrt()


def multiplied(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


# 6.2


def tiled(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.repeat(1, q.shape[1] // k.shape[1], 1, 1).mT / q.shape[-1] ** 0.5


def no_scale(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT


def scale_by_d(q: Tensor, k: Tensor) -> Tensor:
    return no_scale(q, k) / q.shape[-1]


def first_key_head(q: Tensor, k: Tensor) -> Tensor:
    return q @ k[:, :1].mT / q.shape[-1] ** 0.5


def not_expanded(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


def mean_of_keys(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mean(1, keepdim=True).mT / q.shape[-1] ** 0.5


def weights_not_scores(q: Tensor, k: Tensor) -> Tensor:
    return (no_scale(q, k) / q.shape[-1] ** 0.5).softmax(-1)


def queries_transposed(q: Tensor, k: Tensor) -> Tensor:
    return (no_scale(q, k) / q.shape[-1] ** 0.5).mT


def masked(q: Tensor, k: Tensor) -> Tensor:
    scores = no_scale(q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)


# 6.3


def whole_matrix(rows: Tensor, heads: int) -> Tensor:
    return torch.cat([rows[0::2], rows[1::2]])


def the_way_back(rows: Tensor, heads: int) -> Tensor:
    HD, C = rows.shape
    return rows.view(heads, 2, HD // heads // 2, C).transpose(1, 2).reshape(HD, C)


def columns(rows: Tensor, heads: int) -> Tensor:
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], 1)


def head_of_64(rows: Tensor, heads: int) -> Tensor:
    return rows.view(heads, 32, 2, -1).transpose(1, 2).reshape(rows.shape)


def odd_rows_first(rows: Tensor, heads: int) -> Tensor:
    each = rows.view(heads, -1, rows.shape[1])
    return torch.cat([each[:, 1::2], each[:, 0::2]], 1).reshape(rows.shape)


def heads_exchanged(rows: Tensor, heads: int) -> Tensor:
    return rows.view(heads, -1, rows.shape[1]).transpose(0, 1).reshape(rows.shape)


# 6.5


def crossing_left_out(p: Tensor, share: float) -> Tensor:
    ordered, order = p.sort(descending=True)
    keep = torch.zeros_like(p, dtype=torch.bool).scatter(0, order, ordered.cumsum(0) <= share)
    kept = p * keep
    return kept / kept.sum()


def unsorted(p: Tensor, share: float) -> Tensor:
    kept = p * (p.cumsum(0) - p < share)
    return kept / kept.sum()


def not_renormalised(p: Tensor, share: float) -> Tensor:
    ordered, order = p.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    return p * torch.zeros_like(p, dtype=torch.bool).scatter(0, order, before < share)


def renormalised_by_softmax(p: Tensor, share: float) -> Tensor:
    kept = not_renormalised(p, share)
    return kept.masked_fill(kept == 0, -torch.inf).softmax(0)


def left_sorted(p: Tensor, share: float) -> Tensor:
    ordered = p.sort(descending=True).values
    kept = ordered * (ordered.cumsum(0) - ordered < share)
    return kept / kept.sum()


def each_alone(p: Tensor, share: float) -> Tensor:
    kept = p * (p >= share)
    return kept / kept.sum()


def one_more_at_the_share(p: Tensor, share: float) -> Tensor:
    ordered, order = p.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    kept = p * torch.zeros_like(p, dtype=torch.bool).scatter(0, order, before <= share)
    return kept / kept.sum()


def by_a_limit(p: Tensor, share: float) -> Tensor:
    ordered = p.sort(descending=True).values
    kept = p * (p >= ordered[ordered.cumsum(0) - ordered < share].min())
    return kept / kept.sum()


def smallest_first(p: Tensor, share: float) -> Tensor:
    ordered, order = p.sort()
    kept = p * torch.zeros_like(p, dtype=torch.bool).scatter(0, order, ordered.cumsum(0) <= share)
    return kept / kept.sum()


def the_filter_itself(p: Tensor, share: float) -> Tensor:
    return top_p(p.log(), share).softmax(-1)


# 6.6


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    return -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def no_shift(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    loss = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return loss[real].mean().exp().item()


def padding_counted(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    return _losses(logits, ids).mean().exp().item()


def mask_one_off(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    return _losses(logits, ids)[real[:, :-1]].mean().exp().item()


def base_two(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    return 2 ** _losses(logits, ids)[real[:, 1:]].mean().item()


def no_exponential(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    return _losses(logits, ids)[real[:, 1:]].mean().item()


def mean_of_perplexities(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    rows = zip(_losses(logits, ids), real[:, 1:], strict=True)
    return torch.stack([row[keep].mean().exp() for row, keep in rows]).mean().item()


def texts_weigh_the_same(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    rows = zip(_losses(logits, ids), real[:, 1:], strict=True)
    return torch.stack([row[keep].mean() for row, keep in rows]).mean().exp().item()


def first_token_in_the_count(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    return (_losses(logits, ids)[real[:, 1:]].sum() / real.sum()).exp().item()


def without_softmax(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    raw = -logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return raw[real[:, 1:]].mean().exp().item()


def shifted_back(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    loss = -logits[:, 1:].log_softmax(-1).gather(-1, ids[:, :-1, None])[..., 0]
    return loss[real[:, 1:]].mean().exp().item()


def masked_sum_over_all(logits: Tensor, ids: Tensor, real: Tensor) -> float:
    return (_losses(logits, ids) * real[:, 1:]).mean().exp().item()


# 6.7

Z = torch.linspace(0, 4, 12)


def _counts(a: Any, b: Any, logits: Tensor, n: int) -> Tensor:
    return torch.stack([torch.bincount(s(logits, n), minlength=len(logits)) for s in (a, b)])


def one_seed(a: Any, b: Any) -> bool:
    return not torch.equal(a(Z, 100), b(Z, 100))


def any_difference(a: Any, b: Any) -> bool:
    one, other = _counts(a, b, Z, 10_000)
    return not torch.equal(one, other)


def means_within_a_hair(a: Any, b: Any) -> bool:
    return bool((a(Z, 1000).double().mean() - b(Z, 1000).double().mean()).abs() > 0.05)


def tokens_seen(a: Any, b: Any) -> bool:
    return set(a(Z, 20_000).tolist()) != set(b(Z, 20_000).tolist())


def favourite_only(a: Any, b: Any) -> bool:
    one, other = _counts(a, b, Z, 20_000)
    return bool(one.argmax() != other.argmax())


def equal_logits(a: Any, b: Any) -> bool:
    one, other = _counts(a, b, torch.zeros(5), 20_000) / 20_000
    return bool((one - other).abs().max() > 0.02)


def too_few_draws(a: Any, b: Any) -> bool:
    one, other = _counts(a, b, Z, 20) / 20
    return bool((one - other).abs().max() > 0.5)


def _chi_square(one: Tensor, other: Tensor) -> float:
    counts = torch.stack([one, other]).double()
    expected = counts.mean(0)
    seen = expected > 0
    chi2 = ((counts - expected)[:, seen] ** 2 / expected[seen]).sum()
    return float(torch.special.gammaincc((seen.sum() - 1) / 2, chi2 / 2))


def one_alarm_in_twenty(a: Any, b: Any) -> bool:
    return _chi_square(*_counts(a, b, Z, 50_000)) < 0.05


def one_alarm_in_ten(a: Any, b: Any) -> bool:
    return _chi_square(*_counts(a, b, Z, 50_000)) < 0.1


def one_alarm_in_five(a: Any, b: Any) -> bool:
    return _chi_square(*_counts(a, b, Z, 50_000)) < 0.2


OTHERS = (Z, torch.tensor([3.0, 0.0, 2.9, 1.0, -1.0, 2.0, 0.5, 2.5]))


def sets_of_tokens(a: Any, b: Any) -> bool:
    kept = [_counts(a, b, z, 50_000) > 10 for z in OTHERS]
    return any(not torch.equal(one, other) for one, other in kept)


def mean_id(a: Any, b: Any) -> bool:
    n = 50_000
    for z in OTHERS:
        one, other = (sampler(z, n).double() for sampler in (a, b))
        if (one.mean() - other.mean()).abs() > 5 * ((one.var() + other.var()) / n) ** 0.5:
            return True
    return False


def a_p_value(a: Any, b: Any) -> float:
    return 0.3


_PARTS = {"embedding": 262.7, "attention": 167.8, "feed_forward": 805.3, "prompt_token": 973.1}

WRONG: dict[str, list[Any]] = {
    "6.1": [
        mean_subtracted,
        layer_norm,
        eps_outside,
        no_eps,
        no_weight,
        sum_for_mean,
        no_root,
        over_everything,
        keepdim_forgotten,
        fixed_eps,
        over_axis_one,
        variance,
        multiplied,
        the_room_itself,
        the_course_class,
        lambda x, weight, eps: x,
        lambda x: x,
    ],
    "6.2": [
        tiled,
        no_scale,
        scale_by_d,
        first_key_head,
        not_expanded,
        mean_of_keys,
        weights_not_scores,
        queries_transposed,
        masked,
        lambda q, k: q,
    ],
    "6.3": [
        whole_matrix,
        the_way_back,
        columns,
        head_of_64,
        odd_rows_first,
        heads_exchanged,
        half_split,
        lambda rows, heads: half_split(rows, heads),
        lambda rows, heads: rows,
    ],
    "6.4": [
        {**_PARTS, "embedding": 525.3},  # the head counted again
        {**_PARTS, "attention": 268.4},  # K and V as wide as Q
        {**_PARTS, "attention": 10.5},  # one layer
        {**_PARTS, "attention": 134.7},  # K and V without their D
        {name: 4 * count for name, count in _PARTS.items()},  # bytes
        {**_PARTS, "feed_forward": 536.9},  # two matrices
        {**_PARTS, "prompt_token": 1235.8},  # head read for every token
        {**_PARTS, "feed_forward": 0.8053},  # billions
        {**_PARTS, "embedding": 262_700_000},
        {**_PARTS, "prompt_token": "most"},
        {"embedding": 262.7},
        1235.8,
    ],
    "6.5": [
        crossing_left_out,
        unsorted,
        not_renormalised,
        renormalised_by_softmax,
        left_sorted,
        each_alone,
        one_more_at_the_share,
        by_a_limit,
        smallest_first,
        the_filter_itself,
        lambda p, share: p,
    ],
    "6.6": [
        no_shift,
        padding_counted,
        mask_one_off,
        base_two,
        no_exponential,
        mean_of_perplexities,
        texts_weigh_the_same,
        first_token_in_the_count,
        without_softmax,
        shifted_back,
        masked_sum_over_all,
        lambda logits, ids, real: logits,
    ],
    "6.7": [
        one_seed,
        any_difference,
        means_within_a_hair,
        tokens_seen,
        favourite_only,
        equal_logits,
        too_few_draws,
        one_alarm_in_twenty,
        one_alarm_in_ten,
        one_alarm_in_five,
        sets_of_tokens,
        mean_id,
        a_p_value,
        lambda a, b: True,
        lambda a, b: False,
        lambda a, b: "they differ",
    ],
}
