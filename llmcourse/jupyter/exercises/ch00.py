"""Checks of chapter 00, Meet the model: each knows the typical mistakes by what they would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import combinations
from statistics import fmean, harmonic_mean, median
from typing import Any

from llmcourse.jupyter.exercises.answers import number
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close

# --- 0.1 ------------------------------------------------------------------------------------------


def _llama(
    vocab_size: int,
    width: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    tied: bool,
    head_dim: int = 0,
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or width // heads,
        "tie_word_embeddings": tied,
    }


# With their published parameter counts: an independent witness for the formula below.
_MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "SmolLM2-135M": (_llama(49152, 576, 1536, 30, 9, 3, True), 134_515_008),
    "TinyLlama-1.1B": (_llama(32000, 2048, 5632, 22, 32, 4, False), 1_100_048_384),
    "Llama-2-7B": (_llama(32000, 4096, 11008, 32, 32, 32, False), 6_738_415_616),
    # Its heads together (32 × 128) are narrower than its width, 5,120.
    "Mistral-Nemo-12B": (_llama(131072, 5120, 14336, 40, 32, 8, False, 128), 12_247_782_400),
}


def parameters(
    sizes: Mapping[str, Any],
    *,
    wide_kv: bool = False,
    head: str = "",
    norms: bool = True,
    gate: bool = True,
    biases: bool = False,
    square: bool = False,
) -> int:
    """Parameters of a Llama of these sizes; each option is a mistake one can make."""
    C, F, L = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    head_dim = C // sizes["num_attention_heads"] if square else sizes["head_dim"]
    q = sizes["num_attention_heads"] * head_dim
    kv = q if wide_kv else sizes["num_key_value_heads"] * head_dim
    layer = 2 * C * q + 2 * C * kv + (3 if gate else 2) * C * F + 2 * C * norms
    layer += (2 * q + 2 * kv) * biases
    tied = {"": sizes["tie_word_embeddings"], "counted twice": False, "left out": True}[head]
    return sizes["vocab_size"] * C * (1 if tied else 2) + L * layer + C * norms


def _check_parameters(answer: Callable[[Any], Any]) -> None:
    from llmcourse.models.llama import LlamaConfig

    slips: dict[str, dict[str, Any]] = {
        "K and V have fewer heads than Q here: they are num_key_value_heads × head_dim wide.": {
            "wide_kv": True
        },
        "The head is tied: it is the embedding table, used a second time and stored once.": {
            "head": "counted twice"
        },
        "The head is not tied here: it is a table of its own beside the embeddings.": {
            "head": "left out"
        },
        "The RMSNorm weights are missing: two vectors a layer and one at the end.": {
            "norms": False
        },
        "The feed-forward layer has three matrices: gate, up and down.": {"gate": False},
        "This model has no biases.": {"biases": True},
        "Here the heads together are not as wide as the model: use `head_dim`.": {"square": True},
    }
    for name, (sizes, expected) in _MODELS.items():
        got = number(call(answer, LlamaConfig(**sizes)), given=name)
        _name_slip(got, expected, slips, partial(parameters, sizes), given=name)
        expect_close(
            got,
            expected,
            given=name,
            why="Count by part: the embeddings, then L times (Q, K, V, O, three feed-forward "
            "matrices, two norms), then the last norm.",
            tol=0,
        )


# --- 0.2 and 0.5 ----------------------------------------------------------------------------------


def limit(
    count: float,
    bits: float,
    gb_per_s: float,
    *,
    cards: int = 1,
    batch: int = 1,
    kv_bytes: float = 0.0,
    bits_per_byte: int = 8,
    unit: float = 1e9,
    inverse: bool = False,
    one_card: bool = False,
    weights_each: bool = False,
    cache_once: bool = False,
    no_cache: bool = False,
    one_sequence: bool = False,
) -> float:
    """Tokens/s that memory allows, all sequences together; the last eight are mistakes."""
    weights = count * bits / bits_per_byte * (batch if weights_each else 1)
    cache = 0.0 if no_cache else kv_bytes * (1 if cache_once else batch)
    rate = gb_per_s * unit * (1 if one_card else cards) / (weights + cache)
    rate *= 1 if one_sequence else batch
    return 1 / rate if inverse else rate


_UNIT_SLIPS: dict[str, dict[str, Any]] = {
    "Those are bits: eight of them make a byte.": {"bits_per_byte": 1},
    "Bandwidth is sold in GB of 10⁹ bytes; 2³⁰ bytes are a GiB.": {"unit": 2**30},
    "The bandwidth is in GB/s and the weights in bytes: bring them to one unit.": {"unit": 1},
    "That is seconds a token; tokens a second is one over it.": {"inverse": True},
}


def _check_limit(answer: Callable[..., Any]) -> None:
    for count, bits, gb_per_s in [(134_515_008, 32, 30), (134_515_008, 5, 30), (7e9, 16, 1008)]:
        given = f"{count:,.0f} parameters, {bits} bits, {gb_per_s} GB/s"
        expected = limit(count, bits, gb_per_s)
        got = number(call(answer, count, bits, gb_per_s), given=given)
        ignored = (
            {} if bits == 32 else {"The bits are an input; 32 fits only float32.": {"bits": 32}}
        )
        right: dict[str, Any] = {"count": count, "bits": bits, "gb_per_s": gb_per_s}
        _name_slip(got, expected, _UNIT_SLIPS | ignored, partial(limit, **right), given=given)
        why = "The limit is bytes a second over bytes a token."
        expect_close(got, expected, given=given, why=why, tol=1e-6)


def _check_cards(answer: Callable[..., Any]) -> None:
    slips = _UNIT_SLIPS | {
        "Each card reads its own share at the same time: their bandwidths add up.": {
            "one_card": True
        },
        "That is the rate of each user. A step gives one token to every sequence: count them all.": {
            "one_sequence": True
        },
        "The weights are read once a step, however many sequences share it.": {
            "weights_each": True
        },
        "Every sequence has its own keys and values to read, in every step.": {"cache_once": True},
        "The keys and values are read as well, and at long contexts they are most of it.": {
            "no_cache": True
        },
    }
    # The third comes before the fourth: without a cache two of the slips give the same number.
    for cards, batch, kv_bytes in [
        (2, 1, 0),
        (4, 1, 0),
        (2, 64, 1_342_177_280),
        (2, 64, 0),
        (4, 8, 335_544_320),
    ]:
        given = (
            f"70 billion weights, 4 bits, {cards} cards of 4,800 GB/s, batch {batch}, "
            f"{kv_bytes / 1e9:.2f} GB of keys and values a sequence"
        )
        right: dict[str, Any] = {
            "count": 70e9,
            "bits": 4,
            "gb_per_s": 4800,
            "cards": cards,
            "batch": batch,
            "kv_bytes": kv_bytes,
        }
        expected = limit(**right)
        got = number(call(answer, 70e9, 4, cards, 4800, batch, kv_bytes), given=given)
        _name_slip(got, expected, slips, partial(limit, **right), given=given)
        why = "Tokens a step times steps a second: all cards' bandwidth over the bytes of one step."
        expect_close(got, expected, given=given, why=why, tol=1e-6)


# --- 0.3 ------------------------------------------------------------------------------------------


class _Machine:
    """A model made of a clock: each run of `start` takes the next list of seconds a token."""

    def __init__(self, runs: list[list[float]]) -> None:
        self.runs, self.started, self.now = runs, 0, 0.0

    def tokens(self) -> Iterator[int]:
        seconds = self.runs[self.started % len(self.runs)]
        self.started += 1
        return self._come(seconds)

    def _come(self, seconds: list[float]) -> Iterator[int]:
        for token, s in enumerate(seconds):
            self.now += s
            yield token

    def functions(self) -> tuple[Callable[[], Iterator[int]], Callable[[], float]]:
        """Functions, which `call` passes on as they are; an object it would copy, clock and all."""

        def start() -> Iterator[int]:
            return self.tokens()

        def clock() -> float:
            return self.now

        return start, clock


def _check_timing(answer: Callable[..., Any]) -> None:
    rates = [2.0, 10.0, 8.0, 5.0, 9.0]
    steps = 4
    cases: list[tuple[str, list[list[float]], float, dict[str, float]]] = [
        (
            "five equal runs: 2 s to the first token, then 10 tokens of 0.1 s each",
            [[2.0] + [0.1] * 10] * 5,
            10.0,
            {
                "The first token is still in: its time is the reading of the prompt.": 11 / 3,
                "The time to the first token is still in the time you divide by.": 10 / 3,
                "The first token is still counted: of 11 tokens, 10 came after the first.": 11.0,
            },
        ),
        (
            "five runs, in each 1 s to the first token, then steps of 0.1, 0.1 and 0.4 s",
            [[1.0, 0.1, 0.1, 0.4]] * 5,
            5.0,
            {"One typical step is not the rate: divide tokens by the time they took.": 10.0},
        ),
        (
            "five runs at 2, 10, 8, 5 and 9 tokens/s after the first token",
            [[1.0] + [1 / rate] * steps for rate in rates],
            median(rates),
            {
                "That is one run: the first here is a slow one, and nobody would know.": rates[0],
                "That is the last run alone; take the median of all.": rates[-1],
                "That is the fastest run: the luckiest is not the typical.": max(rates),
                "That is the mean: one slow run pulls it down. Take the median.": fmean(rates),
                "That pools all runs, so the slow one weighs most. Take the median.": harmonic_mean(
                    rates
                ),
            },
        ),
        (
            "four runs: 2 tokens at 4/s after the first, 10 at 8/s, 4 at 6/s and 6 at 10/s",
            [[1.0] + [1 / rate] * n for n, rate in [(2, 4.0), (10, 8.0), (4, 6.0), (6, 10.0)]],
            7.0,
            {
                "Of four numbers the median is the mean of the middle two; that is the third.": 8.0,
                "Of four numbers the median is the mean of the middle two; that is the second.": 6.0,
                "Take the rate of each run first, then the median of the rates.": 5 / 0.625,
            },
        ),
    ]
    for given, runs, expected, slips in cases:
        machine = _Machine(runs)
        got = number(call(answer, *machine.functions(), len(runs)), given=given)
        if not machine.started:
            raise Wrong("start() was never called, so no token was timed.", given=given)
        if not math.isfinite(got) or got > 1000:
            raise Wrong(
                "Read the clock that you are given; this one is not the wall's.", given=given
            )
        for sentence, value in slips.items():
            if math.isclose(got, value, rel_tol=1e-6):
                raise Wrong(sentence, given=given, expected=expected, got=got)
        expect_close(got, expected, given=given, why="The median of the runs' rates.", tol=1e-6)
        if machine.started != len(runs):
            raise Wrong(f"Asked for {len(runs)} runs, it made {machine.started}.", given=given)


# --- 0.4 ------------------------------------------------------------------------------------------

_SORTED = {
    "longer prompt": "first",
    "bandwidth": "rate",
    "longer answer": "none",
    "half the layers": "both",
}
_WHY = {
    "longer prompt": "The prompt is read before the first token, and with a cache never again.",
    "bandwidth": "Later tokens wait for the weights from memory; the first waits for arithmetic.",
    "longer answer": "More tokens take longer in all; the first comes no later, at the same rate.",
    "half the layers": "Less arithmetic for the prompt, and fewer bytes for each later token.",
}


def _check_sorted(answer: Any) -> None:
    if not isinstance(answer, Mapping):
        raise Wrong("The answer is a dict: a word for each of the four changes.", got=answer)
    for change, due in _SORTED.items():
        said = answer.get(change, ...)
        if said is ... or said is None:
            sentence = f'Nothing is said yet about “{change}”; "none" is a word, in quotes.'
            raise Wrong(sentence, got=dict(answer))
        word = str(said).strip().lower()
        if word not in set(_SORTED.values()):
            words = ", ".join(sorted(set(_SORTED.values())))
            raise Wrong(f"Use one of these words: {words}.", given=change, got=said)
        if word != due:
            raise Wrong(_WHY[change], given=change, got=said)


# --- shared ---------------------------------------------------------------------------------------


def _name_slip(
    got: float,
    expected: float,
    slips: Mapping[str, Mapping[str, Any]],
    formula: Callable[..., float],
    *,
    given: str,
) -> None:
    """Raise Wrong with the sentences of the one or two slips that lead exactly to `got`."""
    if math.isclose(got, expected, rel_tol=1e-9):
        return
    if any(got == round(expected, digits) for digits in range(4)):
        raise Wrong("Right up to rounding: return the number as it is.", given=given, got=got)
    for size in (1, 2):
        for sentences in combinations(slips, size):
            merged: dict[str, Any] = {}
            for sentence in sentences:
                merged |= slips[sentence]
            if math.isclose(got, formula(**merged), rel_tol=1e-9):
                raise Wrong(" ".join(sentences), given=given, expected=expected, got=got)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "0.1",
        "Count the parameters from the configuration",
        1,
        _check_parameters,
        (
            "Go through the parts: embeddings, then one layer, then the last norm and the head.",
            "One layer: Q and O are C × (heads × head_dim); K and V are C × (key/value heads × "
            "head_dim); gate, up and down are C × F each; two norms of C.",
            "V·C + L·(2·C·H·D + 2·C·G·D + 3·C·F + 2·C) + C, V·C twice if the head is not tied.",
        ),
        "A few numbers in a text file tell you the size of any Llama before you download it.",
    ),
    Exercise(
        "0.2",
        "The limit at another precision",
        1,
        _check_limit,
        (
            "How many bytes must be read for one token?",
            "Bits times parameters, over eight, are the bytes. A GB/s is 10⁹ bytes a second.",
            "gb_per_s * 1e9 / (parameters * bits / 8)",
        ),
        "Fewer bits a weight raise the limit by exactly the factor that they save.",
    ),
    Exercise(
        "0.3",
        "Repair a stopwatch",
        2,
        _check_timing,
        (
            "When should the clock start, if the first token is not to count?",
            "Read the clock after the first token, count the tokens that follow, read it again; "
            "do that `runs` times.",
            "In each run: `tokens = start(); next(tokens); begun = clock(); n = sum(1 for _ in "
            "tokens); rates.append(n / (clock() - begun))`. Then the median.",
        ),
        "A speed without its method is a rumour: what was counted, from when, and how often?",
    ),
    Exercise(
        "0.4",
        "Which number does it move?",
        1,
        _check_sorted,
        (
            "Ask of each change: what happens before the first token, and what for each later one?",
            "Before the first token: the arithmetic of the whole prompt. For each later one: one "
            "read of all weights.",
            "One change moves the first, one the rate, one both, one neither.",
        ),
        "Two clocks, two bottlenecks: arithmetic before the first token, memory after it.",
    ),
    Exercise(
        "0.5",
        "Interview: two cards, one user, then sixty-four",
        3,
        _check_cards,
        (
            "What does one step read, and how many tokens does it give?",
            "A step reads the weights once and the keys and values of every sequence; it gives one "
            "token to each sequence. Two cards read at the same time.",
            "batch * cards * gb_per_s * 1e9 / (parameters * bits / 8 + batch * kv_bytes)",
        ),
        "Batching shares the weights, never the cache: that is why long contexts are dear.",
    ),
)
