"""Answers to chapter 21 that readers give: every one must fail its check (tests/test_exercises.py)."""

from __future__ import annotations

from typing import Any

import torch

# 21.1


def side_by_side(data):
    return [code - 8 for byte in data for code in (byte & 15, byte >> 4)]


def high_then_low_of_each(data):
    return [code - 8 for byte in data for code in (byte >> 4, byte & 15)]


def high_first(data):
    return [(byte >> 4) - 8 for byte in data] + [(byte & 15) - 8 for byte in data]


def no_sign(data):
    return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def twos_complement(data):
    codes = no_sign(data)
    return [code - 16 if code > 7 else code for code in codes]


def offset_of_seven(data):
    return [code - 7 for code in no_sign(data)]


def middle(data):
    return [code - 7.5 for code in no_sign(data)]


def not_shifted(data):
    return [(byte & 15) - 8 for byte in data] + [(byte & 0xF0) - 8 for byte in data]


def wrapped_round(data):
    return [(code - 8) % 256 for code in no_sign(data)]


def low_half_only(data):
    return [(byte & 15) - 8 for byte in data]


# 21.2


def no_minimum(codes, scales, lows, q, q_scales):
    return (scales * q_scales * (codes.long() * q.long()).sum(1)).sum()


def minimum_once(codes, scales, lows, q, q_scales):
    return no_minimum(codes, scales, lows, q, q_scales) + lows.sum()


def minimum_times_32(codes, scales, lows, q, q_scales):
    return no_minimum(codes, scales, lows, q, q_scales) + 32 * lows.sum()


def minimum_times_t(codes, scales, lows, q, q_scales):
    return no_minimum(codes, scales, lows, q, q_scales) + (lows * q_scales).sum()


def sum_of_the_int8(codes, scales, lows, q, q_scales):
    return no_minimum(codes, scales, lows, q, q_scales) + (lows * q.long().sum(1)).sum()


def no_t_at_all(codes, scales, lows, q, q_scales):
    return (scales * (codes.long() * q.long()).sum(1) + lows * q.long().sum(1)).sum()


def t_for_the_second_only(codes, scales, lows, q, q_scales):
    return (scales * (codes.long() * q.long()).sum(1) + lows * q_scales * q.long().sum(1)).sum()


def minimum_scaled(codes, scales, lows, q, q_scales):
    dots = (codes.long() * q.long()).sum(1) + lows * q.long().sum(1)
    return (scales * q_scales * dots).sum()


def sum_of_the_codes(codes, scales, lows, q, q_scales):
    rest = (lows * q_scales * codes.long().sum(1)).sum()
    return no_minimum(codes, scales, lows, q, q_scales) + rest


def mean_of_q(codes, scales, lows, q, q_scales):
    rest = (lows * q_scales * q.float().mean(1)).sum()
    return no_minimum(codes, scales, lows, q, q_scales) + rest


def minimum_taken_off(codes, scales, lows, q, q_scales):
    rest = (lows * q_scales * q.long().sum(1)).sum()
    return no_minimum(codes, scales, lows, q, q_scales) - rest


def eight_off(codes, scales, lows, q, q_scales):
    dots = ((codes.long() - 8) * q.long()).sum(1)
    return (scales * q_scales * dots + lows * q_scales * q.long().sum(1)).sum()


def in_eight_bits(codes, scales, lows, q, q_scales):
    dots = (codes.to(torch.int8) * q).sum(1)
    return (scales * q_scales * dots + lows * q_scales * q.long().sum(1)).sum()


def a_value_for_each_group(codes, scales, lows, q, q_scales):
    dots = (codes.long() * q.long()).sum(1)
    return scales * q_scales * dots + lows * q_scales * q.long().sum(1)


def scales_of_the_whole(codes, scales, lows, q, q_scales):
    dots = (codes.long() * q.long()).sum()
    rest = (lows * q_scales * q.long().sum(1)).sum()
    return scales.mean() * q_scales.mean() * dots + rest


# 21.3


def neighbours(tiles):
    return [list(range(i, min(i + 4, tiles))) for i in range(0, tiles, 4)]


def rounded_down(tiles):
    quarter = tiles // 4
    return [[i, i + quarter, i + 2 * quarter, i + 3 * quarter] for i in range(quarter)]


