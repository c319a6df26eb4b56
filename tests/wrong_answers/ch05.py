"""Answers to chapter 05 that readers give: every one must fail its check (tests/test_exercises.py).

A callable stands for a reader's function; anything else for a reader's value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmcourse.measure import wilson
from llmcourse.models.bert import masked_mean

_SPLITS = {"A": "much", "B": "much", "C": "a little", "D": "none"}
Z = 1.96

# 5.2


def the_library_itself(hits: int, n: int) -> tuple[float, float]:
    return wilson(hits, n)


def normal_approximation(hits: int, n: int) -> tuple[float, float]:
    p = hits / n
    half = Z * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def one_standard_error(hits: int, n: int) -> tuple[float, float]:
    p = hits / n
    half = math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def _wilson(hits: int, n: int, z: float = Z) -> tuple[float, float]:
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def one_sided(hits: int, n: int) -> tuple[float, float]:
    return _wilson(hits, n, 1.645)


def exchanged(hits: int, n: int) -> tuple[float, float]:
    return _wilson(hits, n)[::-1]


def in_percent(hits: int, n: int) -> list[float]:
    return [100 * x for x in _wilson(hits, n)]


def around_p(hits: int, n: int) -> tuple[float, float]:
    low, high = _wilson(hits, n)
    return hits / n - (high - low) / 2, hits / n + (high - low) / 2


def not_divided(hits: int, n: int) -> tuple[float, float]:
    low, high = _wilson(hits, n)
    return low * (1 + Z * Z / n), high * (1 + Z * Z / n)


def one_end_divided(hits: int, n: int) -> tuple[float, float]:
    low, high = _wilson(hits, n)
    return low * (1 + Z * Z / n), high


def n_not_squared(hits: int, n: int) -> tuple[float, float]:
    p, pull = hits / n, 1 + Z * Z / n
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n))
    return (middle - half) / pull, (middle + half) / pull


# 5.3


def the_package_itself(x: Tensor, padding: Tensor) -> Tensor:
    return masked_mean(x, padding)


def padding_counted(x: Tensor, padding: Tensor) -> Tensor:
    return x.mean(1)


def divided_by_all(x: Tensor, padding: Tensor) -> Tensor:
    return (x * ~padding[..., None]).mean(1)


def sum_only(x: Tensor, padding: Tensor) -> Tensor:
    return (x * ~padding[..., None]).sum(1)


def mean_of_padding(x: Tensor, padding: Tensor) -> Tensor:
    return (x * padding[..., None]).sum(1) / padding.sum(1)[:, None].clamp(min=1)


def mean_of_padding_unclamped(x: Tensor, padding: Tensor) -> Tensor:
    return (x * padding[..., None]).sum(1) / padding.sum(1)[:, None]


def whole_batch(x: Tensor, padding: Tensor) -> Tensor:
    return (x * ~padding[..., None]).sum(1) / (~padding).sum()


def over_the_batch(x: Tensor, padding: Tensor) -> Tensor:
    return x.mean(0)


def no_last_axis(x: Tensor, padding: Tensor) -> Tensor:
    return (x * ~padding).sum(1)


# 5.4


def _hide(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Tensor:
    shown = torch.where(chosen & (dice < 0.8), 4, ids)
    return torch.where(chosen & (dice >= 0.8) & (dice < 0.9), other, shown)


def loss_everywhere(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    return _hide(ids, chosen, dice, other), ids


def loss_on_masks_only(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    shown = _hide(ids, chosen, dice, other)
    return shown, torch.where(shown == 4, ids, -100)


def loss_where_changed(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    shown = _hide(ids, chosen, dice, other)
    return shown, torch.where(shown != ids, ids, -100)


def target_is_shown(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    shown = _hide(ids, chosen, dice, other)
    return shown, torch.where(chosen, shown, -100)


def outputs_exchanged(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    return torch.where(chosen, ids, -100), _hide(ids, chosen, dice, other)


def the_rest_replaced(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    shown = torch.where(chosen, _hide(ids, chosen, dice, other), other)
    return shown, torch.where(chosen, ids, -100)


def zero_for_no_loss(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    return _hide(ids, chosen, dice, other), ids * chosen


def always_mask(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    return torch.where(chosen, 4, ids), torch.where(chosen, ids, -100)


def not_only_chosen(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    everywhere = torch.ones_like(chosen)
    return _hide(ids, everywhere, dice, other), torch.where(chosen, ids, -100)


def a_fifth_swapped(ids: Tensor, chosen: Tensor, dice: Tensor, other: Tensor) -> Any:
    shown = torch.where(chosen & (dice < 0.8), 4, ids)
    shown = torch.where(chosen & (dice >= 0.8), other, shown)
    return shown, torch.where(chosen, ids, -100)


# 5.5


def _binned(p: Tensor, label: Tensor, bins: int) -> list[tuple[float, float, float]]:
    confidence, right = torch.maximum(p, 1 - p), ((p > 0.5) == label).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    rows = []
    for b in range(bins):
        inside = place == b
        if inside.any():
            mean = inside.double().mean().item(), right[inside].mean().item()
            rows.append((*mean, confidence[inside].mean().item()))
    return rows


def bins_alike(p: Tensor, label: Tensor, bins: int) -> float:
    rows = _binned(p, label, bins)
    return sum(abs(a - c) for _, a, c in rows) / len(rows)


def signed(p: Tensor, label: Tensor, bins: int) -> float:
    return sum(w * (a - c) for w, a, c in _binned(p, label, bins))


def absolute_outside(p: Tensor, label: Tensor, bins: int) -> float:
    return abs(signed(p, label, bins))


def of_class_one(p: Tensor, label: Tensor, bins: int) -> float:
    place, total = (p * bins).long(), 0.0
    for b in place.unique():
        inside = place == b
        gap = label[inside].double().mean() - p[inside].mean()
        total += (inside.double().mean() * gap.abs()).item()
    return total


def empty_bins(p: Tensor, label: Tensor, bins: int) -> float:
    confidence, right = torch.maximum(p, 1 - p), ((p > 0.5) == label).double()
    place = (confidence * bins).long()
    gaps = [right[place == b].mean() - confidence[place == b].mean() for b in range(bins)]
    return float(sum(gap.abs() for gap in gaps))


def the_worst_bin(p: Tensor, label: Tensor, bins: int) -> float:
    return max(abs(a - c) for _, a, c in _binned(p, label, bins))


def always_ten(p: Tensor, label: Tensor, bins: int) -> float:
    return sum(w * abs(a - c) for w, a, c in _binned(p, label, 10))


def certainty_lost(p: Tensor, label: Tensor, bins: int) -> float:
    kept = torch.maximum(p, 1 - p) < 1
    rows = _binned(p[kept], label[kept], bins)
    return kept.double().mean().item() * sum(w * abs(a - c) for w, a, c in rows)


def upper_half(p: Tensor, label: Tensor, bins: int) -> float:
    confidence, right = torch.maximum(p, 1 - p), ((p > 0.5) == label).double()
    place, total = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1), 0.0
    for b in place.unique():
        inside = place == b
        gap = right[inside].mean() - confidence[inside].mean()
        total += (inside.double().mean() * gap.abs()).item()
    return total


def percent(p: Tensor, label: Tensor, bins: int) -> float:
    return 100 * sum(w * abs(a - c) for w, a, c in _binned(p, label, bins))


_DAY = {
    "encoder_s": 64,
    "decoder_s": 8000,
    "prefix_saves": 0.36,
    "bound": "compute",
    "no_labels": "decoder",
}

WRONG: dict[str, list[Any]] = {
    "5.1": [
        {**_SPLITS, "A": "none"},  # as if shuffling helped
        {**_SPLITS, "A": "a little"},
        {**_SPLITS, "B": "none"},  # a clean test part does not make a clean split
        {**_SPLITS, "C": "none"},  # near-duplicates forgotten
        {**_SPLITS, "D": "a little"},
        {**_SPLITS, "C": "yes"},
        {"A": "much"},
        "D",
    ],
    "5.2": [
        the_library_itself,
        normal_approximation,
        one_standard_error,
        one_sided,
        exchanged,
        in_percent,
        around_p,
        not_divided,
        one_end_divided,
        n_not_squared,
        lambda hits, n: hits / n,
        lambda hits, n: "0.8 to 0.9",
        0.9,
    ],
    "5.3": [
        the_package_itself,
        padding_counted,
        divided_by_all,
        sum_only,
        mean_of_padding,
        mean_of_padding_unclamped,
        whole_batch,
        over_the_batch,
        no_last_axis,
        lambda x, padding: x[:, 0],
        lambda x, padding: x[~padding].mean(0),
    ],
    "5.4": [
        loss_everywhere,
        loss_on_masks_only,
        loss_where_changed,
        target_is_shown,
        outputs_exchanged,
        the_rest_replaced,
        zero_for_no_loss,
        always_mask,
        not_only_chosen,
        a_fifth_swapped,
        lambda ids, chosen, dice, other: ids,
        lambda ids, chosen, dice, other: (ids, ids),
    ],
    "5.5": [
        bins_alike,
        signed,
        absolute_outside,
        of_class_one,
        empty_bins,
        the_worst_bin,
        always_ten,
        certainty_lost,
        upper_half,
        percent,
        lambda p, label, bins: 0.1,
        lambda p, label, bins: p,
    ],
    "5.6": [
        {**_DAY, "encoder_s": 32},  # one operation a parameter
        {**_DAY, "encoder_s": 100},  # with the instruction
        {**_DAY, "decoder_s": 5120},  # without it
        {**_DAY, "decoder_s": 80},  # the answer alone
        {**_DAY, "prefix_saves": 0.5625},
        {**_DAY, "prefix_saves": 36},
        {**_DAY, "bound": "memory"},
        {**_DAY, "no_labels": "encoder"},
        {**_DAY, "no_labels": "neither"},
        {"encoder_s": 64},
        "the encoder",
    ],
}
