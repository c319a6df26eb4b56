"""Is the answer still as good? Perplexity and a small task, each with a confidence interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from llmcourse.errors import CourseError
from llmcourse.measure.progress import with_bar

if TYPE_CHECKING:
    import torch

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom; below, an expansion.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A figure from a sample: what came, and the 95 % interval of what it stands for.

    `n` counts what was scored, in `unit`. `samples` are the parts the interval was made from
    (log-loss of each window; 0 or 1 for each pair), kept so that two estimates on the same items
    can be compared item by item. nan bounds mean that one part allows no interval.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""
    unit: str = ""
    samples: tuple[float, ...] = field(default=(), repr=False)
    log: bool = field(default=False, repr=False)  # value = exp(mean of samples)

    def to_dict(self) -> dict[str, Any]:
        """The figure without its samples, for a notebook's results and the scoreboard."""
        names = ("value", "low", "high", "n", "method", "unit")
        return {name: getattr(self, name) for name in names if getattr(self, name) != ""}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Estimate:
        """The figure as `to_dict` wrote it; a bound that was nan comes back from null."""
        nan = {name: math.nan for name in ("low", "high") if found.get(name) is None}
        return cls(**{k: v for k, v in found.items() if k in cls.__dataclass_fields__} | nan)

    def __float__(self) -> float:
        return float(self.value)

    def short(self) -> str:
        """Value and interval, as many digits as mean something: 27.0 (25.9 to 28.2)."""
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{self.value:.4g}"
        digits = _decimals((self.high - self.low) / 2, self.value)
        value, low, high = (f"{x:,.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"

    def __repr__(self) -> str:
        sure = "no interval" if math.isnan(self.low) or math.isnan(self.high) else "95 %"
        figure = self.short().removesuffix(")")
        count = f"n = {self.n:,}{' ' + self.unit if self.unit else ''}"
        return f"{figure}{', ' if '(' in figure else ' ('}{sure}, {count})"


@dataclass(frozen=True)
class Accuracy(Estimate):
    """A share of right answers, and by how much the right one won.

    `margin` is the mean of log P(right) - log P(wrong), in nats: it moves before the accuracy
    does. `by_group` is the accuracy of each grammatical number: a leaning to one verb form shows.
    """

    margin: Estimate | None = None
    by_group: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        margin = self.margin.to_dict() if self.margin else None
        return {**super().to_dict(), "margin": margin, "by_group": dict(self.by_group)}

    __repr__ = Estimate.__repr__


def perplexity(
    model: Callable[[torch.Tensor], Any],
    ids: Sequence[int] | torch.Tensor,
    *,
    window: int = 512,
    progress: bool = True,
) -> Estimate:
    """exp of the mean loss a token, on a text cut into windows that do not overlap.

    `model` takes ids (1, T) and gives logits (1, T, V). Each window starts from nothing and its
    first token is not scored, so window - 1 tokens are; a rest shorter than a window is left out,
    unless the text has no full window. Shorter windows give higher perplexity: compare only
    figures with the same `window`.

    The interval: losses of neighbouring tokens hang together, so a window, not a token, is the
    unit that is drawn at random. Equal windows make the log perplexity the plain mean of their
    losses; its standard error with Student's t for n - 1 windows, exponentiated, is the interval.
    (A bootstrap over 8 blocks would come out too narrow, and needs a seed.) It says how far
    another text of the kind could be off, not how well two models differ on this one: see
    `paired_difference`. Source for windows: Jelinek et al. 1977 for perplexity itself.

    Raises CourseError for fewer than two tokens or a window below 2.
    """
    import torch
    import torch.nn.functional as F

    text = torch.as_tensor(ids, dtype=torch.long).flatten()
    if window < 2 or len(text) < 2:
        raise CourseError("Perplexity needs two tokens or more: the first is not scored.")
    window = min(window, len(text))
    windows = text[: len(text) // window * window].view(-1, window)  # (windows, T)
    losses, where = [], _device_of(model)
    with torch.inference_mode():
        for row in with_bar(windows, "perplexity", progress):
            row = row[None].to(where)
            logits = _logits(model(row))[0, :-1].float()  # (T - 1, V)
            losses.append(F.cross_entropy(logits, row[0, 1:]).item())
    value, low, high = _mean_interval(losses)
    return Estimate(
        math.exp(value),
        math.exp(low),
        math.exp(high),
        len(losses) * (window - 1),
        f"t interval over {len(losses)} windows of {window}",
        "tokens",
        tuple(losses),
        log=True,
    )


def agreement_accuracy(
    model: Callable[[torch.Tensor], Any],
    tokenizer: Any,
    pairs: Iterable[Any],
    *,
    batch: int = 32,
    progress: bool = True,
) -> Accuracy:
    """How often the model finds the right verb likelier than the wrong one. Chance is 0.5.

    A pair has `prefix`, `right`, `wrong` (and `number`, for the break-down). Log-probabilities of
    the word's tokens after the prefix are summed; a tie counts as wrong. Prefixes of equal length
    go through the model together, so nothing is padded. Interval: Wilson.

    Raises CourseError without pairs, or where a word changes how its prefix is cut into tokens.
    """
    pairs = list(pairs)
    if not pairs:
        raise CourseError("Agreement accuracy needs at least one pair.")
    choices = [[_choice(tokenizer, p.prefix, word) for word in (p.right, p.wrong)] for p in pairs]
    scores = _log_probs(model, [c for both in choices for c in both], batch, progress)
    margins = [right - wrong for right, wrong in zip(scores[::2], scores[1::2], strict=True)]
    hits = [float(margin > 0) for margin in margins]
    by_group = defaultdict(list)
    for pair, hit in zip(pairs, hits, strict=True):
        by_group[getattr(pair, "number", "all")].append(hit)
    mean, low, high = _mean_interval(margins)
    bounds = wilson(int(sum(hits)), len(hits))
    return Accuracy(
        fmean(hits),
        bounds[0],
        bounds[1],
        len(hits),
        "Wilson interval",
        "pairs",
        tuple(hits),
        margin=Estimate(mean, low, high, len(margins), "t interval", "pairs", tuple(margins)),
        by_group={name: fmean(found) for name, found in sorted(by_group.items())},
    )


def paired_difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, judged item by item on the same items: much tighter than two separate intervals.

    What makes an item hard is hard for both and cancels. Losses of windows are compared in logs:
    the ratio of perplexities has an interval of its own, and is scaled by b's perplexity.
    An interval that holds 0 is no proof of a difference.
    Raises CourseError if the two were not measured on the same number of items of one kind.
    """
    mean, low, high = _paired(a, b)
    if a.log:
        mean, low, high = (b.value * math.expm1(x) for x in (mean, low, high))
    return Estimate(mean, low, high, a.n, f"paired over {len(a.samples)}", a.unit)


def paired_ratio(a: Estimate, b: Estimate) -> Estimate:
    """a / b for two perplexities of the same windows: 1.055 is 5.5 % more. Raises likewise."""
    if not a.log:
        raise CourseError("A paired ratio is for perplexities; take paired_difference.")
    mean, low, high = (math.exp(x) for x in _paired(a, b))
    return Estimate(mean, low, high, a.n, f"paired over {len(a.samples)}", a.unit)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share: never outside 0 to 1, sound near its ends.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). Source: Wilson 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise CourseError(f"{successes} of {n} is no share.")
    p, z2 = successes / n, _Z95**2
    middle, half = p + z2 / (2 * n), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the formula is exact and only rounding leaves the range.
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t. Source beyond 30: Abramowitz and Stegun 26.7.5."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z, v = _Z95, freedom
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def _mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % t interval; nan bounds for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _paired(a: Estimate, b: Estimate) -> tuple[float, float, float]:
    if not a.samples or len(a.samples) != len(b.samples) or (a.log, a.n) != (b.log, b.n):
        raise CourseError("Both estimates must come from the same items: measure both again alike.")
    return _mean_interval([x - y for x, y in zip(a.samples, b.samples, strict=True)])


def _choice(tokenizer: Any, prefix: str, word: str) -> tuple[tuple[int, ...], int]:
    """Ids of prefix and word, and how many of them are the prefix."""
    prefix, word = prefix.rstrip(), word.strip()
    start, whole = list(tokenizer.encode(prefix)), list(tokenizer.encode(f"{prefix} {word}"))
    if not start or whole[: len(start)] != start or len(whole) == len(start):
        raise CourseError(f"The tokenizer joins {word!r} to {prefix!r}: use another word.")
    return tuple(whole), len(start)


def _log_probs(
    model: Callable[[torch.Tensor], Any],
    choices: list[tuple[tuple[int, ...], int]],
    batch: int,
    progress: bool,
) -> list[float]:
    """log P of the ids after the prefix, for each choice.

    Right and wrong verb mostly share everything the model must read, so each input is read once.
    """
    import torch

    by_length = defaultdict(list)
    for ids in dict.fromkeys(whole[:-1] for whole, _ in choices):
        by_length[len(ids)].append(ids)
    batches = [
        same[i : i + batch] for same in by_length.values() for i in range(0, len(same), batch)
    ]
    endings = defaultdict(list)
    for whole, start in set(choices):
        endings[whole[:-1]].append((whole, start))
    scores: dict[tuple[tuple[int, ...], int], float] = {}
    where = _device_of(model)
    with torch.inference_mode():
        for rows in with_bar(batches, "agreement", progress):
            logits = _logits(model(torch.tensor(rows, device=where)))  # (B, T, V)
            for ids, row in zip(rows, logits, strict=True):
                for whole, start in endings[ids]:
                    picked = torch.tensor(whole[start:], device=row.device)
                    log_p = row[start - 1 :].float().log_softmax(-1)  # (word's tokens, V)
                    scores[whole, start] = log_p.gather(1, picked[:, None]).double().sum().item()
    return [scores[choice] for choice in choices]


def _logits(output: Any) -> torch.Tensor:
    """Our models give logits; those of transformers give an object that holds them."""
    return getattr(output, "logits", output)


def _device_of(model: Any) -> Any:
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return first.device if first is not None else "cpu"


def _decimals(half_width: float, value: float) -> int:
    """Decimals that show two figures of the interval's half-width: more would be noise."""
    scale = half_width if half_width > 0 else abs(value) / 100
    return max(0, 1 - math.floor(math.log10(scale))) if scale > 0 else 0
