"""Checks of chapter 05: each knows the typical mistakes by computing what they would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmcourse.jupyter.exercises.answers import field, number_field, parts, tensor
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.watch import not_calling

_ITSELF = "`{name}` is the answer itself. Build it from sums, products and roots."


# 5.1 Which split is honest? ----------------------------------------------------------------------

_SPLITS = {"A": "much", "B": "much", "C": "a little", "D": "none"}
_WHY_SPLIT = {
    "A": "Half of the lines have a copy. With 90 % of all lines for training, where is the copy "
    "of a test line most of the time?",
    "B": "The test part now holds each text once. But its copies: where are they still?",
    "C": "No text stands on both sides any more. But the same letter of thanks with another date "
    "is not the same text.",
    "D": "Neither copies nor near-copies can cross here. What would a model have to remember?",
}


def check_split(answer: Any) -> None:
    for name, right in _SPLITS.items():
        said = field(answer, name, list(_SPLITS))
        value = str(said).strip().lower().removeprefix("leaks ")
        value = {"little": "a little", "nothing": "none"}.get(value, value)
        if value not in ("much", "a little", "none"):
            why = f'For {name} choose "much", "a little" or "none".'
            raise Wrong(why, got=said)
        if value != right:
            raise Wrong(f"{name} is not right yet. {_WHY_SPLIT[name]}", got=said)


# 5.2 The interval of an accuracy -----------------------------------------------------------------

_Z = 1.959964


def _wilson(hits: int, n: int, z: float = _Z) -> tuple[float, float]:
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def check_interval(interval: Callable[[int, int], Any]) -> None:
    for hits, n in [(9, 10), (860, 1000), (10, 10), (1, 40)]:
        given = f"{hits} right of {n}"
        library = ("wilson", "BinomTestResult.proportion_ci", "proportion_confint")
        with not_calling(*library, say=_ITSELF):
            got = call(interval, hits, n)
        if isinstance(got, (Tensor, np.ndarray)):
            got = got.tolist()
        got = parts(got, ("the low end", "the high end"), given, "numbers")
        p, right = hits / n, _wilson(hits, n)
        plain = math.sqrt(p * (1 - p) / n)
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        wide = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n)) / (1 + _Z**2 / n)
        slips: list[tuple[Any, str]] = [
            ((p - _Z * plain, p + _Z * plain),
             "That is p ± z·√(p(1−p)/n). It says that 10 right of 10 leave no doubt at all, and for "
             "few items it leaves the range from 0 to 1. Wilson's has z² terms."),
            ((p - plain, p + plain),
             "One standard error covers two thirds. 95 % need z = 1.96, and Wilson's z² terms."),
            (_wilson(hits, n, 1.644854), "z = 1.64 leaves 5 % on each side; 95 % in all need 1.96."),
            (_wilson(hits, n, 1.0), "The factor z = 1.96 is missing somewhere."),
            ((right[1], right[0]), "The two ends are exchanged: low first."),
            ((100 * right[0], 100 * right[1]), "Right, but in percent; give shares from 0 to 1."),
            (tuple(x * (1 + _Z**2 / n) for x in right),
             "The division by 1 + z²/n is missing: with few items it pulls the interval inwards."),
            ((p - (right[1] - right[0]) / 2, p + (right[1] - right[0]) / 2),
             "The width is right. The middle is not p: it is pulled towards one half."),
            ((middle - _Z * plain, middle + _Z * plain),
             "The middle is right. The root lacks its second term, z²/(4n²)."),
            ((middle - wide, middle + wide),
             "The middle is right. In the root z² is divided by 4n², not by 4n."),
            ((right[0] * (1 + _Z**2 / n), right[1]), "The low end is not divided by 1 + z²/n."),
            ((right[0], right[1] * (1 + _Z**2 / n)), "The high end is not divided by 1 + z²/n."),
        ]  # fmt: skip
        expect_close(got, list(right), given=given, tol=6e-4, slips=slips)


# 5.3 The mean of the real tokens -----------------------------------------------------------------


def check_pooling(mean_of_real: Callable[[Tensor, Tensor], Any]) -> None:
    rng = torch.Generator().manual_seed(53)
    for lengths, side in [((2, 5), "right"), ((4,), "right"), ((3, 1, 4), "left")]:
        B, T, C = len(lengths), 5, 3
        x = torch.randn(B, T, C, generator=rng) + 1
        padding = torch.arange(T) >= torch.tensor(lengths)[:, None]
        if side == "left":
            padding = padding.flip(1)
        given = f"x of shape {(B, T, C)}, real tokens {list(lengths)}, filling on the {side}"
        with not_calling("masked_mean", say=_ITSELF):
            got = call(mean_of_real, x, padding)
        real = (~padding)[..., None].float()
        n = real.sum(1)
        filling = (x * (1 - real)).sum(1) / (T - n)  # NaN where a text has none
        slips: list[tuple[Any, str]] = [
            (x.mean(1), "The filling is counted in. Its vectors mean nothing, yet they are not 0."),
            ((x * real).mean(1),
             "The filling is out of the sum but still in the count: you divided by T."),
            ((x * real).sum(1), "That is the sum; divide it by the number of real tokens."),
            (filling, "That is the mean of the filling: `padding` is True where a token is not real."),
            ((x * (1 - real)).sum(1) / (T - n).clamp(min=1),
             "That is the mean of the filling: `padding` is True where a token is not real."),
            ((x * (1 - real)).mean(1),
             "That is the filling: `padding` is True where a token is not real."),
            (x[:, 0], "That is the first token alone. All real tokens count alike."),
            ((x * real).sum(1) / n.sum(),
             "You divided by the real tokens of the whole batch; each text has its own number."),
            ((x * real).amax(1), "That is the largest value, not the mean."),
        ]  # fmt: skip
        expect_close(got, (x * real).sum(1) / n, given=given, tol=1e-4, slips=slips)


# 5.4 Masked tokens and their targets -------------------------------------------------------------

_MASK, _NO_LOSS = 4, -100


def check_targets(hide: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> None:
    rng = torch.Generator().manual_seed(54)
    for B, T in [(1, 12), (3, 40)]:
        ids = torch.randint(5, 50, (B, T), generator=rng)
        ids[:, 0], ids[:, -1] = 2, 3
        chosen = torch.rand(B, T, generator=rng) < 0.5
        chosen[:, 0] = chosen[:, -1] = False
        dice = torch.rand(B, T, generator=rng)
        dice[0, 1:4], chosen[0, 1:4] = torch.tensor([0.1, 0.85, 0.95]), True
        other = torch.randint(50, 90, (B, T), generator=rng)
        given = f"ids of shape {(B, T)}, {int(chosen.sum())} of them chosen"
        got = call(hide, ids, chosen, dice, other)
        names = ("what is shown", "the targets")
        shown, target = (
            tensor(one, (B, T), given, name.capitalize())
            for one, name in zip(parts(got, names, given, "tensors"), names, strict=True)
        )
        ids, other = ids.double(), other.double()
        masked, swapped = chosen & (dice < 0.8), chosen & (dice >= 0.8) & (dice < 0.9)
        right = ids.masked_fill(masked, _MASK).where(~swapped, other)
        wanted = ids.masked_fill(~chosen, _NO_LOSS)
        if torch.equal(shown, wanted) and torch.equal(target, right):
            raise Wrong(
                "The two are exchanged: first what is shown, then the targets.", given=given
            )
        _shown_as(shown, right, ids, chosen, dice, other, given)
        for wrong, why in [
            (ids, "The loss would count every token, and copying what is shown is easy: the targets "
             "are −100 where a token was not chosen."),
            (ids.masked_fill(~masked, _NO_LOSS), "A target stands only where [MASK] is shown. The "
             "swapped and the kept tenth are to be guessed too: that is what they are for."),
            (ids.masked_fill(~(masked | swapped), _NO_LOSS), "The kept tenth has no target. If it "
             "had none, the model could take every visible token on trust."),
            (right.masked_fill(~chosen, _NO_LOSS), "The target is what stood there before, not what "
             "is shown now."),
            (ids.masked_fill(~chosen, 0), "0 is a token, [PAD], and would be learnt. −100 is what "
             "cross_entropy leaves out."),
            (ids.masked_fill(chosen, _NO_LOSS), "It is the wrong way round: −100 belongs where "
             "nothing was chosen."),
        ]:  # fmt: skip
            if torch.equal(target, wrong) and not torch.equal(wrong, wanted):
                raise Wrong(why, given=given)
        expect_close(target, wanted, given=given)


def _shown_as(
    shown: Tensor,
    right: Tensor,
    ids: Tensor,
    chosen: Tensor,
    dice: Tensor,
    other: Tensor,
    given: str,
) -> None:
    for wrong, why in [
        (ids, "Nothing is hidden yet."),
        (ids.masked_fill(chosen, _MASK),
         "All chosen tokens became [MASK]. No text will ever show [MASK] later, so a tenth is "
         "swapped for `other` and a tenth stays."),
        (ids.masked_fill(dice < 0.8, _MASK).where(~((dice >= 0.8) & (dice < 0.9)), other),
         "Tokens that were not chosen changed too: every change needs `chosen`."),
        (ids.masked_fill(chosen & (dice < 0.8), _MASK).where(~(chosen & (dice >= 0.8)), other),
         "A fifth is swapped. From 0.9 on a chosen token stays as it is."),
        (ids.masked_fill(chosen & (dice < 0.8), _MASK).where(~(chosen & (dice >= 0.9)), other),
         "The two tenths are exchanged: swap from 0.8 to 0.9, keep from 0.9 on."),
        (ids.masked_fill(chosen & (dice < 0.8), _MASK), "The swapped tenth is missing."),
        (ids.masked_fill(chosen & (dice < 0.8), 0).where(~(chosen & (dice >= 0.8) & (dice < 0.9)), other),
         "[MASK] is id 4; 0 is [PAD], which no token may look at."),
    ]:  # fmt: skip
        if torch.equal(shown, wrong) and not torch.equal(wrong, right):
            raise Wrong(why, given=given)
    if (shown != ids)[~chosen].any():
        raise Wrong(
            "A token that was not chosen is shown as it is. Some of yours changed.", given=given
        )
    expect_close(shown, right, given=given)


# 5.5 Calibration ---------------------------------------------------------------------------------


def _bins_of(confidence: Tensor, right: Tensor, bins: int) -> list[tuple[float, float, float]]:
    """Of each bin that holds something: its share, its accuracy, its mean confidence."""
    return _rows((confidence * bins).long().clamp(max=bins - 1), confidence, right)


def _rows(place: Tensor, confidence: Tensor, right: Tensor) -> list[tuple[float, float, float]]:
    found = []
    for b in place.unique():
        inside = place == b
        rows = (inside.double().mean(), right[inside].double().mean(), confidence[inside].mean())
        found.append((rows[0].item(), rows[1].item(), rows[2].item()))
    return found


def check_calibration(calibration_error: Callable[..., Any]) -> None:
    rng = torch.Generator().manual_seed(55)
    for N, bins, certain in [(400, 10, 0), (60, 10, 0), (300, 5, 0), (200, 10, 30)]:
        # Away from the edges of the bins, so that it does not matter to which side an edge belongs.
        half = torch.randint(0, 50, (N,), generator=rng).double() / 100 + 0.5025
        p = torch.where(torch.rand(N, generator=rng) < 0.5, half, 1 - half)
        p = torch.where((p * 10 % 1).sub(0.5).abs() > 0.49, p + 0.013, p).clamp(0.003, 0.997)
        label = (torch.rand(N, generator=rng) < (0.5 + 0.6 * (p - 0.5))).long()
        if bins == 5:  # halves of a bin with gaps that cancel, so that ten bins are not as good
            sure, named = torch.maximum(p, 1 - p), (p > 0.5).long()
            label = torch.where((sure * 10).long() % 2 == 0, named, 1 - named)
        p[:certain], label[: certain // 2] = 1.0, 0
        given = f"{N} probabilities and labels, {bins} bins"
        got = call(calibration_error, p, label, bins)
        confidence, right = torch.maximum(p, 1 - p), (p > 0.5).long() == label
        found = _bins_of(confidence, right, bins)
        by_class = _bins_of(p, label == 1, bins)
        upper = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
        kept = confidence < 1
        lost = _bins_of(confidence[kept], right[kept], bins)
        expected = sum(share * abs(acc - conf) for share, acc, conf in found)
        slips: list[tuple[Any, str]] = [
            (sum(abs(acc - conf) for _, acc, conf in found) / len(found),
             "Every bin counts alike in yours. A bin counts by its share of all items."),
            (sum(abs(acc - conf) for _, acc, conf in found), "The bins are not weighted at all."),
            (sum(abs(acc - conf) for _, acc, conf in found) / bins,
             "You divided by the number of bins. Weigh each by its share of all items."),
            (sum(share * (acc - conf) for share, acc, conf in found),
             "Without the absolute value in each bin, too bold here and too timid there cancel."),
            (sum(share * (conf - acc) for share, acc, conf in found),
             "Without the absolute value in each bin, too bold here and too timid there cancel."),
            (abs(sum(share * (acc - conf) for share, acc, conf in found)),
             "The absolute value belongs inside the sum, bin by bin."),
            (sum(share * abs(acc - conf) for share, acc, conf in by_class),
             "You binned the probability of class 1. The confidence is that of the class which was "
             "named: max(p, 1 − p), and right means that this class was the label."),
            (sum(share * abs(r - c) for share, r, c in _bins_of(p, right, bins)),
             "The accuracy is right, but beside it stands p, the probability of class 1; for those "
             "called 0 the confidence is 1 − p."),
            (sum(share * abs(a - c) for share, a, c in _bins_of(confidence, label == 1, bins)),
             "You compared with the share of label 1. Compare with the share that was right."),
            (100 * expected, "Right, but in percent; give a share from 0 to 1."),
            (max(abs(acc - conf) for _, acc, conf in found),
             "That is the worst bin. Asked for is the mean, weighted by how full a bin is."),
            (sum(share * abs(acc - conf) for share, acc, conf in _bins_of(confidence, right, 10)),
             "You made ten bins. Their number is an argument, and here it is another."),
            (sum(share * abs(acc - conf) for share, acc, conf in _rows(upper, confidence, right)),
             "Your bins share out ½ to 1. Asked for are bins from 0 to 1; those below ½ stay empty."),
            (kept.double().mean().item() * sum(share * abs(acc - conf) for share, acc, conf in lost),
             "A confidence of 1 fell out: it belongs to the last bin."),
        ]  # fmt: skip
        if (isinstance(got, float) and math.isnan(got)) or (
            isinstance(got, Tensor) and got.isnan().any()
        ):
            raise Wrong("It is nan: an empty bin has no mean, so leave it out.", given=given)
        expect_close(got, expected, given=given, tol=1e-3, slips=slips)


# 5.6 Interview -----------------------------------------------------------------------------------

_INTERVIEW = ("encoder_s", "decoder_s", "prefix_saves", "bound", "no_labels")


def check_interview(answer: Any) -> None:
    def near(name: str, right: float, slips: Mapping[float, str]) -> None:
        value = number_field(answer, name, _INTERVIEW)
        if math.isclose(value, right, rel_tol=0.03):
            return
        for wrong, why in slips.items():
            if math.isclose(value, wrong, rel_tol=0.03):
                raise Wrong(why, got=value)
        raise Wrong(f"{name!r} is not right yet.", got=value)

    near("encoder_s", 64, {
        32: "A multiplication and an addition for each parameter and token: two operations.",
        100: "The encoder reads the review alone, 64 tokens: its instruction is in its weights.",
        1: "That is one token of each review.",
        64e-6: "That is one review; asked for is the day.",
        5120: "That is the decoder's size with the encoder's tokens.",
    })  # fmt: skip
    near("decoder_s", 8000, {
        4000: "A multiplication and an addition for each parameter and token: two operations.",
        5120: "The decoder reads the instruction as well, every time.",
        2880: "That is the instruction alone; the review comes too.",
        8000e-6: "That is one review; asked for is the day.",
        80: "That is the answer's token alone. The prompt is read first, and costs as much a token.",
    })  # fmt: skip
    near("prefix_saves", 0.36, {
        0.64: "That is what is left to do. What is the same in every request?",
        0.5625: "Instruction over review. Take it over the whole prompt.",
        36: "A share from 0 to 1 is asked for, not percent or tokens.",
    })  # fmt: skip
    said = field(answer, "bound", _INTERVIEW)
    bound = str(said).strip().lower()
    if bound.startswith("memory"):
        why = (
            "Memory-bound is a step with one token a sequence. How many tokens does this work read "
        )
        raise Wrong(why + "at once, and how many steps follow it?", got=said)
    if not bound.startswith("comput"):
        raise Wrong('"bound" is "compute" or "memory".', got=said)
    said = field(answer, "no_labels", _INTERVIEW)
    choice = str(said).strip().lower()
    if choice == "encoder":
        why = "Fine-tuning needs labels, and there are none yet. Which model can be told in words?"
        raise Wrong(why, got=said)
    if choice != "decoder":
        raise Wrong('"no_labels" is "encoder" or "decoder".', got=said)


EXERCISES = (
    Exercise(
        "5.1",
        "Which split is honest?",
        1,
        check_split,
        (
            "Follow one text that stands twice. Where can its two copies end up?",
            "A and B differ only in what is done to the test part; the training part is the same.",
            "C removes what is equal, D also what is nearly equal. Nothing is left to leak in one.",
        ),
        "De-duplicate before splitting, and near-duplicates too: afterwards no step can repair it.",
    ),
    Exercise(
        "5.2",
        "The interval of an accuracy",
        2,
        check_interval,
        (
            "Write p = hits / n and z = 1.96 first; the formula above has three places for z².",
            "The middle is (p + z²/2n) / (1 + z²/n): not p, but pulled towards one half.",
            "The half width is z·√(p(1−p)/n + z²/4n²) / (1 + z²/n).",
        ),
        "A perfect score on ten reviews proves little more than that you are better than a coin.",
    ),
    Exercise(
        "5.3",
        "The mean of the real tokens",
        1,
        check_pooling,
        (
            "Two things must leave the filling out: the sum and the count.",
            "~padding is True at real tokens; it needs a last axis to meet (B, T, C).",
            "real = (~padding)[..., None]; then (x * real).sum(1) over real.sum(1).",
        ),
        "A text's vector must not depend on the longest text that happened to share its batch.",
    ),
    Exercise(
        "5.4",
        "Masked tokens and their targets",
        2,
        check_targets,
        (
            "Make two masks first: chosen and dice < 0.8; chosen and 0.8 ≤ dice < 0.9.",
            "torch.where(mask, a, b) takes a where the mask is True. The kept tenth needs no line.",
            "The targets look at `chosen` alone: torch.where(chosen, ids, -100).",
        ),
        "The loss looks only where something was chosen; whether it looks hidden must not matter.",
    ),
    Exercise(
        "5.5",
        "How honest is the confidence?",
        2,
        check_calibration,
        (
            "For each item: the class that was named, its probability, and whether it was right.",
            "(confidence * bins).long() is the bin; a bin without items is left out.",
            "Add up share of the items × |share that was right − mean confidence|, bin by bin.",
        ),
        "How often it is right and how well it knows that are two things: measure both.",
    ),
    Exercise(
        "5.6",
        "Interview: encoder or decoder?",
        3,
        check_interview,
        (
            "Operations = 2 · parameters · tokens. A day has a million reviews; divide by the rate.",
            "The decoder reads 36 + 64 tokens. Its answer of one token falls out of reading the last.",
            "Reading many tokens at once is a matrix product with every weight used many times.",
        ),
        "Two models, two jobs: one is told in words what to do, the other does it a million times.",
    ),
)  # fmt: skip
