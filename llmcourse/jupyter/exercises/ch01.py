"""Checks of chapter 01: each knows the typical mistakes by computing what they would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmcourse.jupyter.exercises.answers import field, number_field, parts, tensor
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.watch import not_calling

# 1.1 Two tokens by hand ------------------------------------------------------------------------


def _pair(value: Any, name: str) -> list[float]:
    try:
        pair = [float(x) for x in value]
    except (TypeError, ValueError):
        pair = []
    if len(pair) != 2:
        raise Wrong(f"{name!r} should be two numbers, like [0.5, 0.5].", got=value)
    return pair


def _near(a: Sequence[float], b: Sequence[float], tol: float = 0.006) -> bool:
    return all(abs(x - y) <= tol for x, y in zip(a, b, strict=True))


def check_by_hand(answer: Any) -> None:
    given = "q = (2, 0, 0, 0), k1 = (ln 3, 0, 5, 0), k2 = (0, 0, 0, 1), v1 = (8, 0), v2 = (0, 4)"
    keys = ("weights", "output")
    weights = _pair(field(answer, "weights", keys), "weights")
    odds = math.sqrt(3) / (1 + math.sqrt(3))
    slips: list[tuple[str, list[float]]] = [
        ("Those are the scores before the division by √d.", [2 * math.log(3), 0]),
        ("Those are the scaled scores; the softmax is still to come.", [math.log(3), 0]),
        ("The exponentials are right; now divide by their sum.", [3, 1]),
        ("The scale is missing: divide q·k by √d, and d is 4 here.", [0.9, 0.1]),
        ("You divided by d = 4. The scale is √d = 2.", [odds, 1 - odds]),
        ("Those are the scores divided by their sum; softmax takes exponentials first.", [1, 0]),
        ("The two weights are swapped: the first belongs to k1.", [0.25, 0.75]),
        ("Equal weights would need equal scores, and k1 fits q better than k2.", [0.5, 0.5]),
    ]
    for sentence, wrong in slips:
        if _near(weights, wrong):
            raise Wrong(sentence, given=given, got=weights)
    if abs(sum(weights) - 1) > 0.006:
        raise Wrong("Weights are a distribution: they sum to 1.", given=given, got=weights)
    if not _near(weights, [0.75, 0.25]):
        raise Wrong("The weights are not right yet.", given=given, got=weights)
    output = _pair(field(answer, "output", keys), "output")
    if _near(output, [8, 4]):
        raise Wrong("The values were added; weigh them first.", given=given, got=output)
    if _near(output, [4, 2]):
        raise Wrong("That is the plain mean of the values.", given=given, got=output)
    if not _near(output, [6, 1], 0.05):
        why = "The weights are right. The output is 0.75 of v1 plus 0.25 of v2, entry by entry."
        raise Wrong(why, given=given, got=output)


# 1.2 Causal attention --------------------------------------------------------------------------


def check_causal(causal_attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(12)
    for B, H, T, D, size in [(1, 1, 3, 4, 1), (2, 3, 5, 8, 1), (1, 2, 1, 16, 1), (1, 1, 6, 4, 200)]:
        given = f"random q, k, v of shape {(B, H, T, D)}"
        given += ", with scores above 100" if size > 1 else ""
        q, k, v = (torch.randn(B, H, T, D, generator=generator) for _ in range(3))
        q = q * size
        itself = "That is SDPA itself. Build it from matrix products and a softmax."
        with not_calling("scaled_dot_product_attention", say=itself):
            got = tensor(call(causal_attention, q, k, v), (B, H, T, D), given)
        if size > 1 and not got.isfinite().all():
            why = "It overflows: exp of a score above 88 is infinite in float32. "
            raise Wrong(why + "Take the row's maximum away first, or use softmax.", given=given)
        if got.isnan().any():
            diagonal = "The diagonal is masked out: token 0 sees nothing at all, and 0/0 is nan."
            raise Wrong(diagonal + " A token may look at itself.", given=given, got="nan")
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        raw = (q @ k.mT).double()
        s = raw / D**0.5
        hidden = s.masked_fill(future, -torch.inf)
        value = v.double()
        seen = s.softmax(-1)
        expect_close(
            got, hidden.softmax(-1) @ value, given=given, tol=1e-4, why="It differs from SDPA.",
            slips=[
                (raw.masked_fill(future, -torch.inf).softmax(-1) @ value,
                 "The scale is missing: divide the scores by √D."),
                ((raw / D).masked_fill(future, -torch.inf).softmax(-1) @ value,
                 "You divided by D; the scale is √D."),
                (seen @ value, "Nothing is masked: a query still sees the keys after it."),
                (seen.masked_fill(future, 0) @ value,
                 "The mask came after the softmax, so the rows no longer sum to 1. "
                 "Hide the scores before the softmax."),
                (hidden.softmax(-2) @ value,
                 "The softmax runs over the queries. Each query shares its weights out among "
                 "the keys: the last axis."),
                (s.softmax(-2) @ value,
                 "The softmax runs over the queries, and nothing is masked: normalise over the "
                 "keys, the last axis."),
                (s.masked_fill(future, 0).softmax(-1) @ value,
                 "The scores were set to 0 where they should be hidden, and exp(0) is 1, not 0. "
                 "Use -inf."),
                (s.masked_fill(future.T, -torch.inf).softmax(-1) @ value,
                 "The mask is upside down: each query sees only itself and what comes after."),
            ],
        )  # fmt: skip


# 1.3 Jacobian times vector ---------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def check_jvp(softmax_jvp: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(13)
    for R, N in [(4, 6), (1, 3), (2, 512)]:
        given = f"p and t of shape {(R, N)}, every row of p a softmax"
        z = torch.randn(R, N, generator=generator, dtype=torch.float64)
        t = torch.randn(R, N, generator=generator, dtype=torch.float64) + 0.5
        p = z.softmax(-1)
        with _Largest() as largest:
            got = call(softmax_jvp, p, t)
        expected = torch.func.jvp(lambda x: x.softmax(-1), (z,), (t,))[1]
        inner = (p * t).sum(-1, keepdim=True)
        expect_close(
            got, expected, given=given, tol=1e-6, why="It is not J t.",
            slips=[
                (p * t,
                 "Only the diagonal is there: a row also loses what the others gain. "
                 "Subtract the mean of t under p."),
                (p * (inner - t),
                 "The sign is turned: it is t minus its mean, not the mean minus t."),
                (p * (t + inner), "The plus should be a minus: J = diag(p) − p pᵀ."),
                (p * (t - t.mean(-1, keepdim=True)),
                 "You subtracted the plain mean of t. It is the mean weighted by p."),
                (t - inner, "The factor p in front is missing."),
                (p * t - inner,
                 "The mean must be multiplied by p too: p times (t minus the mean)."),
                (p * (1 - p) * t,
                 "That is only the diagonal of J: the other entries of a row count too."),
                (p * (t - (p * t).sum()),
                 "The sum ran over all rows. Each row has a softmax of its own."),
                (p * (t - (p * t).sum(0, keepdim=True)),
                 "The sum ran down the columns; a softmax lives in a row."),
            ],
        )  # fmt: skip
        if R == 2 and largest.numel >= N * N:
            why = "Right, but a matrix of N × N was built on the way. p * (…) needs vectors only."
            raise Wrong(why, given=given, expected=f"at most {R * N} numbers at once")


# 1.4 Merge two blocks --------------------------------------------------------------------------

Block = tuple[Tensor, Tensor, Tensor]


def _block(scores: Tensor, v: Tensor) -> Block:
    m = scores.amax(-1)
    w = (scores - m[:, None]).nan_to_num(nan=-torch.inf, neginf=-torch.inf).exp()
    return m, w.sum(-1), w @ v


def _merged_by(a: Block, b: Block, scale_a: Tensor, scale_b: Tensor, m: Tensor) -> Block:
    return (
        m,
        a[1] * scale_a + b[1] * scale_b,
        a[2] * scale_a[:, None] + b[2] * scale_b[:, None],
    )


def check_merge(merge: Callable[[Block, Block], Block]) -> None:
    generator = torch.Generator().manual_seed(14)
    T, N, D = 4, 6, 3
    for name, shift in [
        ("small scores", 0.0),
        ("scores near 1,000", 1000.0),
        ("an empty block", 0),
    ]:
        given = f"two blocks of {N} keys for {T} queries, {name}"
        scores = 3 * torch.randn(T, 2 * N, generator=generator, dtype=torch.float64) + shift
        if name == "an empty block":
            scores[:, N:] = -torch.inf
        v = torch.randn(2 * N, D, generator=generator, dtype=torch.float64)
        a, b = _block(scores[:, :N], v[:N]), _block(scores[:, N:], v[N:])
        got = call(merge, a, b)
        found = zip(parts(got, "mso", given), [(T,), (T,), (T, D)], "mso", strict=True)
        m, s, o = (tensor(x, shape, given, name) for x, shape, name in found)
        top = torch.maximum(a[0], b[0])
        one = torch.ones_like(top)
        if not torch.allclose(m, top):
            why = "The new maximum is the larger of the two, query by query."
            if torch.allclose(m, a[0]):
                why = "The maximum is not carried: a larger score in block b is ignored. " + why
            raise Wrong(why, given=given, expected=top, got=m)
        if m.isfinite().all() and not (s.isfinite().all() and o.isfinite().all()):
            why = "It overflows: never take exp(m) itself, only exp of a difference to the new m."
            raise Wrong(why, given=given, got=s)
        ea, eb = (a[0] - top).exp(), (b[0] - top).exp()
        right = _merged_by(a, b, ea, eb, top)
        _, plain_s, plain_o = _merged_by(a, b, one, one, top)
        if not torch.allclose(s, right[1]):
            why = "The sums do not match."
            if torch.allclose(s, plain_s):
                why = "The sums are not rescaled: each was taken against its own maximum."
            elif torch.allclose(s, a[1] / ea + b[1] / eb):
                why = "The factor is upside down: it is exp(old m − new m), at most 1."
            raise Wrong(why, given=given, expected=right[1], got=s)
        if not torch.allclose(o, right[2]):
            why = "m and s are right, o is not."
            if torch.allclose(o, plain_o):
                why = "o is not rescaled: it needs the same factors as s."
            elif torch.allclose(o, right[2] / right[1][:, None]):
                why = "You divided by s already. Do that once, after the last block."
            raise Wrong(why, given=given, expected=right[2], got=o)


# 1.5 RoPE --------------------------------------------------------------------------------------


def _turn(
    x: Tensor, positions: Tensor, base: float, *, adjacent: bool = False, power: float = 2.0
) -> Tensor:
    """Rotary positions with complex numbers, so that the check shares no line with the answer."""
    D = x.shape[-1]
    x, positions = x.double(), positions.double()
    angle = positions[:, None] * base ** (-power * torch.arange(D // 2, dtype=torch.float64) / D)
    a, b = (x[:, 0::2], x[:, 1::2]) if adjacent else (x[:, : D // 2], x[:, D // 2 :])
    z = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    if adjacent:
        return torch.stack([z.real, z.imag], -1).flatten(-2)
    return torch.cat([z.real, z.imag], -1)


def check_rope(rope: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    generator = torch.Generator().manual_seed(15)
    for positions, D, base in [([0, 1, 2], 4, 10_000.0), ([7, 3, 40, 41], 8, 100.0)]:
        T = len(positions)
        given = f"x of shape {(T, D)}, positions {positions}, base {base:,.0f}"
        x = torch.randn(T, D, generator=generator, dtype=torch.float64)
        at = torch.tensor(positions)
        got = tensor(call(rope, x, at, base), (T, D), given)
        if not torch.allclose(got.norm(dim=-1), x.norm(dim=-1), rtol=1e-4):
            why = "A turn keeps lengths, and yours does not: check a·cos − b·sin and b·cos + a·sin."
            raise Wrong(why, given=given, expected=x.norm(dim=-1), got=got.norm(dim=-1))
        expected, arange = _turn(x, at, base), torch.arange(T)
        expect_close(
            got, expected, given=given, tol=1e-4, why="Some pair turns by another angle.",
            slips=[
                (_turn(x, at, base, adjacent=True),
                 "You turned the neighbours (0, 1), (2, 3) …, as the paper does. This model "
                 "pairs i with i + D/2."),
                (_turn(x, at + 1, base),
                 "Positions are one too many: position 0 must not turn at all. (All scores would "
                 "agree, until they meet a key cached by another program.)"),
                (_turn(x, at - 1, base),
                 "Positions are one too few: position 1 turns by one step."),
                (_turn(x, -at, base), "It turns clockwise: check the sign of sin."),
                (_turn(x, at, base, power=1.0),
                 "The frequencies fall too slowly: pair i has base^(−2i/D)."),
                (_turn(x, at, base, power=-2.0),
                 "The frequencies grow with i: the exponent is negative."),
                (_turn(x, at, base, power=0.0),
                 "All pairs turn at the same speed: pair i has base^(−2i/D)."),
                (_turn(x, arange, base), "You counted rows instead of using `positions`."),
                (_turn(x, at, 10_000.0), "You ignored `base`."),
                (_turn(x, at, base, power=2 * D / 64), "D is the width of x, not 64."),
                (torch.stack([expected[:, : D // 2], expected[:, D // 2 :]], -1).flatten(-2),
                 "The angles are right, the entries stand in the wrong places: put the two "
                 "halves one after the other."),
                (x, "Nothing turned."),
            ],
        )  # fmt: skip


# 1.6 FLOPs and bytes ---------------------------------------------------------------------------


def check_cost(answer: Any) -> None:
    T, H, G, D = 8192, 9, 3, 64
    given = "one layer of SmolLM2: T = 8,192, H = 9, G = 3, D = 64, float32"
    right = {"flops": 4 * T * T * D * H, "score_bytes": 4 * H * T * T, "kv_bytes": 8 * G * T * D}
    slips: dict[str, list[tuple[str, float]]] = {
        "flops": [
            ("That is one of the two products; weights times V costs as much as QKᵀ, or you "
             "counted a multiplication with its addition as one.", 2 * T * T * D * H),
            ("Factors of 2 are missing: two products, and each step multiplies and adds.",
             T * T * D * H),
            ("That is one head; there are H of them.", 4 * T * T * D),
            ("The products run for every query head: H, not G.", 4 * T * T * D * G),
            ("That is linear in T; every query meets every key.", 4 * T * D * H),
            ("You skipped the masked half. Count it here: the plain code computes it.",
             2 * T * (T + 1) * D * H),
        ],
        "score_bytes": [
            ("That is one head; all H heads have scores.", 4 * T * T),
            ("Every query head has its own scores: H, not G.", 4 * G * T * T),
            ("That is the count of scores; a float32 has 4 bytes.", H * T * T),
            ("That is for 2 bytes a value; float32 has 4.", 2 * H * T * T),
            ("Those are bits.", 32 * H * T * T),
            ("D has gone by then: a score is one number for each pair.", 4 * H * T * T * D),
        ],
        "kv_bytes": [
            ("That is K or V; keep both.", 4 * G * T * D),
            ("Keys and values exist once for each of the G groups, not for every query head.",
             8 * H * T * D),
            ("That is the count of numbers; a float32 has 4 bytes.", 2 * G * T * D),
            ("K and V are linear in T.", 8 * G * T * T),
        ],
    }  # fmt: skip
    for name, due in right.items():
        got = number_field(answer, name, list(right))
        if abs(got / due - 1) < 0.02:
            continue
        for sentence, wrong in slips[name]:
            if abs(got / wrong - 1) < 0.02:
                raise Wrong(f"{name}: {sentence}", given=given, got=got)
        for power in (1e3, 1e6, 1e9, 2**10, 2**20, 2**30):
            if abs(got * power / due - 1) < 0.02:
                raise Wrong(f"{name}: right, but give it in plain units.", given=given, got=got)
        raise Wrong(f"{name} is off by a factor of {got / due:.3g}.", given=given, got=got)


# 1.7 Why √d and not d --------------------------------------------------------------------------


def check_interview(answer: Any) -> None:
    keys = ("independent", "aligned", "divided_by_d", "not_divided")
    independent = number_field(answer, "independent", keys)
    if independent == 1:
        why = "1 would be the variance. The standard deviation is its root."
        raise Wrong(f"independent: {why}", got=independent)
    if independent != 0.5:
        why = "add d terms of variance 1 each; the variances add, the deviations do not."
        raise Wrong(f"independent: {why}", got=independent)
    aligned = number_field(answer, "aligned", keys)
    if aligned == 0.5:
        why = "now every term is a square, about +1 each: nothing cancels."
        raise Wrong(f"aligned: {why}", got=aligned)
    if aligned != 1:
        why = "q·q is a sum of d squares, each 1 on average."
        raise Wrong(f"aligned: {why}", got=aligned)
    extremes = {
        "divided_by_d": ("uniform", "the scores shrink like 1/√d, so all become equal"),
        "not_divided": ("one-hot", "the scores spread like √d, so the largest takes all"),
    }
    for name, (due, why) in extremes.items():
        got = str(field(answer, name, keys)).strip().lower().replace("_", "-").replace(" ", "-")
        if got not in ("uniform", "one-hot", "unchanged"):
            raise Wrong(f"{name}: choose 'uniform', 'one-hot' or 'unchanged'.", got=got)
        if got != due:
            raise Wrong(f"{name}: think of d → ∞ with independent q and k: {why}.", got=got)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "1.1",
        "Two tokens by hand",
        1,
        check_by_hand,
        (
            "Four steps: two dot products, the scale, the softmax, the weighted sum.",
            "q·k1 = 2 ln 3 and q·k2 = 0. Divide both by √4.",
            "The scaled scores are ln 3 and 0, so the exponentials are 3 and 1.",
        ),
        "The 5 in k1 met a 0 in q: what a query does not ask for, a key cannot offer.",
    ),
    Exercise(
        "1.2",
        "Causal attention equal to SDPA",
        2,
        check_causal,
        (
            "The order matters: scores, scale, mask, softmax, values.",
            "A hidden score must become 0 after the exponential: what number has exp(x) = 0?",
            "torch.ones(T, T, dtype=torch.bool).triu(1) marks what lies in the future.",
            "scores.masked_fill(future, -torch.inf).softmax(-1) @ v",
        ),
        "Five operations, and equal to the library: the rest of this course makes them fast.",
    ),
    Exercise(
        "1.3",
        "Jacobian times vector, without the matrix",
        2,
        check_jvp,
        (
            "J = diag(p) − p pᵀ. Multiply by t on paper first.",
            "p pᵀ t is p times a single number: p·t.",
            "That number is one for each row: sum over the last axis with keepdim=True.",
        ),
        "N numbers instead of N²: the backward pass of FlashAttention rests on this line.",
    ),
    Exercise(
        "1.4",
        "Merge two softmax blocks",
        3,
        check_merge,
        (
            "Both blocks must speak of the same maximum before anything may be added.",
            "The common maximum is torch.maximum(m_a, m_b), query by query.",
            "What was taken against the old m is corrected by exp(old m − new m).",
            "The same factor corrects s and every column of o: factor[:, None] * o.",
        ),
        "Any order, any grouping, same answer: so blocks can be spread over cores, cards or time.",
    ),
    Exercise(
        "1.5",
        "Rotary positions",
        2,
        check_rope,
        (
            "Split x into two halves a and b: pair i is (a[:, i], b[:, i]).",
            "The angle of pair i at position p is p · base^(−2i/D): a table of shape (T, D/2).",
            "A turn: a cos − b sin goes to the first half, b cos + a sin to the second.",
        ),
        "Two lines of trigonometry and no parameters; only the distance of two tokens is left "
        "in their score.",
    ),
    Exercise(
        "1.6",
        "FLOPs and bytes at 8,192 tokens",
        1,
        check_cost,
        (
            "Count for one query and one key first: a dot product of length D is 2D operations.",
            "Two products, T² pairs, H heads: 2 · 2D · T² · H.",
            "Scores: H T² numbers. Keys and values: 2 G T D numbers. Four bytes each.",
        ),
        "The scores of one layer need far more memory than its keys and values; they are also "
        "the one thing no one needs to keep.",
    ),
    Exercise(
        "1.7",
        "Interview: why √d and not d?",
        3,
        check_interview,
        (
            "Run the cell of the histograms again in your head: what was printed beside each d?",
            "Independent: variances add. Aligned: q·q = Σ qᵢ², about 1 for each entry.",
            "A spread of √d, divided by d, leaves 1/√d; divided by nothing, it grows.",
        ),
        "√d is right for strangers, d for friends: at the start of training q and k are strangers.",
    ),
)  # fmt: skip
