"""Checks of chapter 06: each knows the typical mistakes by computing what they would give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmcourse.jupyter.exercises.answers import number_field, tensor
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.watch import not_calling

# 6.1 RMSNorm -----------------------------------------------------------------------------------


def check_rms_norm(rms_norm: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    generator = torch.Generator().manual_seed(61)
    # The first x is small, so that even a small eps shows.
    for shape, eps, size, shift in [
        ((2, 3, 8), 0.002, 0.01, 0.0),
        ((4, 6), 0.5, 1.0, 2.0),
        ((1, 5, 4), 0.1, 1.0, -1.0),
    ]:
        given = f"x of shape {shape}, entries {shift:g} ± {size:g}, eps = {eps}"
        x = size * torch.randn(shape, generator=generator) + shift
        weight = torch.rand(shape[-1], generator=generator) + 0.5
        itself = "That is the library's own. Write it from a square, a mean and a root."
        with not_calling("rms_norm", "RMSNorm.forward", say=itself):
            got = call(rms_norm, x, weight, eps)
        x, weight = x.double(), weight.double()
        square = x.pow(2)
        centred = x - x.mean(-1, keepdim=True)
        right = weight * x / (square.mean(-1, keepdim=True) + eps).sqrt()
        by_first = square.mean(0, keepdim=True)
        expect_close(
            got, right, given=given, tol=1e-5,
            why="Some entries differ. Square, mean over the last axis, add eps, root, divide, weight.",
            slips=[
                (weight * centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt(),
                 "The mean was subtracted: that is LayerNorm. RMSNorm leaves the mean in."),
                (weight * centred / (square.mean(-1, keepdim=True) + eps).sqrt(),
                 "The mean was subtracted above the line, and not below. It stays in both."),
                (weight * x / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt(),
                 "x was divided by its standard deviation, which subtracts the mean."),
                (weight * x / (square.mean(-1, keepdim=True).sqrt() + eps),
                 "eps stands outside the root. It is added to the mean of squares, before the root."),
                (weight * x / square.mean(-1, keepdim=True).sqrt(),
                 "eps is missing: a row of zeros would be 0/0."),
                (weight * x / (square.mean(-1, keepdim=True) + 1e-5).sqrt(),
                 "eps is not used: another came in."),
                (weight * x / (x.var(-1, keepdim=True) + eps).sqrt(),
                 "The variance took the place of the mean square: it subtracts the mean first."),
                (weight * x * (square.mean(-1, keepdim=True) + eps).sqrt(),
                 "You multiplied by the root; divide."),
                (weight * x / (square.mean(1, keepdim=True) + eps).sqrt(),
                 "The mean ran over axis 1. A token's entries are the *last* axis, -1."),
                (weight * x / (square.mean(-1, keepdim=True) + eps**2).sqrt(),
                 "eps was squared on its way: it is added as it is."),
                (right / weight, "The weight is missing."),
                (right / weight * (1 + weight),
                 "The weight is used as 1 + weight. (Some models store it so; this one does not.)"),
                (weight * x / (square.sum(-1, keepdim=True) + eps).sqrt(),
                 "That divides by the length of x, the root of the sum of squares; the mean is "
                 "wanted."),
                (weight * x / (square.mean(-1, keepdim=True) + eps),
                 "The root is missing: x was divided by its mean square."),
                (weight * x / (square.mean() + eps).sqrt(),
                 "The mean ran over all entries at once. Each token has its own: the last axis."),
                (weight * x / (by_first + eps).sqrt(),
                 "The mean ran over the wrong axis; a token's entries are the last one."),
            ],
        )  # fmt: skip


# 6.2 Grouped heads -----------------------------------------------------------------------------


def check_grouped(grouped_scores: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(62)
    for B, H, G, T, S, D in [(1, 6, 2, 3, 3, 4), (2, 4, 4, 1, 5, 8), (2, 6, 3, 2, 4, 16)]:
        given = f"q of shape {(B, H, T, D)}, k of shape {(B, G, S, D)}"
        q = torch.randn(B, H, T, D, generator=generator)
        k = torch.randn(B, G, S, D, generator=generator)
        got = tensor(call(grouped_scores, q, k), (B, H, T, S), given)
        q, k = q.double(), k.double()
        per = H // G
        keys = torch.stack([k[:, h // per] for h in range(H)], 1)  # head by head
        tiled = torch.stack([k[:, h % G] for h in range(H)], 1)
        right = q @ keys.mT / D**0.5
        hidden = (got < -1e4) & torch.ones(T, S, dtype=torch.bool).triu(1)
        expect_close(
            got, right, given=given, tol=1e-5,
            why="Some score is another. Query head h reads key head h // (H / G); the scale is 1/√D.",
            slips=[
                (q @ tiled.mT / D**0.5,
                 "The key heads are dealt out in turn: 0 1 0 1 0 1. Neighbours share a key head: "
                 "0 0 0 1 1 1. Shapes cannot tell the two apart."),
                (q @ keys.mT, "The scale is missing: the scores are divided by √D."),
                (q @ tiled.mT,
                 "The key heads are dealt out in turn, and the scale is missing too."),
                (q @ keys.mT / D, "You divided by D; the scale is √D."),
                (q @ keys.mT * D**0.5, "You multiplied by √D; divide."),
                (q @ k[:, :1].mT / D**0.5, "All query heads got the first key head."),
                (q @ k.mean(1, keepdim=True).mT / D**0.5,
                 "The key heads were averaged; each group has its own."),
                (q @ keys.flip(1).mT / D**0.5,
                 "The key heads run backwards: the first query heads share key head 0."),
                (torch.where(hidden, got, right),
                 "No mask here: every query may look at every key."),
                (right.softmax(-1), "The softmax is too early: scores are wanted."),
                (right.mT, "Queries and keys are exchanged: rows are queries, columns are keys."),
            ],
        )  # fmt: skip


# 6.3 Rows of a file ----------------------------------------------------------------------------


def check_halves(to_halves: Callable[[Tensor, int], Tensor]) -> None:
    for heads, D, C in [(2, 6, 3), (3, 8, 2), (1, 64, 2)]:
        HD = heads * D
        given = f"rows of shape {(HD, C)}, {heads} head{'s' if heads > 1 else ''} of {D} rows"
        rows = torch.arange(HD * C, dtype=torch.float32).view(HD, C)
        itself = "That calls the course's converter. Reorder the rows yourself."
        with not_calling("half_split", say=itself):
            got = call(to_halves, rows, heads)
        each = rows.double().view(heads, D, C)
        right = torch.cat([each[:, 0::2], each[:, 1::2]], 1).reshape(HD, C)
        back = torch.stack([each[:, : D // 2], each[:, D // 2 :]], 2).reshape(HD, C)
        whole = torch.cat([rows[0::2], rows[1::2]])
        only_first = torch.cat([right[:D], rows[D:].double()])
        swapped = torch.cat([each[:, 1::2], each[:, 0::2]], 1).reshape(HD, C)
        order = torch.cat([torch.arange(0, HD, 2), torch.arange(1, HD, 2)])
        expect_close(
            got, right, given=given, tol=1e-5,
            why="Some row is not where it should be. Write down the order for one head of 6 rows.",
            slips=[
                (back,
                 "That is the way back, from halves to neighbours. The file has neighbours: row 1 "
                 "must go to row D/2 of its head."),
                (whole,
                 "The whole matrix was sorted at once, so heads lost rows to each other. Do it "
                 "within each head."),
                (only_first, "Only the first head was sorted."),
                (swapped, "The second halves came first: row 0 stays row 0."),
                (rows, "Nothing moved."),
                (torch.cat([rows[:, 0::2], rows[:, 1::2]], 1),
                 "The columns were sorted. What turns together are rows: entries of q, not of x."),
                (each.transpose(0, 1).reshape(HD, C),
                 "The heads were exchanged with what is inside them; cut into heads first."),
                (rows[order.argsort()], "Where row i goes and where it comes from are mixed up."),
            ],
        )  # fmt: skip


# 6.4 Parameters by part ------------------------------------------------------------------------


def check_parts(answer: Any) -> None:
    given = "C = 2,048, F = 8,192, L = 16, H = 32, G = 8, D = 64, V = 128,256, tied head"
    C, F, L, H, G, D, V = 2048, 8192, 16, 32, 8, 64, 128_256
    table, attention, ffn = V * C, L * (2 * C * H * D + 2 * C * G * D), L * 3 * C * F
    due = {
        "embedding": table,
        "attention": attention,
        "feed_forward": ffn,
        "prompt_token": attention + ffn,
    }
    slips: dict[str, list[tuple[str, float]]] = {
        "embedding": [
            ("The head is tied: it is the same table, stored once.", 2 * table),
            ("A table has a row of C numbers for each entry of the vocabulary.", V),
        ],
        "attention": [
            ("K and V have G heads, not H.", L * 4 * C * H * D),
            ("That is one layer; there are L.", attention / L),
            ("a key is D numbers wide, and so is a value: K and V are C × G·D.",
             L * (2 * C * H * D + 2 * C * G)),
            ("The output matrix is missing.", L * (C * H * D + 2 * C * G * D)),
            ("That is Q and O; K and V are missing.", L * 2 * C * H * D),
            ("K and V are two matrices.", L * (2 * C * H * D + C * G * D)),
        ],
        "feed_forward": [
            ("SwiGLU has three matrices: gate, up and down.", L * 2 * C * F),
            ("That is one layer; there are L.", ffn / L),
            ("That is one of the three matrices.", L * C * F),
        ],
        "prompt_token": [
            ("Nobody asks for this token's logits, so the head is not read; of the table, the "
             "token takes one row.", attention + ffn + table),
            ("That is the table; the token takes one row of it, and reads all layers.", table),
            ("Attention is read as well.", ffn),
            ("The feed-forward part is read as well.", attention),
        ],
    }  # fmt: skip
    factors = [number_field(answer, name, list(due)) * 1e6 / count for name, count in due.items()]
    for size in (2, 4, 2 / 1.048576, 4 / 1.048576):  # bytes in megabytes or in MiB
        if all(abs(f / size - 1) < 0.015 for f in factors):
            why = f"All four are {size:.3g} times too large. Bytes? Parameters are wanted."
            raise Wrong(why, given=given, got=answer)
    for name, count in due.items():
        got = number_field(answer, name, list(due))
        if abs(got * 1e6 / count - 1) < 0.015:
            continue
        for sentence, wrong in slips[name]:
            if abs(got * 1e6 / wrong - 1) < 0.015:
                raise Wrong(f"{name}: {sentence}", given=given, got=got)
        for power, unit in ((1.0, "millions"), (1e9, "millions, not billions"), (2**20, "10⁶")):
            if abs(got * power / count - 1) < 0.015:
                raise Wrong(f"{name}: right, but give it in {unit}.", given=given, got=got)
        raise Wrong(f"{name} is off by a factor of {got * 1e6 / count:.3g}.", given=given, got=got)


# 6.5 top-p -------------------------------------------------------------------------------------


def _cut(p: Tensor, keep: Tensor) -> Tensor:
    kept = torch.where(keep, p, torch.zeros_like(p))
    return kept / kept.sum()


def check_nucleus(nucleus: Callable[[Tensor, float], Tensor]) -> None:
    for weights, share in [
        ([0.15, 0.5, 0.05, 0.3], 0.6),
        ([0.02, 0.06, 0.9, 0.02], 0.5),
        ([0.3, 0.1, 0.25, 0.2, 0.15], 0.82),
        ([0.1, 0.2, 0.3, 0.4], 0.95),
        ([0.125, 0.25, 0.5, 0.125], 0.5),  # reached exactly: one token
    ]:
        given = f"p = {weights}, share = {share}"
        p = torch.tensor(weights)
        itself = "That calls the course's own filter. Sort, add up, cut."
        with not_calling("top_p", "filtered", "sample", say=itself):
            got = call(nucleus, p, share)
        p = p.double()
        ordered, order = p.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        inside = torch.zeros_like(p, dtype=torch.bool).scatter(0, order, before < share)
        short = torch.zeros_like(inside).scatter(0, order, ordered.cumsum(0) <= share)
        n = int(inside.sum())
        more = torch.zeros_like(inside).scatter(0, order, torch.arange(len(p)) <= n)
        up = torch.zeros_like(inside)
        rising = p.sort()
        up = up.scatter(0, rising.indices, rising.values.cumsum(0) <= share)
        right = _cut(p, inside)
        zero = torch.zeros_like(p)
        expect_close(
            got, right, given=given, tol=1e-5,
            why="Keep the likeliest tokens until their sum reaches the share, then divide by the sum.",
            slips=[
                (_cut(p, short),
                 "The token that crosses the share is left out, so less than the share is kept "
                 "(and nothing at all where the first token is larger)."),
                (torch.where(short, p, zero), "The token that crosses the share is left out."),
                (_cut(p, p.cumsum(0) - p < share),
                 "Not sorted: the sum ran in the order of the ids."),
                (_cut(p, p.cumsum(0) <= share),
                 "Not sorted, and the token that crosses is left out."),
                (_cut(p, up), "Sorted from the smallest: that keeps the tail."),
                (torch.where(inside, p, zero),
                 "The right tokens, but they do not sum to 1: divide by what is left."),
                (_cut(torch.ones_like(p), inside),
                 "The right tokens, made equally likely: keep their proportions."),
                (_cut(p, more), "One token too many: stop once the share is reached."),
                (torch.where(inside, p, torch.full_like(p, -torch.inf)).softmax(0),
                 "A softmax of probabilities: divide by their sum instead."),
                (_cut(ordered, before < share),
                 "The values came back in sorted order; each belongs at its own id."),
                (_cut(p, p >= share),
                 "Each token was compared with the share alone; the sum of the likelier ones "
                 "decides."),
                (_cut(p, p >= share * p.max()),
                 "That compares each token with a part of the largest: min-p, another filter."),
                (p, "Nothing was cut."),
            ],
        )  # fmt: skip
    given = "p = four times 0.25, share = 0.5"
    got = tensor(call(nucleus, torch.full((4,), 0.25), 0.5), (4,), given).sort().values
    if not torch.allclose(got, torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=torch.float64)):
        raise Wrong(
            "Equal tokens: the smallest set has two of the four, either two. Cut by place in the "
            "order; a limit on the probability itself keeps or drops all four.",
            given=given,
            got=got,
        )


# 6.6 Perplexity --------------------------------------------------------------------------------


def check_perplexity(perplexity_of: Callable[[Tensor, Tensor, Tensor], float]) -> None:
    generator = torch.Generator().manual_seed(66)
    for lengths, V in [([5], 7), ([6, 3], 11), ([2, 4, 7], 5)]:
        B, T = len(lengths), max(lengths)
        given = f"logits of shape {(B, T, V)}, texts of {' and '.join(map(str, lengths))} tokens"
        logits = 2 * torch.randn(B, T, V, generator=generator)
        ids = torch.randint(V, (B, T), generator=generator)
        real = torch.arange(T) < torch.tensor(lengths)[:, None]  # (B, T)
        got = call(perplexity_of, logits, ids, real)
        log_p = logits.double().log_softmax(-1)
        loss = -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
        same = -log_p.gather(-1, ids[..., None])[..., 0]
        counts = real[:, 1:]
        mean = loss[counts].mean()
        rows = torch.stack([row[keep].mean() for row, keep in zip(loss, counts, strict=True)])
        back = -log_p[:, 1:].gather(-1, ids[:, :-1, None])[..., 0]  # places 1 … speak of 0 …
        raw = -logits.double()[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        expect_close(
            got, mean.exp(), given=given, tol=1e-5,
            why="Not yet. Shift by one, keep the real tokens, take the mean of −log p, then exp.",
            slips=[
                (same[real].mean().exp(),
                 "Each token was scored by the logits at its own place, which have already read "
                 "it. The logits at t are about token t + 1."),
                (same.mean().exp(), "No shift, and the padding was counted as well."),
                (back[counts].mean().exp(),
                 "Shifted the wrong way: the logits at t were asked for token t - 1, and are about "
                 "token t + 1."),
                (back[real[:, :-1]].mean().exp(),
                 "Shifted the wrong way: the logits at t were asked for token t - 1, and are about "
                 "token t + 1."),
                (back.mean().exp(), "Shifted the wrong way, and the padding was counted."),
                ((loss * counts).mean().exp(),
                 "The padding's losses were set to 0, and its places counted all the same: divide "
                 "by the number of *real* ones."),
                (loss.mean().exp(), "The padding was counted: only real tokens are scored."),
                (loss[real[:, :-1]].mean().exp(),
                 "The mask is one place off: ask whether the *predicted* token is real."),
                (mean, "That is the mean loss; its exponential is the perplexity."),
                (mean / math.log(2),
                 "That is the loss in bits; the perplexity is 2 to that power."),
                (2**mean, "Bases are mixed: the loss is in nats, so the base is e, not 2."),
                ((mean / math.log(2)).exp(), "Bases are mixed: e to the power of bits."),
                (rows.exp().mean(),
                 "The mean of the texts' perplexities is another number: take the mean loss of all "
                 "tokens first."),
                (rows.mean().exp(),
                 "Each text counted the same, long or short. Each token counts the same."),
                ((loss[counts].sum() / real.sum()).exp(),
                 "Divided by all tokens; the first of each text is not scored."),
                (loss[counts].sum().exp(), "The sum of losses was not divided by their number."),
                (raw[counts].mean().exp(),
                 "Logits are no log-probabilities: a log-softmax is missing."),
                ((-mean).exp(), "The sign is turned: that is the inverse."),
            ],
        )  # fmt: skip


# 6.7 Two samplers ------------------------------------------------------------------------------

Sampler = Callable[[Tensor, int], Tensor]
_T, _P = 0.7, 0.9
_HONEST = 60  # right pairs: one alarm in twenty would hardly ever pass them all


def _claimed(logits: Tensor) -> Tensor:
    """What both samplers of the exercise say they draw from: temperature 0.7, then top-p 0.9."""
    p = (logits.double() / _T).softmax(-1)
    return _cut(p, _inside(p))


def _inside(p: Tensor) -> Tensor:
    """Which tokens top-p keeps, the one that crosses included."""
    ordered, order = p.sort(descending=True, stable=True)
    keep = ordered.cumsum(0) - ordered < _P
    return torch.zeros_like(p, dtype=torch.bool).scatter(0, order, keep)


def _crossing_lost(logits: Tensor) -> Tensor:
    p = (logits.double() / _T).softmax(-1)
    inside = _inside(p)
    if inside.sum() > 1:
        inside[torch.where(inside, p, torch.inf).argmin()] = False
    return _cut(p, inside)


def _temperature_last(logits: Tensor) -> Tensor:
    inside = _inside(logits.double().softmax(-1))
    return _cut((logits.double() / _T).softmax(-1), inside)


def _no_temperature(logits: Tensor) -> Tensor:
    p = logits.double().softmax(-1)
    return _cut(p, _inside(p))


def _no_cut(logits: Tensor) -> Tensor:
    return (logits.double() / _T).softmax(-1)


def _warmer(logits: Tensor) -> Tensor:
    p = (logits.double() / 0.8).softmax(-1)
    return _cut(p, _inside(p))


def _drawn_at_one(logits: Tensor) -> Tensor:
    """The right nucleus, of temperature 0.7, drawn from at temperature 1."""
    return _cut(logits.double().softmax(-1), _inside((logits.double() / _T).softmax(-1)))


def _same_mean(logits: Tensor) -> Tensor:
    """Right tokens and a right mean id: the outer two of the three likeliest lend to the inner one."""
    p = _claimed(logits)
    if int((p > 0).sum()) < 3:
        return p
    low, mid, high = sorted(p.topk(3).indices.tolist())
    from_low, from_high = (high - mid) / (high - low), (mid - low) / (high - low)
    moved = 0.5 * torch.minimum(p[low] / from_low, p[high] / from_high)
    p[low] -= moved * from_low
    p[high] -= moved * from_high
    p[mid] += moved
    return p


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "greedy": (lambda z: _claimed(z).argmax() == torch.arange(len(z)),
               "it always takes the likeliest token"),
    "no temperature": (_no_temperature, "it forgets the temperature"),
    "no cut": (_no_cut, "it forgets top-p; that shows in rare tokens only, so draw many"),
    "crossing lost": (_crossing_lost, "it leaves out the token that crosses the 0.9"),
    "temperature last": (_temperature_last, "it cuts first and sharpens afterwards; on logits far "
                         "apart or nearly equal both orders keep the same tokens"),
    "warmer": (_warmer, "its temperature is 0.8: the same tokens, in other proportions"),
    "drawn at 1": (_drawn_at_one, "it keeps the right tokens always, and draws among them at "
                   "temperature 1: compare how often, not only which"),
    "same mean": (_same_mean, "its tokens and even its mean id are right: compare each token's "
                  "count"),
}  # fmt: skip


def _sampler(distribution: Callable[[Tensor], Tensor], seed: int, way: str) -> Sampler:
    """A sampler of a distribution that uses its random numbers in one of three ways."""
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor, n: int) -> Tensor:
        """n token ids (n,) drawn from the filtered distribution of logits (V,)."""
        logits = torch.as_tensor(logits, dtype=torch.float64)
        if logits.ndim != 1 or not 1 <= int(n) <= 5_000_000:
            raise ValueError("a sampler takes logits of shape (V,) and n from 1 to 5,000,000")
        p = distribution(logits).double()
        n = int(n)
        if way == "inverse":
            u = torch.rand(n, generator=generator, dtype=torch.float64)
            return torch.searchsorted(p.cumsum(0), u, right=True).clamp_max(len(p) - 1)
        if way == "backwards":  # the same, from the other end
            u = torch.rand(n, generator=generator, dtype=torch.float64)
            back = torch.searchsorted(p.flip(0).cumsum(0), u, right=True)
            return (len(p) - 1 - back).clamp_min(0)
        return torch.multinomial(p, n, replacement=True, generator=generator)

    return draw


def _yes_or_no(answer: Any) -> bool:
    value = answer.item() if hasattr(answer, "item") and getattr(answer, "size", None) else answer
    if not isinstance(value, bool):
        raise Wrong("Return True (they differ) or False (no difference was found).", got=answer)
    return value


def check_tell_apart(tell_apart: Callable[[Sampler, Sampler], bool]) -> None:
    ways = ["inverse", "backwards", "multinomial"]
    alarms = []
    for i in range(_HONEST):
        a, b = (_sampler(_claimed, 670 + 10 * i + j, ways[(i + j) % 3]) for j in range(2))
        given = "two right samplers that use their random numbers in different ways"
        alarms.append(_yes_or_no(call(tell_apart, a, b)))
        if sum(alarms) == 9:  # enough is seen
            break
    if all(alarms):
        raise Wrong(
            "Two right samplers were called different, every time. They never draw the same "
            "sequence, so compare how often each token comes, and allow for chance.",
            given=given,
        )
    if any(alarms):
        raise Wrong(
            f"Two right samplers were called different {sum(alarms)} times in {len(alarms)}. Counts "
            "differ by chance: how large a difference would it take to surprise you?",
            given=given,
        )
    missed = []
    for i, (distribution, what) in enumerate(FAULTS.values()):
        a = _sampler(_claimed, 6700 + i, ways[i % 3])
        b = _sampler(distribution, 6800 + i, ways[(i + 1) % 3])
        for pair in ((a, b), (b, a)):
            if not _yes_or_no(call(tell_apart, *pair)):
                missed.append(what)
                break
    if len(missed) == len(FAULTS):
        raise Wrong(
            "No difference is ever found, not even from a sampler that always takes the likeliest "
            "token. Count what each draws, on logits that are not all equal."
        )
    if missed:
        raise Wrong(
            f"Missed {len(missed)} of {len(FAULTS)} faulty samplers, this one first: {missed[0]}. "
            "More draws, or other logits?"
        )


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "6.1",
        "RMSNorm",
        1,
        check_rms_norm,
        (
            "Read the formula from the inside out: square, mean, eps, root.",
            "The mean runs over the last axis; keepdim=True keeps it, so that it divides x.",
            "x / ((x**2).mean(-1, keepdim=True) + eps).sqrt(), then times weight.",
        ),
        "No mean to subtract, no bias to add: one reduction where LayerNorm has two.",
    ),
    Exercise(
        "6.2",
        "Grouped heads",
        2,
        check_grouped,
        (
            "Which key head does query head 0 read, and which the last one?",
            "Query head h reads key head h // (H // G): neighbours share.",
            "k.repeat_interleave(H // G, dim=1), or give q one more axis: (B, G, H/G, T, D).",
            "q.view(B, G, H // G, T, D) @ k[:, :, None].mT / D**0.5, then back to (B, H, T, S).",
        ),
        "Giving q one more axis (B, G, H/G, T, D) copies no key: in decode keys are what is read.",
    ),
    Exercise(
        "6.3",
        "Rows of a file",
        2,
        check_halves,
        (
            "One head of six rows: 0 1 2 3 4 5 must become 0 2 4 1 3 5.",
            "Cut into heads first: rows.view(heads, D, C).",
            "Even rows are [:, 0::2], odd rows [:, 1::2]; one after the other, along axis 1.",
        ),
        "A permutation of rows, done once, costs nothing at run time; done wrong, it costs a week.",
    ),
    Exercise(
        "6.4",
        "Parameters by part",
        1,
        check_parts,
        (
            "One matrix at a time: its shape is (out, in). Then times L.",
            "Q and O are C × H·D; K and V are C × G·D; the feed-forward part has three C × F.",
            "A prompt token that is not the last needs all layers, one row of the table, no head.",
        ),
        "Two thirds sit in the feed-forward part; the table is a fifth here too, for V is large.",
    ),
    Exercise(
        "6.5",
        "top-p",
        2,
        check_nucleus,
        (
            "Sort from the likeliest down, and keep the order to find the way back.",
            "A token stays if the sum of those *before* it is still below the share.",
            "ordered.cumsum(0) - ordered < share; put the answer back with order: kept[order] = …",
            "At last divide by the sum of what was kept.",
        ),
        "The sum before a token, not up to it: the whole difference is one token, often the best.",
    ),
    Exercise(
        "6.6",
        "Perplexity",
        2,
        check_perplexity,
        (
            "The logits at place t are about which token?",
            "logits[:, :-1] against ids[:, 1:]; and real[:, 1:] says which of them count.",
            "−log p of each due token: log_softmax, then gather; mean over those that count; exp.",
        ),
        "Four lines, and each has a wrong version in some published figure.",
    ),
    Exercise(
        "6.7",
        "Interview: tell two samplers apart",
        3,
        check_tell_apart,
        (
            "One seed proves nothing: right samplers differ in it, wrong ones may agree.",
            "Draw many from each on fixed logits, count each token, compare the counts.",
            "Chi-square of two rows of counts: Σ (count − mean)² / mean, degrees = tokens seen − 1.",
            "torch.special.gammaincc(degrees / 2, chi2 / 2) is the probability by chance; say True "
            "only below 1e-6, and use logits of many different sizes.",
        ),
        "A test with known odds of a false alarm, and logits chosen so that each fault would show.",
    ),
)