def fractions(tiles):
    quarter = -(-tiles // 4)
    return [[tile + 0.4 for tile in range(i, tiles, quarter)] for i in range(quarter)]


def endless(tiles):
    return [[float("inf")]]


def beyond_the_end(tiles):
    quarter = -(-tiles // 4)
    return [[i, i + quarter, i + 2 * quarter, i + 3 * quarter] for i in range(quarter)]


def a_fifth_stream(tiles):
    quarter = max(1, tiles // 4)
    return [list(range(i, tiles, quarter)) for i in range(quarter)]


def the_last_tile_again(tiles):
    quarter = -(-tiles // 4)
    return [[min(i + k * quarter, tiles - 1) for k in range(4)] for i in range(quarter)]


def streams_for_units(tiles):
    quarter = -(-tiles // 4)
    return [list(range(k * quarter, min((k + 1) * quarter, tiles))) for k in range(4)]


def one_by_one(tiles):
    return [[tile] for tile in range(tiles)]


def backwards(tiles):
    quarter = -(-tiles // 4)
    return [list(range(i, tiles, quarter)) for i in reversed(range(quarter))]


def rest_at_the_end(tiles):
    quarter = tiles // 4
    whole = [[i + k * quarter for k in range(4)] for i in range(quarter)]
    return whole + [[tile] for tile in range(4 * quarter, tiles)]


def flat(tiles):
    return list(range(tiles))


# 21.4


def four_bits(C, F, H, G, D, gb_per_s):
    return (2 * C * H * D + 2 * C * G * D + 3 * C * F) / 2 / gb_per_s / 1e6


def all_heads(C, F, H, G, D, gb_per_s):
    return (4 * C * H * D + 3 * C * F) * 20 / 32 / gb_per_s / 1e6


def two_of_three(C, F, H, G, D, gb_per_s):
    return (2 * C * H * D + 2 * C * G * D + 2 * C * F) * 20 / 32 / gb_per_s / 1e6


def bits_for_bytes(C, F, H, G, D, gb_per_s):
    return (2 * C * H * D + 2 * C * G * D + 3 * C * F) * 5 / gb_per_s / 1e6


def in_seconds(C, F, H, G, D, gb_per_s):
    return (2 * C * H * D + 2 * C * G * D + 3 * C * F) * 20 / 32 / gb_per_s / 1e9


def in_gibibytes(C, F, H, G, D, gb_per_s):
    return 1000 * (2 * C * H * D + 2 * C * G * D + 3 * C * F) * 20 / 32 / gb_per_s / 2**30


def q4_0(C, F, H, G, D, gb_per_s):
    return (2 * C * H * D + 2 * C * G * D + 3 * C * F) * 18 / 32 / gb_per_s / 1e6


def no_attention(C, F, H, G, D, gb_per_s):
    return 3 * C * F * 20 / 32 / gb_per_s / 1e6


# 21.5


def barriers(number: Any = 164, spin: Any = 32.8, sleep: Any = 9.84) -> dict[str, Any]:
    return {"barriers": number, "spin_us": spin, "sleep_ms": sleep}


# 21.6


def no_ceiling(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    wait = barriers * barrier_us if threads > 1 else 0
    return 1e6 / (1000 * megabytes / (threads * one) + alone_us + wait)


def all_is_shared(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    wait = barriers * barrier_us if threads > 1 else 0
    return 1e6 / (1000 * megabytes / min(threads * one, all) + alone_us / threads + wait)


def one_waits_too(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    step = 1000 * megabytes / min(threads * one, all) + alone_us
    return 1e6 / (step + barriers * barrier_us)


def no_barriers(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    return 1e6 / (1000 * megabytes / min(threads * one, all) + alone_us)


def barriers_for_each(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    wait = threads * barriers * barrier_us if threads > 1 else 0
    return 1e6 / (1000 * megabytes / min(threads * one, all) + alone_us + wait)


def nothing_alone(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    wait = barriers * barrier_us if threads > 1 else 0
    return 1e6 / (1000 * megabytes / min(threads * one, all) + wait)


def milliseconds_with_microseconds(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    wait = barriers * barrier_us if threads > 1 else 0
    return 1e6 / (megabytes / min(threads * one, all) + alone_us + wait)


def times_the_threads(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    return threads * 1e6 / (1000 * megabytes / one + alone_us)


def always_all(threads, megabytes, one, all, alone_us, barriers, barrier_us):
    wait = barriers * barrier_us if threads > 1 else 0
    return 1e6 / (1000 * megabytes / all + alone_us + wait)


WRONG: dict[str, list[Any]] = {
    "21.1": [
        side_by_side, high_then_low_of_each, high_first, no_sign, twos_complement, offset_of_seven,
        middle, not_shifted, low_half_only, wrapped_round,
    ],
    "21.2": [
        no_minimum, minimum_once, minimum_times_32, minimum_times_t, sum_of_the_int8, no_t_at_all,
        t_for_the_second_only, minimum_scaled, sum_of_the_codes, mean_of_q, minimum_taken_off,
        eight_off, in_eight_bits, a_value_for_each_group, scales_of_the_whole,
    ],
    "21.3": [
        neighbours, rounded_down, beyond_the_end, a_fifth_stream, the_last_tile_again,
        streams_for_units, one_by_one, backwards, rest_at_the_end, flat,
        fractions, endless,
    ],
    "21.4": [
        four_bits, all_heads, two_of_three, bits_for_bytes, in_seconds, in_gibibytes, q4_0, no_attention,
    ],
    "21.5": [
        barriers(number=160), barriers(number=9), barriers(number=288), barriers(spin=0.0328),
        barriers(spin=65.6), barriers(sleep=9840), barriers(sleep=9.6), barriers(sleep="much"),
    ],
    "21.6": [
        no_ceiling, all_is_shared, one_waits_too, no_barriers, barriers_for_each, nothing_alone,
        milliseconds_with_microseconds, times_the_threads, always_all,
    ],
}  # fmt: skip
