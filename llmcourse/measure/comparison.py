"""What came of timing several functions: medians, spread, paired ratios, the noise in words."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from llmcourse.errors import CourseError
from llmcourse.measure.tables import Table, number_text, seconds_text

_TICK = 1e-9  # no clock sees less than a nanosecond; a time of 0 would make ratios infinite
_ENOUGH = 0.9  # confidence below which a difference is not called one: fewer than five rounds


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of one run over time of another, in pairs of the same round: 2.0 is twice as long.

    `low` and `high` bound the median ratio with probability `confidence`; `verdict` says in words
    what follows, "within the noise" where that is all one may say.
    """

    value: float
    low: float
    high: float
    verdict: str
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("value", "low", "high", "confidence")}

    def __repr__(self) -> str:
        if not self.confidence:
            return f"{self.value:.2f}× ({self.verdict})"
        return (
            f"{self.value:.2f}× ({self.low:.2f} to {self.high:.2f}, "
            f"{self.confidence:.0%}; {self.verdict})"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of every run in every round, and how much work each said it had done.

    `counts[name]` holds one number a round, or nothing where the run returned nothing countable.
    `outputs[name]` is the last list of tokens a run gave, if it gave one.
    """

    seconds: dict[str, list[float]]
    counts: dict[str, list[float]]
    unit: str = "tokens"
    threads: int | None = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def median_s(self, name: str) -> float:
        """Median seconds of one run."""
        return median(self.seconds[self._known(name)])

    def spread_s(self, name: str) -> tuple[float, float]:
        """Fastest and slowest round of one run, in seconds."""
        return min(self.seconds[self._known(name)]), max(self.seconds[name])

    def per_s(self, name: str) -> float:
        """Units of work a second (tokens/s) at the median round; nan if nothing was counted."""
        counts = self.counts[self._known(name)] or [math.nan] * self._rounds
        rates = [c / s for c, s in zip(counts, self.seconds[name], strict=True) if s > 0]
        return median(rates) if rates else math.nan

    def ratio(self, a: str, b: str) -> Ratio:
        """How many times as long `a` takes as `b`: the median over rounds of a's time / b's time.

        Pairs of one round saw the same busy machine, so their ratio is steadier than a ratio of
        medians. The interval is that of the sign test: order statistics of the paired ratios,
        no distribution assumed, at least 95 % where the number of rounds allows it (from 6 on),
        else smallest to largest with the confidence that this has (5 rounds: 94 %).
        """
        times_a, times_b = self.seconds[self._known(a)], self.seconds[self._known(b)]
        pairs = [max(x, _TICK) / max(y, _TICK) for x, y in zip(times_a, times_b, strict=True)]
        low, high, confidence = _median_interval(pairs)
        verdict = _verdict(a, b, pairs, low, high, confidence)
        return Ratio(median(pairs), low, high, verdict, confidence)

    def speedup(self, fast: str, over: str) -> Ratio:
        """How many times faster `fast` is than `over`: the same as `ratio(over, fast)`."""
        return self.ratio(over, fast)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a careful reader must know before believing the times."""
        return (*self._unequal_work(), *self._warm_up())

    def _unequal_work(self) -> Iterator[str]:
        typical = {name: median(found) for name, found in self.counts.items() if found}
        if len(set(typical.values())) > 1:
            listing = ", ".join(f"{name} {count:,.0f}" for name, count in typical.items())
            yield f"Unequal work: {listing} {self.unit}. Compare {self.unit}/s, not seconds."
        silent = [name for name in self.seconds if not self.counts[name]]
        if typical and silent:
            yield f"No count came from {', '.join(silent)}: nothing proves it did the work."
        for name, found in self.counts.items():
            if len(set(found)) > 1:
                span = f"{min(found):,.0f} to {max(found):,.0f} {self.unit}"
                yield f"{name} did not do the same work each time: {span}."
        first, *others = self.outputs or [""]
        for name in others:
            at = _first_difference(self.outputs[first], self.outputs[name])
            if at is not None:
                yield f"Outputs differ: {name} leaves {first} at item {at}."

    def _warm_up(self) -> Iterator[str]:
        for name, runs in self.seconds.items():
            if len(runs) > 2 and runs[0] > 1.5 * median(runs):
                times = runs[0] / median(runs)
                yield f"{name}: the first run took {times:.1f} times the median; raise warmup."

    def table(self, guess: Any = None) -> Table:
        """The comparison as a table, the first run as the measure of the others.

        `guess` (a number, or what `predict` returned) is what the reader thought the last run's
        speed would be as a multiple of the first's; the notes set it beside what came.
        """
        first = next(iter(self.seconds))
        counted = any(self.counts.values())
        columns = ["run", "median", "fastest to slowest"]
        columns += [self.unit, f"{self.unit}/s"] if counted else []
        rows = [self._cells(name, first, counted) for name in self.seconds]
        return Table(
            f"Time of {self._rounds} interleaved rounds",
            (*columns, f"times as fast as {first}"),
            tuple(rows),
            tuple(self._notes(first, _number(guess))),
        )

    def _cells(self, name: str, first: str, counted: bool) -> tuple[str, ...]:
        low, high = self.spread_s(name)
        spread = f"{seconds_text(low)} to {seconds_text(high)}"
        cells = [name, seconds_text(self.median_s(name)), spread]
        if counted:
            found = self.counts[name]
            cells += [f"{median(found):,.0f}" if found else "–", number_text(self.per_s(name))]
        faster = self.speedup(name, first)
        interval = f" ({faster.low:.2f} to {faster.high:.2f})" if faster.confidence else ""
        return (*cells, "1" if name == first else f"{faster.value:.2f}{interval}")

    def _notes(self, first: str, guess: float | None) -> Iterator[str]:
        last = list(self.seconds)[-1]
        for name in self.seconds:
            if name != first:
                yield _sentence(self.ratio(first, name).verdict)
        if guess is not None and last != first:
            came = self.speedup(last, first).value
            yield f"You said {number_text(guess)} times; {last} came to {came:.2f}."
        yield from self.warnings
        if self.threads is not None:
            yield f"PyTorch used {self.threads} of {os.cpu_count()} processors."

    @property
    def _rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    def _known(self, name: str) -> str:
        if name not in self.seconds:
            raise CourseError(f"No run is called {name!r}; there are {', '.join(self.seconds)}.")
        return name

    def to_dict(self) -> dict[str, Any]:
        return {
            "median_s": {name: self.median_s(name) for name in self.seconds},
            "per_s": {name: self.per_s(name) for name in self.seconds},
            "rounds": self._rounds,
            "threads": self.threads,
        }

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        return str(self.table())


def _first_difference(a: list[Any], b: list[Any]) -> int | None:
    """The index where two lists part; None if one only ends earlier (the counts say that)."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)


def _median_interval(values: list[float]) -> tuple[float, float, float]:
    """Bounds for the median of what the values were drawn from, and their confidence.

    With n independent values, the k-th smallest and k-th largest hold the median between them
    with probability 1 - 2 P(Binomial(n, 1/2) < k). The largest k that keeps 95 % is taken.
    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    n, ordered = len(values), sorted(values)
    coverage = [1 - 2 * sum(math.comb(n, j) for j in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    k = max((i for i, c in enumerate(coverage, 1) if c >= 0.95), default=1)
    return ordered[k - 1], ordered[n - k], coverage[k - 1] if coverage else 0.0


def _verdict(a: str, b: str, pairs: list[float], low: float, high: float, confidence: float) -> str:
    if confidence < _ENOUGH:
        return f"noise unknown: {len(pairs)} round(s) are too few to tell {a} and {b} apart"
    if low <= 1 <= high:
        return f"within the noise: {a} and {b} differ by less than their rounds do"
    value = median(pairs)
    slow, fast, times = (a, b, value) if value > 1 else (b, a, 1 / value)
    return f"beyond the noise: {fast} is {times:.2f} times as fast as {slow}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _number(guess: Any) -> float | None:
    """A guess as a number: itself, or its `.value`; None if nothing was guessed."""
    value = getattr(guess, "value", guess)
    return float(value) if isinstance(value, (int, float)) else None
