"""Answers to chapter 00 that readers give and a check must not accept."""

from __future__ import annotations

import time
from statistics import fmean, median, median_low


def _head_twice(c):
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    C, F, L = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    return 2 * c.vocab_size * C + L * (2 * C * q + 2 * C * kv + 3 * C * F + 2 * C) + C


def _head_never(c):
    return _head_twice(c) - c.vocab_size * c.hidden_size


def _wide_kv(c):
    C, F, L = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    tables = 1 if c.tie_word_embeddings else 2
    q = c.num_attention_heads * c.head_dim
    return tables * c.vocab_size * C + L * (4 * C * q + 3 * C * F + 2 * C) + C


def _no_norms(c):
    C, F, L = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    tables = 1 if c.tie_word_embeddings else 2
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return tables * c.vocab_size * C + L * (2 * C * q + 2 * C * kv + 3 * C * F)


def _square(c):
    C, F, L = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    tables = 1 if c.tie_word_embeddings else 2
    kv = c.num_key_value_heads * C // c.num_attention_heads
    return tables * c.vocab_size * C + L * (2 * C * C + 2 * C * kv + 3 * C * F + 2 * C) + C


def _learned_by_heart(c):
    return 134_515_008


def _wrong_name(c):
    return c.n_layers * c.hidden_size


def _rates(start, clock, runs):
    found = []
    for _ in range(runs):
        tokens = start()
        next(tokens)
        begun = clock()
        found.append(sum(1 for _ in tokens) / (clock() - begun))
    return found


def _both_faults(start, clock, runs=5):
    begun = clock()
    n = sum(1 for _ in start())
    return n / (clock() - begun)


def _first_counted(start, clock, runs=5):
    found = []
    for _ in range(runs):
        begun = clock()
        n = sum(1 for _ in start())
        found.append(n / (clock() - begun))
    return median(found)


def _first_timed(start, clock, runs=5):
    found = []
    for _ in range(runs):
        begun = clock()
        n = sum(1 for _ in start()) - 1
        found.append(n / (clock() - begun))
    return median(found)


def _fence_post(start, clock, runs=5):
    found = []
    for _ in range(runs):
        tokens = start()
        next(tokens)
        begun = clock()
        found.append((1 + sum(1 for _ in tokens)) / (clock() - begun))
    return median(found)


def _five_runs(start, clock, runs=5):
    return median(_rates(start, clock, 5)[:runs])


def _upper_median(start, clock, runs=5):
    return sorted(_rates(start, clock, runs))[runs // 2]


def _lower_median(start, clock, runs=5):
    return median_low(_rates(start, clock, runs))


def _one_run(start, clock, runs=5):
    return _rates(start, clock, 1)[0]


def _mean(start, clock, runs=5):
    return fmean(_rates(start, clock, runs))


def _fastest(start, clock, runs=5):
    return max(_rates(start, clock, runs))


def _own_clock(start, clock, runs=5):
    return median(_rates(start, time.perf_counter, runs))


def _one_more_run(start, clock, runs=5):
    return median(_rates(start, clock, runs + 2)[:runs])


def _nothing_started(start, clock, runs=5):
    return 10.0


def _cards(parameters, bits, cards, gb_per_s, batch, kv_bytes):
    return batch * cards * gb_per_s * 1e9 / (parameters * bits / 8 + batch * kv_bytes)


_SORTED = {
    "longer prompt": "first",
    "bandwidth": "rate",
    "longer answer": "none",
    "half the layers": "both",
}

WRONG = {
    "0.1": [
        _head_twice,
        _head_never,
        _wide_kv,
        _no_norms,
        _square,
        _learned_by_heart,
        _wrong_name,
        lambda c: c,
        134_515_008,
    ],
    "0.2": [
        lambda parameters, bits, gb_per_s: gb_per_s * 1e9 / (parameters * bits),
        lambda parameters, bits, gb_per_s: gb_per_s * 2**30 / (parameters * bits / 8),
        lambda parameters, bits, gb_per_s: gb_per_s / (parameters * bits / 8),
        lambda parameters, bits, gb_per_s: parameters * bits / 8 / (gb_per_s * 1e9),
        lambda parameters, bits, gb_per_s: gb_per_s * 1e9 / (parameters * 4),
        lambda parameters, bits, gb_per_s: gb_per_s * 2**30 / (parameters * bits),
        lambda parameters, bits, gb_per_s: round(gb_per_s * 1e9 / (parameters * bits / 8)),
        lambda parameters, bits, gb_per_s: "fast",
    ],
    "0.3": [
        _both_faults,
        _first_counted,
        _first_timed,
        _fence_post,
        _five_runs,
        _upper_median,
        _lower_median,
        _one_run,
        _mean,
        _fastest,
        _own_clock,
        _one_more_run,
        _nothing_started,
    ],
    "0.4": [
        _SORTED | {"longer prompt": "both"},
        _SORTED | {"bandwidth": "both"},
        _SORTED | {"longer answer": "rate"},
        _SORTED | {"half the layers": "rate"},
        _SORTED | {"bandwidth": "fast"},
        {"bandwidth": "rate"},
        dict.fromkeys(_SORTED, "both"),
        "rate",
    ],
    "0.5": [
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, 1, gb, batch, kv),
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, 2, gb, batch, kv),
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, cards, gb, 1, kv),
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, cards, gb, batch, 0),
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, cards, gb, batch, kv / batch),
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, cards, gb, batch, kv) / batch,
        lambda p, bits, cards, gb, batch, kv: _cards(p, 8 * bits, cards, gb, batch, kv),
        lambda p, bits, cards, gb, batch, kv: _cards(p, bits, cards, gb * 2**30 / 1e9, batch, kv),
        lambda p, bits, cards, gb, batch, kv: _cards(p, 8 * bits, 1, gb, batch, kv),
    ],
}
