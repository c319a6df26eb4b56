"""Checks of chapter 21: each knows the typical mistakes by computing what they would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llmcourse.jupyter.exercises.answers import number, number_field, tensor
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.compare import a

# 21.1 Nibbles ----------------------------------------------------------------------------------


def _twos(code: int) -> int:
    return code - 16 if code > 7 else code


def check_nibbles(signed_codes: Callable[[Sequence[int]], Any]) -> None:
    generator = torch.Generator().manual_seed(211)
    rows = [[0x2F] + 15 * [0x88], torch.randint(0, 256, (16,), generator=generator).tolist()]
    rows.append(list(range(0, 256, 16)))
    for data in rows:
        given = f"the bytes {', '.join(f'0x{byte:02X}' for byte in data[:4])}, …"
        got = tensor(call(signed_codes, bytes(data)), (32,), given)
        low, high = [byte & 15 for byte in data], [byte >> 4 for byte in data]
        pairs = [code for both in zip(low, high, strict=True) for code in both]
        swapped = [code for both in zip(high, low, strict=True) for code in both]
        right = [code - 8 for code in low + high]
        expect_close(
            got, right, given=given,
            why="Some number is another. Low halves first, then the high ones; 8 off each.",
            slips=[
                ([c - 8 for c in pairs],
                 "Low and high half of each byte stand side by side. In this format neighbours are 16 "
                 "weights apart: all low halves first, then all high ones."),
                ([c - 8 for c in swapped],
                 "The halves of a byte are neither in this order nor side by side."),
                ([c - 8 for c in high + low], "The high halves came first."),
                (low + high, "These are the codes, 0 to 15. Where is the sign?"),
                (pairs, "These are the codes without a sign, and the order is another."),
                (high + low, "These are the codes without a sign, high halves first."),
                ([_twos(c) for c in low + high],
                 "That reads a code as two's complement (15 is −1). Here the sign comes of an offset."),
                ([(c - 8) % 256 for c in low + high],
                 "Bytes of NumPy or PyTorch know no number below 0, so 7 − 8 became 255. Make them whole "
                 "numbers with a sign before you subtract."),
                ([c - 7 for c in low + high], "The offset is one too small: code 0 is −8."),
                ([c - 7.5 for c in low + high],
                 "Half a step off: 7.5 would be the middle of the codes; this format subtracts 8."),
                ([c - 16 for c in low + high], "The offset is half of the 16 codes."),
                ([8 - c for c in low + high], "The sign is turned round."),
                ([c - 8 for c in low] + [(byte & 0xF0) - 8 for byte in data],
                 "The high halves are still in their place, sixteen times too large: shift them down."),
                ([c - 8 for c in low] + [byte - 8 for byte in data],
                 "The second sixteen are whole bytes: take the high half of each."),
            ],
        )  # fmt: skip


# 21.2 One row ----------------------------------------------------------------------------------


def check_row(row_dot: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(212)
    for groups in (1, 3, 18):
        x = 3 * torch.randn(groups, 32, generator=generator) + 1
        q_scales = x.abs().amax(1) / 127
        q = (x / q_scales[:, None]).round().to(torch.int8)
        codes = torch.randint(0, 16, (groups, 32), generator=generator).to(torch.uint8)
        scales = torch.rand(groups, generator=generator) + 0.5
        lows = -8 * scales * (0.5 + torch.rand(groups, generator=generator))
        given = f"{groups} group{'s' if groups > 1 else ''} of 32"
        got = tensor(call(row_dot, codes, scales, lows, q, q_scales), (), given)
        c, qd, s, m, t = (v.double() for v in (codes, q, scales, lows, q_scales))
        dots, total = (c * qd).sum(1), t * qd.sum(1)
        main, offset = (s * t * dots).sum(), (m * total).sum()
        wrapped = (codes.to(torch.int8) * q).sum(1, dtype=torch.int64).double()
        bytewise = (codes * q.to(torch.uint8)).sum(1, dtype=torch.int64).double()
        narrow = q.sum(1, dtype=torch.int8).double()
        expect_close(
            got, main + offset, given=given, tol=2e-5,
            why="Another value came. Group by group: s · t · Σ c·q + m · t · Σ q.",
            slips=[
                (main, "The minimum term is missing: every weight has m added, whatever its code."),
                (main + m.sum(), "The minimum was added once a group. Every weight holds it, so it meets "
                 "every activation: it is multiplied by their sum."),
                (main + 32 * m.sum(), "32 · m is right only if all activations are 1. Multiply by their sum."),
                (main + (m * t).sum(), "The minimum met t; it should meet the sum of all 32 activations."),
                (main + (m * qd.sum(1)).sum(),
                 "In the second term the minimum met whole numbers; an activation is t times as much."),
                ((s * dots).sum() + (m * qd.sum(1)).sum(),
                 "The scale of the activations, t, is missing in both terms."),
                (main + (s * m * t * qd.sum(1)).sum(), "The minimum is not multiplied by the scale: w = s·c + m."),
                (main + (m * t * c.sum(1)).sum(), "The minimum met the sum of the codes, not of the activations."),
                (main + (m * t * qd.abs().sum(1)).sum(), "The activations have signs, in their sum, too."),
                (main + (m * t * qd.mean(1)).sum(), "The minimum met a mean of the activations; the sum is wanted."),
                (main + (m * t * t * qd.sum(1)).sum(), "In the second term t counts twice."),
                (main + (m * t * narrow).sum(),
                 "The sum of q does not fit 8 bits and wrapped round. Widen before you add."),
                (main - offset, "The minimum term has the wrong sign."),
                ((s * dots).sum() + offset, "The scale of the activations, t, is missing."),
                ((t * dots).sum() + offset, "The scale of the weights, s, is missing."),
                (dots.sum() + offset, "Both scales are missing."),
                (s.mean() * t.mean() * dots.sum() + offset,
                 "The groups were added up before their scales: each has its own."),
                (s.sum() * t.sum() * dots.sum() + offset, "Scales were added up; each belongs to its group."),
                ((s * t).sum() * dots.sum() + (m * t).sum() * qd.sum(),
                 "The whole numbers of all groups were added up: sum over axis 1 only."),
                ((s * t * ((c - 8) * qd).sum(1)).sum() + offset,
                 "8 was subtracted from the codes, which is Q4_0. Here the minimum does that."),
                ((s * t * wrapped).sum() + offset,
                 "The products do not fit 8 bits and wrapped round. Widen before you multiply."),
                ((s * t * bytewise).sum() + offset,
                 "Products of bytes wrapped round at 256. Widen before you multiply."),
                ((s * dots / t).sum() + offset, "You divided by t: x ≈ t · q, so multiply."),
                (main / 32 + offset / 32, "A mean came; the sum is wanted."),
            ],
        )  # fmt: skip


# 21.3 Units ------------------------------------------------------------------------------------


def _units(got: Any, given: str) -> list[list[int]]:
    """The answer as lists of whole numbers."""
    if hasattr(got, "tolist"):
        got = got.tolist()
    if isinstance(got, (str, bytes, dict)) or not hasattr(got, "__iter__"):
        raise Wrong(f"A list of lists is wanted, and this is {a(got)}.", given=given, got=got)
    found = []
    for unit in got:
        if isinstance(unit, (str, bytes, dict)) or not hasattr(unit, "__iter__"):
            raise Wrong(f"Each unit is a list of tiles; here is {a(unit)}.", given=given, got=got)
        try:
            tiles = list(unit)
            whole = [int(tile) for tile in tiles]
        except (TypeError, ValueError, OverflowError):
            raise Wrong("Tiles are whole numbers.", given=given, got=got) from None
        if whole != tiles:
            raise Wrong("Tiles are whole numbers.", given=given, got=got)
        found.append(whole)
    return found


def check_units(units: Callable[[int], Any]) -> None:
    for tiles in (8, 4, 64, 37, 6, 3, 1):
        given = f"{tiles} tile{'s' if tiles > 1 else ''}"
        back = call(units, tiles)
        got = _units(back, given)
        quarter = -(-tiles // 4)
        right = [list(range(i, tiles, quarter)) for i in range(quarter)]
        told = {"given": given, "got": back, "expected": right if tiles < 10 else None}
        if got == right:
            continue
        if any(len(unit) > 4 for unit in got):
            raise Wrong(
                "A unit has more than four tiles: there is a stream too many. Which way did you round?",
                **told,
            )
        flat = [tile for unit in got for tile in unit]
        if any(not 0 <= tile < tiles for tile in flat):
            raise Wrong(
                "There is a tile beyond the end: a kernel would read what is not its own.", **told
            )
        if len(flat) != len(set(flat)):
            raise Wrong("A tile comes twice: its rows would be worked out for nothing.", **told)
        if len(flat) < tiles:
            missing = sorted(set(range(tiles)) - set(flat))
            raise Wrong(f"Forgotten: {len(missing)} of the tiles, {missing[0]} among them.", **told)
        if any(not unit for unit in got):
            raise Wrong("A unit without a tile: there is one step too many.", **told)
        if got == [list(range(i, min(i + 4, tiles))) for i in range(0, tiles, 4)]:
            raise Wrong(
                "These four are neighbours, so memory sees one stream. It is the line to change.",
                **told,
            )
        if sorted(map(sorted, got)) == sorted(right):
            raise Wrong(
                "The right units in another order: each stream should move on by one tile.", **told
            )
        if [list(column) for column in zip(*right, strict=False)] == got:
            raise Wrong("Each list is one stream; a unit takes one tile of each.", **told)
        if max(map(len, got)) == 1:
            raise Wrong("One tile at a time is one stream. Four are walked together.", **told)
        if len(got) > quarter:
            raise Wrong(
                "Each tile comes once, but there are more units than needed. The streams are equally "
                "long, a quarter rounded *up*; only the last may be shorter.",
                **told,
            )
        raise Wrong(
            f"Each tile comes once, but the streams do not lie {quarter} apart, a quarter rounded up.",
            **told,
        )


# 21.4 A layer ----------------------------------------------------------------------------------


def check_layer(layer_ms: Callable[..., Any]) -> None:
    for C, F, H, G, D, gb in [
        (2048, 8192, 32, 8, 64, 50.0),
        (576, 1536, 9, 3, 64, 20.0),
        (4096, 14336, 32, 8, 128, 200.0),
    ]:
        given = f"C = {C:,}, F = {F:,}, H = {H}, G = {G}, D = {D}, {gb:g} GB/s"
        got = number(call(layer_ms, C, F, H, G, D, gb), given=given)
        attention, ffn = 2 * C * H * D + 2 * C * G * D, 3 * C * F
        n = attention + ffn

        def ms(weights: float, bits: float = 5, gb: float = gb) -> float:
            return weights * bits / 8 / gb / 1e6

        right = ms(n)
        slips = [
            (ms(n, 4), "That counts 4 bits a weight. Scale and minimum are bytes, too: 20 for 32 weights."),
            (ms(n, 4.5), "18 bytes a block is Q4_0. Q4_1 has a minimum beside the scale."),
            (ms(n, 6), "Scale and minimum are fp16, two bytes each."),
            (ms(n, 32), "That is float32; a block has 20 bytes for 32 weights."),
            (ms(n, 16), "That is two bytes a weight; a block has 20 bytes for 32 weights."),
            (ms(n, 40), "Bits were taken for bytes."),
            (right / 1000, "These are seconds; milliseconds are wanted."),
            (right * 1000, "These are microseconds; milliseconds are wanted."),
            (1 / right, "Upside down: bytes over bandwidth."),
            (n * 20 / gb / 1e6, "20 bytes are for a block of 32 weights, not for each."),
            (right * 1e9 / 2**30, "A GB of bandwidth is 10⁹ bytes, not 2³⁰."),
            (ms(4 * C * H * D + ffn), "K and V have G heads, not H."),
            (ms(2 * C * H * D + C * G * D + ffn), "K and V are two matrices."),
            (ms(C * H * D + 2 * C * G * D + ffn), "Q and the output are two matrices."),
            (ms(attention + 2 * C * F), "The feed-forward part has three matrices: gate, up and down."),
            (ms(ffn), "The four matrices of attention are missing."),
            (ms(attention), "The feed-forward part is missing."),
            (ms(3 * C * H * D + 2 * C * G * D + ffn), "Q and the output are two matrices; there is one more here."),
            (ms(C * C + 2 * C * G * D + ffn) if C != H * D else math.nan, "The output matrix is missing."),
        ]  # fmt: skip
        if math.isfinite(got) and abs(got / right - 1) < 1e-3:
            continue
        for value, sentence in slips:
            if value == value and value and abs(got / value - 1) < 1e-3:
                raise Wrong(sentence, given=given, expected=right, got=got)
        if not math.isfinite(got) or got <= 0:
            raise Wrong(
                "A time is a finite number above zero.", given=given, expected=right, got=got
            )
        if abs(got / right - 1) < 0.02:
            raise Wrong(
                "Very near. Was something rounded, or left out, on the way?",
                given=given, expected=right, got=got,
            )  # fmt: skip
        raise Wrong(
            f"Off by a factor of {got / right:.3g}. Count the weights of the seven matrices first.",
            given=given, expected=right, got=got,
        )  # fmt: skip


# 21.5 Barriers ---------------------------------------------------------------------------------


def check_barriers(answer: Any) -> None:
    due = {"barriers": 164.0, "spin_us": 32.8, "sleep_ms": 9.84}
    slips: dict[str, list[tuple[float, str]]] = {
        "barriers": [
            (160, "The four around the layers are missing."),
            (9, "Five in *each* layer."),
            (9 * 32, "The four around the layers are passed once, not in each."),
            (5, "That is one layer."),
            (128 + 5, "Five a layer, four around."),
            (154, "That is the model of this chapter, with 30 layers."),
        ],
        "spin_us": [
            (32.0, "The four around the layers cost as much as the others."),
            (0.2, "That is one barrier."),
            (0.0328, "That is in milliseconds; µs are wanted."),
            (32_800, "That is in nanoseconds; µs are wanted."),
            (65.6, "The threads wait at the same time: two of them do not wait twice as long."),
        ],
        "sleep_ms": [
            (9840, "That is in µs; ms are wanted."),
            (0.00984, "That is in seconds; ms are wanted."),
            (9.6, "The four around the layers cost as much as the others."),
            (19.68, "The threads wait at the same time: two of them do not wait twice as long."),
            (60, "That is one barrier, in µs."),
            (0.06, "That is one barrier."),
        ],
    }
    for name, value in due.items():
        got = number_field(answer, name, list(due))
        if abs(got / value - 1) < (0.001 if name == "barriers" else 0.018):  # 33 and 10 will do
            continue
        for wrong, sentence in slips[name]:
            if abs(got / wrong - 1) < 0.005:
                raise Wrong(f"{name}: {sentence}", got=got)
        raise Wrong(f"{name} is off by a factor of {got / value:.3g}.", got=got)


# 21.6 Threads ----------------------------------------------------------------------------------


def check_threads(tokens_per_s: Callable[..., Any]) -> None:
    for n, mb, one, most, alone, barriers, cost in [
        (1, 80.0, 16.0, 24.0, 500.0, 160, 0.5),
        (2, 80.0, 16.0, 24.0, 500.0, 160, 0.5),
        (3, 80.0, 16.0, 24.0, 500.0, 160, 0.5),
        (4, 120.0, 10.0, 100.0, 900.0, 100, 2.0),
    ]:
        given = (
            f"threads = {n}, megabytes = {mb:g}, one = {one:g}, all = {most:g}, alone_us = {alone:g}, "
            f"barriers = {barriers}, barrier_us = {cost:g}"
        )
        got = number(call(tokens_per_s, n, mb, one, most, alone, barriers, cost), given=given)
        gb = min(n * one, most)
        wait = barriers * cost if n > 1 else 0.0

        def rate(read_us: float, alone_us: float = alone, wait_us: float = wait) -> float:
            return 1e6 / (read_us + alone_us + wait_us)

        read = 1000 * mb / gb
        right = rate(read)
        slips = [
            (rate(1000 * mb / (n * one)), "The memory gives no more than `all`, however many threads ask."),
            (rate(1000 * mb / one), "Threads do read faster together, up to `all`."),
            (rate(1000 * mb / most), "`all` is the ceiling; few threads may not reach it."),
            (rate(1000 * mb / n / most), "`all` is what all threads have together, not each."),
            (rate(read, alone / n), "The part that no thread shares does not get shorter with threads."),
            (rate(read, 0.0), "The part that no thread shares is missing."),
            (rate(read, wait_us=barriers * cost), "One thread alone waits for nobody."),
            (rate(read, wait_us=0.0), "With several threads the barriers cost time: they are missing."),
            (rate(read, wait_us=wait * n), "All wait at the same time: a barrier costs once, not once a thread."),
            (rate(read, wait_us=wait / n), "The wait at a barrier is not shared out: all stand there."),
            (rate(read, wait_us=cost if n > 1 else 0), "That is one barrier; a token passes many."),
            (1e3 / (mb / gb + alone / 1e3 + wait / 1e3) / 1e3, "Units: a second has 10⁶ µs."),
            (1 / right, "Seconds a token came; tokens a second are wanted."),
            (1e6 / right, "Microseconds a token came; tokens a second are wanted."),
            (right / 1e6, "Tokens a microsecond came; tokens a second are wanted."),
            (1e6 / (mb / gb + alone + wait), "MB over GB/s are milliseconds: the rest is in µs."),
            (n * rate(1000 * mb / one, wait_us=0.0), "That is n times one thread: no shared memory, no waiting."),
            (min(1e6 / read, 1e6 / (alone + wait)), "The parts come one after the other: their times add up."),
        ]  # fmt: skip
        if math.isfinite(got) and abs(got / right - 1) < 1e-4:
            continue
        for value, sentence in slips:
            if abs(got / value - 1) < 1e-4:
                raise Wrong(sentence, given=given, expected=right, got=got)
        raise Wrong(
            "Another rate came. Add up the µs of a step: reading, the part alone, the barriers.",
            given=given, expected=right, got=got,
        )  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "21.1",
        "Nibbles",
        1,
        check_nibbles,
        (
            "A byte is 16 · high + low. What are `byte & 15` and `byte >> 4`?",
            "Weights 0 to 15 are the low halves of the bytes 0 to 15, weights 16 to 31 the high ones.",
            "One list of (byte & 15) - 8, then one of (byte >> 4) - 8, joined.",
        ),
        "Sixteen bytes at once, one mask and one shift: this order unpacks a whole vector without moving a byte.",
    ),
    Exercise(
        "21.2",
        "One row of int4 × int8",
        2,
        check_row,
        (
            "Put w = s·c + m into Σ w·x, and see which factors can leave the inner sum.",
            "Σ (s·c + m)·t·q = s·t·Σ c·q + m·t·Σ q, in each group.",
            "Widen before you multiply: codes.long() * q.long(), summed over axis 1; q alone likewise.",
            "(scales * q_scales * dots + lows * q_scales * …).sum()",
        ),
        "All that is done for every weight is whole numbers; fractions come once in 32.",
    ),
    Exercise(
        "21.3",
        "The line: which four tiles",
        3,
        check_units,
        (
            "Draw eight tiles, and mark where the four streams begin.",
            "With a quarter of q tiles, unit i holds i, i + q, i + 2q, i + 3q.",
            "For 37 tiles, a quarter rounded down is 9 and leaves one over. Rounded up?",
            "range(i, tiles, quarter) stops at the end by itself; i runs over range(quarter).",
        ),
        "The arithmetic is untouched: only the order in which memory is asked has changed.",
    ),
    Exercise(
        "21.4",
        "What a layer costs",
        2,
        check_layer,
        (
            "Seven matrices: which are square, which are narrow, which are wide?",
            "Q and O are C × H·D, K and V C × G·D, and three are C × F. Add up their weights.",
            "Bytes are weights / 32 · 20. Divided by gb_per_s · 10⁹ that is seconds.",
        ),
        "No arithmetic was counted, and the prediction is close: that is what memory-bound means.",
    ),
    Exercise(
        "21.5",
        "Barriers",
        1,
        check_barriers,
        (
            "Five in each of 32 layers, and four more once.",
            "Barriers times µs; for the second cost, divide by 1,000.",
            "All threads wait at the same time: their number does not matter.",
        ),
        "Spinning costs a hundredth of a step of some milliseconds; sleeping costs more than the step.",
    ),
    Exercise(
        "21.6",
        "Interview: two threads, and a third",
        3,
        check_threads,
        (
            "A step is three waits, one after the other. Which of them get shorter with threads?",
            "MB over GB/s are milliseconds. The bandwidth is min(threads · one, all).",
            "The part alone stays; barriers cost barriers · barrier_us, but nothing for one thread.",
            "1e6 / (1000 * megabytes / min(threads * one, all) + alone_us + …)",
        ),
        "Where one thread nearly fills the memory, a third buys waiting.",
    ),
)
