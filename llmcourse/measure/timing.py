"""Time, told honestly: warmed up, interleaved, with its spread, and with proof of equal work."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

from llmcourse.errors import CourseError
from llmcourse.measure.comparison import Comparison, Ratio
from llmcourse.measure.progress import with_bar
from llmcourse.measure.tables import number_text, seconds_text

Clock = Callable[[], float]
Token = TypeVar("Token")
__all__ = ["Comparison", "Ratio", "TokenTimer", "TokenTimes", "compare"]


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """When each token of one answer came. Seconds; `step_s` leaves out the first token.

    The first token's time is mostly the reading of the prompt; averaging it in would mix two
    different machines. So `ttft_s` (time to first token) stands alone, and both rates are decode
    rates: tokens after the first, over the time after the first.
    """

    tokens: list[Any]
    ttft_s: float
    step_s: list[float]

    @classmethod
    def from_stream(cls, stream: Iterable[Any], clock: Clock = time.perf_counter) -> TokenTimes:
        """Run a stream of tokens to its end and time every token.

        The clock starts before the stream does, so a generator's prefill is in `ttft_s`.
        Raises CourseError if the stream gives no token at all.
        """
        timer = TokenTimer(stream, clock)
        for _ in timer:
            pass
        return timer.times

    @property
    def tokens_per_s(self) -> float:
        """Decode rate by total: (n - 1) tokens over all time after the first. nan for one token.

        This is the one to quote: it holds pauses, and steps that grow (no cache) count in full.
        """
        return len(self.step_s) / sum(self.step_s) if sum(self.step_s) > 0 else math.nan

    @property
    def tokens_per_s_median(self) -> float:
        """Decode rate by median: 1 over the median step. The typical step; deaf to rare pauses."""
        return 1 / median(self.step_s) if self.step_s and median(self.step_s) > 0 else math.nan

    @property
    def total_s(self) -> float:
        """First token and all after it."""
        return self.ttft_s + sum(self.step_s)

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": len(self.tokens),
            "ttft_s": self.ttft_s,
            "tokens_per_s": _known(self.tokens_per_s),
            "tokens_per_s_median": _known(self.tokens_per_s_median),
        }

    def __repr__(self) -> str:
        return (
            f"{len(self.tokens)} tokens: first after {seconds_text(self.ttft_s)}, then "
            f"{number_text(self.tokens_per_s)} tokens/s (by total; "
            f"{number_text(self.tokens_per_s_median)} by median step)"
        )


class TokenTimer(Generic[Token]):
    """Pass a stream through and time it: `for token in (timer := TokenTimer(stream)): …`.

    Only the time inside the stream counts; what the loop's body does (printing) does not.
    """

    def __init__(self, stream: Iterable[Token], clock: Clock = time.perf_counter) -> None:
        self._stream, self._clock = stream, clock
        self._tokens: list[Token] = []
        self._seconds: list[float] = []

    def __iter__(self) -> Iterator[Token]:
        start = self._clock()
        for token in self._stream:
            self._seconds.append(self._clock() - start)
            self._tokens.append(token)
            yield token
            start = self._clock()

    @property
    def times(self) -> TokenTimes:
        """What was measured so far. Raises CourseError before the first token."""
        if not self._tokens:
            raise CourseError("No token came, so there is nothing to time: ask for at least one.")
        return TokenTimes(list(self._tokens), self._seconds[0], self._seconds[1:])


def compare(
    runs: Mapping[str, Callable[[], Any]],
    *,
    repeat: int = 5,
    warmup: int = 1,
    unit: str | None = None,
    clock: Clock = time.perf_counter,
    progress: bool = True,
) -> Comparison:
    """Time several functions in turn, A B A B, so that a busy minute hits all of them alike.

    Each run may return what it made: a number, a list, a tensor, a TokenTimes, or an iterator,
    which is drained inside the timed part (*subtle*: a generator that nobody drains takes no time
    at all, and looks wonderful). The counts stand beside the times; unequal ones are flagged, and
    lists of tokens that differ are too. `unit` names what is counted: "values" for tensors, else
    "tokens", unless given.

    Raises CourseError if there is nothing to run or to repeat.
    """
    if not runs or repeat < 1:
        raise CourseError("compare needs at least one function and repeat=1 or more.")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    counts: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, list[Any]] = {}
    made: Any = None
    rounds = [(i, name) for i in range(-warmup, repeat) for name in runs]
    for i, name in with_bar(rounds, "timing", progress):
        _finish_device_work()
        start = clock()
        made = drain(runs[name]())
        _finish_device_work()
        elapsed = clock() - start
        if i < 0:
            continue
        seconds[name].append(elapsed)
        if (done := count_of(made)) is not None:
            counts[name].append(done)
        if (items := _items_of(made)) is not None:
            outputs[name] = items
    unit = unit or ("values" if hasattr(made, "numel") else "tokens")
    # A count that came only now and then proves nothing.
    counts = {name: found if len(found) == repeat else [] for name, found in counts.items()}
    return Comparison(seconds, counts, unit, _torch_threads(), outputs)


def drain(made: Any) -> Any:
    """An iterator as the list of what it gives; anything else as it is."""
    return list(made) if isinstance(made, Iterator) else made


def count_of(made: Any) -> float | None:
    """How much a run says it made: a number is itself, a list its length, a tensor its values."""
    match made:
        case TokenTimes():
            return float(len(made.tokens))
        case bool():
            return None
        case int() | float():
            return float(made)
        case list() | tuple():
            return float(len(made))
    return float(made.numel()) if hasattr(made, "numel") else None


def _items_of(made: Any) -> list[Any] | None:
    """The tokens a run gave, where it gave tokens (whole numbers) and not only a count."""
    items = made.tokens if isinstance(made, TokenTimes) else made
    if isinstance(items, (list, tuple)) and all(isinstance(item, int) for item in items):
        return list(items)
    return None


def _known(rate: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(rate) else rate


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


def _finish_device_work() -> None:
    """Wait for the GPU, where one is in use: it works on after the call has returned."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
