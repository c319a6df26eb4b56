"""Checks of chapter 02: backward passes by hand, against autograd and against typical slips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcourse.jupyter.exercises.answers import number_field, parts
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.compare import Slips, call_as, short
from llmcourse.jupyter.exercises.watch import not_calling

_ASKED = "That asks autograd. Here you are autograd: use matrix products and sums only."
_by_hand = partial(not_calling, "grad", "backward", say=_ASKED)


# 2.1 Linear layer ------------------------------------------------------------------------------


def check_linear(linear_backward: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(21)
    for B, T, K, N in [(2, 3, 4, 5), (3, 2, 4, 4), (1, 1, 3, 2)]:
        given = f"x of shape {(B, T, K)}, W of shape {(N, K)}, dy of shape {(B, T, N)}"
        x, W, dy = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in [(B, T, K), (N, K), (B, T, N)]
        )
        with _by_hand():
            got = call(linear_backward, x, W, dy)
        dx, dW, db = parts(got, ("dx", "dW", "db"), given, "tensors")
        right = torch.einsum("btn,btk->nk", dy, x)
        one_each = torch.einsum("btn,btk->bnk", dy, x)
        expect_close(
            dx, torch.einsum("btn,nk->btk", dy, W), given=given, name="dx", tol=1e-4,
            slips=[
                (dy @ W.T if N == K else None,
                 "The transpose is one too many: y used Wᵀ, so dy goes back through W. With a "
                 "square W the shapes do not tell."),
                (torch.einsum("btn,nk->btk", dy, W) / (B * T),
                 "The batch is already averaged in the loss, if at all; do not divide again."),
            ],
        )  # fmt: skip
        expect_close(
            dW, right, given=given, name="dW", tol=1e-4,
            slips=[
                (right.T, "It is transposed: dW has the shape of W, (N, K)."),
                (right / B, "The batch was averaged. If the loss is a mean, dy holds that "
                            "already; dW is a plain sum over all rows."),
                (right / (B * T), "It was averaged over the rows. If the loss is a mean, dy holds "
                                  "that already; dW is a plain sum."),
                (one_each, "There is one gradient for each sequence. W is shared by all of them: "
                           "add them up."),
                (one_each.mT, "There is one (transposed) gradient for each sequence. W is shared "
                              "by all: add them up."),
                (one_each.sum(0) * 0 + x.sum((0, 1))[None] * dy.sum((0, 1))[:, None],
                 "The sums were taken before the product. Every row's dy meets its own x only."),
            ],
        )  # fmt: skip
        expect_close(
            db, dy.sum((0, 1)), given=given, name="db", tol=1e-4,
            slips=[
                (dy, "b is added to every row, so its gradient is the sum over all rows."),
                (dy.sum(0), "The sum ran over the batch only; the positions T share b as well."),
                (dy.sum(1), "The sum ran over the positions only; the batch shares b as well."),
                (dy.mean((0, 1)), "It is a sum over the rows, not their mean."),
                (dy.sum(-1), "The sum ran over the outputs. b has one entry for each output."),
            ],
        )  # fmt: skip


# 2.2 Finite differences ------------------------------------------------------------------------


def _toy(scale: float) -> tuple[Callable[[Mapping[str, Tensor]], float], dict[str, Tensor]]:
    """A loss that is a plain float (so nothing but differences can judge it), and its weights."""
    generator = torch.Generator().manual_seed(22)

    def fresh(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = {"A": fresh(3, 3), "b": fresh(3), "C": fresh(2, 3), "unused": fresh(2)}
    x, m = fresh(4, 3), fresh(2, 4)

    def loss(w: Mapping[str, Tensor]) -> float:
        hidden = torch.tanh(x @ w["A"].T + w["b"])
        return float(scale * ((w["C"] @ hidden.T) * m).sum() + 0 * w["unused"].sum())

    return loss, weights


def _true(loss: Callable[[Mapping[str, Tensor]], float], w: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by Richardson's extrapolation of central differences: good to 1e-9, relative."""
    found = {}
    for name, x in w.items():
        g = torch.zeros_like(x)
        for i in range(x.numel()):
            step = torch.zeros_like(x)
            step.view(-1)[i] = 1.0

            def slope(h: float, step: Tensor = step, name: str = name, x: Tensor = x) -> float:
                high, low = loss({**w, name: x + h * step}), loss({**w, name: x - h * step})
                return (high - low) / (2 * h)

            g.view(-1)[i] = (4 * slope(5e-4) - slope(1e-3)) / 3
        found[name] = g
    return found


def check_witness(wrong_gradients: Callable[..., Any]) -> None:
    def spoilt(g: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> dict:
        return {**g, name: change(g[name])}

    def last_entry(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[-1] += 0.05 * x.abs().max()
        return x

    def hundredth(x: Tensor) -> Tensor:  # a shade more, so that a tolerance of 0.01 is enough
        x = x.clone()
        x.view(-1)[1] -= 0.0101 * x.abs().max()
        return x

    def opposite(x: Tensor) -> Tensor:
        return -x

    cases: list[tuple[float, str, str, dict[str, Callable[[Tensor], Tensor]], str]] = [
        (1.0, "all gradients right", "", {}, ""),
        (1.0, "the sign of b's gradient turned", "b", {"b": opposite},
         "A turned sign slipped through. Compare values, not sizes."),
        (1.0, "C's gradient doubled", "C", {"C": lambda x: 2 * x},
         "A gradient twice too large slipped through. A right direction is not enough."),
        (1.0, "A's gradient transposed", "A", {"A": lambda x: x.T.contiguous()},
         "A transposed gradient slipped through. It has the same norm, sum and largest entry: "
         "compare entry by entry."),
        (1.0, "every entry of A's gradient too small", "A", {"A": lambda x: x - 2 * x.abs().max()},
         "A gradient too small slipped through: a difference has two signs."),
        (1.0, "every entry of A's gradient too large", "A", {"A": lambda x: x + 2 * x.abs().max()},
         "A gradient too large slipped through: a difference has two signs."),
        (1.0, "the last entry of C's gradient off by a twentieth", "C", {"C": last_entry},
         "One wrong entry at the end slipped through. Move every entry of every weight; if you do, "
         "the tolerance let it through."),
        (1.0, "one entry of C's gradient off by a hundredth of the largest", "C", {"C": hundredth},
         "An error of a hundredth slipped through: the tolerance is too wide. Your differences "
         "are far more exact than that."),
        (1e-7, "a loss of about 1e-7, C's gradient doubled", "C", {"C": lambda x: 2 * x},
         "A small gradient, twice too large, slipped through. A fixed tolerance is blind to small "
         "numbers: measure the difference against the size of the gradient."),
        (1e7, "a loss of about 1e7, all gradients right", "", {},
         "A right gradient was accused because it is large. Its rounding error is large, too: "
         "measure the difference against the size of the gradient."),
        (1.0, "two wrong gradients, of A and of b", "Ab",
         {"A": lambda x: 1.1 * x, "b": lambda x: x + 0.3}, "Both are wrong; look at all of them."),
    ]  # fmt: skip
    no_graph = (
        "The loss is a plain number here: there is no graph, and autograd cannot help. Move an "
        "entry and see what the loss does."
    )
    for scale, what, guilty, changes, why in cases:
        loss, weights = _toy(scale)
        gradients = _true(loss, weights)
        for name, change in changes.items():
            gradients = spoilt(gradients, name, change)
        try:
            with _by_hand(say=no_graph):
                got = call_as(what, wrong_gradients, loss, weights, gradients)
        except Wrong as wrong:
            text = str(wrong)
            if "has no attribute 'backward'" in text or "does not require grad" in text:
                text = no_graph
            raise Wrong(text, given=what) from None
        if isinstance(got, str) or not isinstance(got, Iterable):
            raise Wrong("A list of names is wanted, like ['A', 'b'].", given=what, got=got)
        named, due = set(map(str, got)), set(guilty)
        if unknown := named - set(weights):
            raise Wrong(f"There is no weight called {sorted(unknown)[0]!r}.", given=what, got=got)
        told: dict[str, Any] = {"given": what, "expected": sorted(due), "got": sorted(named)}
        if named == due:
            continue
        accused = ", ".join(sorted(named - due))
        if named - due == {"unused"}:
            raise Wrong(
                "A weight that the loss ignores was accused. Its gradient is 0, and so is the "
                "difference: beware of 0 divided by 0, and of rounding taken for a slope.",
                **told,
            )
        if missed := due - named:
            some = f" Missed: {', '.join(sorted(missed))}." if named & due else ""
            raise Wrong(why + some, **told)
        if scale == 1.0 and not due:
            raise Wrong(
                f"Right gradients were accused: {accused}. Is the step too small (rounding), too "
                "large (truncation), or the tolerance too tight for your differences?",
                **told,
            )
        raise Wrong(why if not due else f"Right gradients were accused: {accused}.", **told)


# 2.3 Softmax with cross-entropy ----------------------------------------------------------------


def check_cross_entropy(cross_entropy_backward: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(23)
    cases = [
        ("one token", [2], 4, 1.0),
        ("three tokens", [1, 0, 3], 5, 1.0),
        ("logits up to several hundred", [0, 2], 3, 300.0),
        ("targets with -100", [1, -100, 3, -100, 0], 5, 1.0),
    ]
    for what, listed, V, size in cases:
        N = len(listed)
        given = f"logits of shape {(N, V)}, targets {listed} ({what})"
        z = size * torch.randn(N, V, generator=generator, dtype=torch.float64)
        y = torch.tensor(listed)
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            right = torch.autograd.grad(F.cross_entropy(leaf, y), leaf)[0]
        with _by_hand():
            got = call(cross_entropy_backward, z.float() if size > 1 else z, y)
        if isinstance(got, Tensor) and got.shape == z.shape and got.isnan().any():
            raise Wrong(
                "There is a nan: exp of a large logit is infinite. Take the row's maximum away "
                "first, or let softmax do it.",
                given=given,
            )
        counts = y != -100
        n = int(counts.sum())
        p, hot = z.softmax(-1), F.one_hot(y.where(counts, torch.tensor(0)), V).double()
        ignored = counts[:, None]
        everywhere = (p - hot * ignored) / n
        later = (y > 0)[:, None]
        why = ""
        if isinstance(got, Tensor) and got.shape == z.shape and got[~counts].any():
            why = "A row whose target is -100 got a gradient: it must be all 0."
        elif isinstance(got, Tensor) and got.shape == z.shape and not got[y == 0].any() and 0 in y:
            why = "Class 0 counts too: only -100 is left out."
        expect_close(
            got, right, given=given, tol=1e-4, why=why,
            slips=[
                ((p - hot) * ignored,
                 "The mean is missing: the loss is divided by the tokens that count."),
                ((p - hot) * ignored / N,
                 "It was divided by all tokens. Only those that count are in the mean."),
                ((p - hot) * ignored / (n * V),
                 "It was divided by V as well. The mean runs over tokens, not over words."),
                (everywhere, "A row whose target is -100 got a gradient: it must be all 0."),
                ((p - hot * ignored) / N, "A row whose target is -100 got a gradient, and the "
                                          "mean counts it."),
                ((p - hot) * later / later.sum(), "Class 0 counts too: only -100 is left out."),
                (p - hot * ignored, "Two things are missing: the mean over the tokens that count, "
                                    "and a 0 for tokens with target -100."),
                ((hot - p) * ignored / n, "The sign is turned: that way the loss rises."),
                (p * ignored / n, "The one-hot of the target is missing."),
                ((z - hot) * ignored / n, "Those are the logits. The softmax is missing."),
                ((z.softmax(0) - hot) * ignored / n,
                 "The softmax ran down the columns. Each token has its own: the last axis."),
                (p * (1 - p) * hot * ignored / n,
                 "That is the slope of p for the right word only. Every logit gets a gradient."),
            ],
        )  # fmt: skip


# 2.4 RMSNorm ----------------------------------------------------------------------------------


def check_rms_norm(rms_norm_backward: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(25)
    for T, C, size, eps in [
        (3, 5, 2.0, 1e-5),
        (4, 4, 1.0, 1e-5),
        (1, 4, 1.0, 1e-5),
        (3, 4, 0.3, 0.1),
    ]:
        more = "" if eps == 1e-5 else f", entries of about {size}, eps = {eps}"
        given = f"x and dy of shape {(T, C)}, gamma of shape {(C,)}{more}"
        x, dy, gamma = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in [(T, C), (T, C), (C,)]
        )
        x, gamma = size * (x + 0.5), gamma + 1.5
        with torch.enable_grad():
            a, b = x.clone().requires_grad_(), gamma.clone().requires_grad_()
            dx, dgamma = torch.autograd.grad(F.rms_norm(a, (C,), b, eps), (a, b), dy)
        with _by_hand():
            default = eps == 1e-5
            got = call(rms_norm_backward, x, gamma, dy, **({} if default else {"eps": eps}))
        if isinstance(got, (tuple, list)) and len(got) == 3:
            raise Wrong("Two tensors are wanted, dx and dgamma: RMSNorm has no β.", given=given)
        mine = parts(got, ("dx", "dgamma"), given, "tensors")
        for name, found, right, slips in [
            ("dgamma", mine[1], dgamma, [*_dgamma_slips(x, gamma, dy, eps), (dx, _ORDER)]),
            ("dx", mine[0], dx, _dx_slips(x, gamma, dy, eps)),
        ]:
            expect_close(found, right, given=given, name=name, tol=1e-4, slips=slips)


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


_OUTSIDE = "eps stands inside the root, with the mean of the squares."
_ORDER = "That is dx. The order is dx, dgamma."
_NO_EPS = "eps is missing: it is added to the mean of the squares, inside the root."


def _dgamma_slips(x: Tensor, gamma: Tensor, dy: Tensor, eps: float) -> Slips:
    r = (_mean(x * x) + eps).sqrt()
    x_hat, centred = x / r, x - _mean(x)
    each = dy * x_hat
    return [
        (each.sum(-1), "The sum ran over the channels. γ is shared by the tokens: sum over them."),
        (each, "γ is shared by all tokens, so its gradient is the sum over them."),
        (each.mean(0), "It is a sum over the tokens, not their mean."),
        ((gamma * each).sum(0), "γ itself stands in it. y = γ∘x̂ has the slope x̂ along γ."),
        ((dy * x).sum(0), "That takes x. γ multiplies x̂ = x/r."),
        (dy.sum(0), "That would be the gradient of a β. γ multiplies x̂."),
        ((dy * centred / (_mean(centred**2) + eps).sqrt()).sum(0),
         "That is layer norm's x̂. RMSNorm takes no mean away."),
        ((dy * centred / r).sum(0), "A mean was taken away from x. RMSNorm takes none away."),
        ((dy * x / (_mean(x * x).sqrt() + eps)).sum(0), _OUTSIDE),
        ((dy * x / _mean(x * x).sqrt()).sum(0), _NO_EPS),
        ((dy * x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()).sum(0),
         "r is the root of the mean of the squares, not of their sum."),
        ((dy * x / (_mean(x * x) + eps)).sum(0), "The root is missing in r."),
    ]  # fmt: skip


def _dx_slips(x: Tensor, gamma: Tensor, dy: Tensor, eps: float) -> Slips:
    r = (_mean(x * x) + eps).sqrt()
    x_hat, g = x / r, dy * gamma
    along = _mean(g * x_hat)
    right = (g - x_hat * along) / r
    wide = _mean(x * x).sqrt() + eps
    return [
        ((g - _mean(g) - x_hat * along) / r,
         "The mean of g is still subtracted. No mean is taken away on the way there, so none on "
         "the way back."),
        ((g - along) / r, "The mean of g∘x̂ must be multiplied by x̂: the step along r changes "
                          "every entry in proportion to x̂."),
        ((g - x_hat * g * x_hat) / r, "The mean is missing: r is made of all entries of the row."),
        ((g - x_hat * (g * x_hat).sum(-1, keepdim=True)) / r,
         "The sum of g∘x̂ was taken. r holds a mean, so it is the mean."),
        ((g - x * along) / r, "The last term goes along x̂ = x/r, not x."),
        ((g - x_hat * _mean(g * x)) / r, "The mean is that of g∘x̂, not of g∘x."),
        (g / r, "The path through r is missing: every entry changes r, and r changes all."),
        ((dy - x_hat * _mean(dy * x_hat)) / r, "γ is forgotten: what comes back to x̂ is g = γ∘dy."),
        (gamma * (dy - x_hat * _mean(dy * x_hat)) / r,
         "γ comes in too late: the mean is that of g∘x̂ with g = γ∘dy."),
        (g - x_hat * along, "The division by r is missing."),
        (right * r * r, "Multiplied by r: x̂ = x/r has the slope 1/r."),
        (right / r, "Divided by r once too often."),
        ((g + x_hat * along) / r, "The sign of the last term is turned: a larger r makes x̂ smaller."),
        ((g - x_hat * (g * x_hat).mean(0)) / r,
         "The mean ran over the tokens. Each token has an r of its own: the last axis."),
        ((g - x / wide * _mean(g * x / wide)) / wide, _OUTSIDE),
        ((g - x * _mean(g * x) / _mean(x * x)) / _mean(x * x).sqrt(), _NO_EPS),
    ]  # fmt: skip


# 2.5 Attention ---------------------------------------------------------------------------------


def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    *,
    forward: float = 1.0,
    mask: str = "right",
    axis: int = -1,
    value_turned: bool = True,
    scale_back: float = 1.0,
    row_sum: str = "right",
    transposed: bool = True,
    shared: str = "interleaved",
    join: str = "sum",
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in float64, with one mistake if asked for one."""
    (B, H, T, D), G = q.shape, k.shape[1]
    n = H // G
    K, V = (
        x.repeat(1, n, 1, 1) if shared.startswith("tiled") else x.repeat_interleave(n, 1)
        for x in (k, v)
    )
    scores = q @ K.mT * forward / D**0.5
    future = torch.ones(T, T, dtype=torch.bool).triu(0 if mask == "self" else 1)
    hidden = {"right": -torch.inf, "self": -1e9, "zero": 0.0}.get(mask)
    if hidden is not None:
        scores = scores.masked_fill(future, hidden)
    P = scores.softmax(axis)
    if mask == "late":
        P = P.masked_fill(future, 0)
    dP = do @ V.mT
    row = {
        "right": (P * dP).sum(-1, keepdim=True),
        "none": torch.zeros(()),
        "columns": (P * dP).sum(-2, keepdim=True),
        "plain": dP.mean(-1, keepdim=True),
    }[row_sum]
    dS = P * (dP - row) * scale_back / D**0.5
    dK, dV = (dS.mT if transposed else dS) @ q, (P.mT if value_turned else P) @ do

    def joined(x: Tensor) -> Tensor:
        if shared in ("tiled", "tiled back"):
            return x.view(B, n, G, T, D).sum(1)
        x = x.view(B, G, n, T, D)
        return {
            "sum": lambda: x.sum(2),
            "mean": lambda: x.mean(2),
            "first": lambda: x[:, :, 0],
            "apart": lambda: x.flatten(1, 2),
        }[join]()

    if shared == "tiled back":  # only the joining is wrong
        right = _attention_backward(q, k, v, do, join="apart")
        return right[0], joined(right[1]), joined(right[2])
    return dS @ K, joined(dK), joined(dV)


_FORWARD = "Wrong already, and dv needs only P: look at the forward scores. "
_SELF = (
    "The mask hides too much: row 0 hides everything. Query i sees key i, too: triu starts one "
    "above the diagonal."
)
_ATTENTION_SLIPS: list[tuple[dict[str, Any], str]] = [
    ({"mask": "none"}, "Nothing is masked: P must be the causal one, with zeros above the "
                       "diagonal."),
    ({"mask": "late"}, "Masked after the softmax: the rows no longer sum to 1. Hide the scores, "
                       "before the softmax."),
    ({"mask": "zero"}, "A score of 0 hides nothing, as exp(0) is 1. Which score has the weight 0?"),
    ({"mask": "self"}, _SELF),
    ({"axis": -2}, "The softmax ran down the columns. Each query has its own: the last axis."),
    ({"axis": -2, "mask": "none"}, "The softmax ran down the columns, where each query has its "
                                   "own: the last axis. And nothing is masked."),
    ({"value_turned": False}, "P is not transposed: value j needs column j of P."),
    ({"row_sum": "none"}, "The softmax's backward is incomplete: P∘dP alone forgets that each row "
                          "sums to 1. Subtract Δ."),
    ({"row_sum": "columns"}, "Δ was summed down the columns. A softmax lives in a row: the last "
                             "axis."),
    ({"row_sum": "plain"}, "The plain mean of dP was subtracted. It is the mean weighted by P."),
    ({"transposed": False}, "dS is not transposed: key j needs column j of dS."),
    ({"shared": "tiled"}, "The heads are paired wrongly: query heads 0, 1, … share key head 0 "
                          "first. repeat_interleave, not repeat."),
    ({"shared": "tiled there"}, "The heads are paired wrongly in the forward pass: query heads "
                                "0, 1, … share key head 0 first. repeat_interleave, not repeat."),
    ({"shared": "tiled back"}, "The shares of the wrong heads were added up: neighbours share a "
                               "key head, so the heads are a grid of G rows of H/G."),
    ({"join": "mean"}, "The shares of the query heads were averaged. A key that is used several "
                       "times gets the sum."),
    ({"join": "first"}, "Only one query head of each group was counted. A key that is used "
                        "several times gets the sum of all shares."),
    ({"join": "apart"}, "There is one gradient for each query head. Heads that share a key add up "
                        "their shares: the shape is that of k."),
]  # fmt: skip


def check_attention(attention_backward: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(24)
    sizes = [(1, 1, 1, 3, 4), (2, 2, 2, 5, 3), (2, 4, 2, 5, 3), (1, 6, 2, 1, 2), (1, 2, 1, 4, 3)]
    for B, H, G, T, D in sizes:
        given = f"q of shape {(B, H, T, D)}, k and v of shape {(B, G, T, D)}"
        q, k, v, do = (
            torch.randn(B, heads, T, D, generator=generator, dtype=torch.float64)
            for heads in (H, G, G, H)
        )
        large = sizes[-1] == (B, H, G, T, D)
        if large:
            q, given = 1500 * q, given + ", with scores of more than a thousand"
        with torch.enable_grad():
            a, b, c = (x.clone().requires_grad_() for x in (q, k, v))
            out = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=True)
            right = torch.autograd.grad(out, (a, b, c), do)
        with _by_hand():
            got = call(attention_backward, q, k, v, do)
        found = parts(got, ("dq", "dk", "dv"), given, "tensors")
        if any(isinstance(x, Tensor) and x.isnan().any() for x in found):
            over = (
                "There is a nan: exp of a large score is infinite. Take the row's maximum away "
                "first, or let softmax do it."
            )
            later = isinstance(found[0], Tensor) and found[0][..., 1:, :].isnan().any()
            empty = (
                "The softmax met a row of -∞ alone. Does it run over the last axis, and does each "
                "query see a key?"
            )
            why = over if large else f"There is a nan. {empty if later else _SELF}"
            raise Wrong(why, given=given)
        slips = [(_attention_backward(q, k, v, do, **how), why) for how, why in _ATTENTION_SLIPS]
        D_scale = [
            (D**0.5, "The factor 1/√D is missing: the scores were divided, so dS is, too."),
            (D**-0.5, "Divided by D: the factor is 1/√D, once."),
        ]
        for at in (2, 0, 1):  # dv first: it needs the least
            mine = [(wrong[at], why) for wrong, why in slips]
            if at < 2:
                mine += [(right[at] * factor, why) for factor, why in D_scale]
            else:
                mine += [(right[1], "That is dk. The order is dq, dk, dv.")]
                for factor, why in [
                    (D**0.5, "Is 1/√D missing?"),
                    (D**-0.5, "It is 1/√D, not 1/D."),
                ]:
                    mine += [(_attention_backward(q, k, v, do, forward=factor)[2], _FORWARD + why)]
            name = ("dq", "dk", "dv")[at]
            expect_close(found[at], right[at], given=given, name=name, tol=1e-4, slips=mine)


# 2.6 Bytes kept --------------------------------------------------------------------------------


def check_kept(answer: Any) -> None:
    C, width, tokens = 576, 1536, 512
    keys = ("numbers_per_token", "bytes", "tokens")
    right = C + 4 * width
    got = number_field(answer, "numbers_per_token", keys)
    slips = [
        (3 * width + C, "Three of the four wide pieces. Silu keeps its input, the product ∘ keeps "
                        "both factors, and down keeps what comes in."),
        (2 * width + C, "Two of the four wide pieces. Go through silu, the product ∘ and down one "
                        "by one: what must each know on the way back?"),
        (4 * width + 2 * C, "x was counted twice, for gate and up, or the output was counted. One "
                            "piece of memory is kept once, and the last result is not needed."),
        (3 * width + 2 * C, "x is kept once for gate and up together; and one wide piece is "
                            "missing."),
        (4 * width, "down, silu and the product are complete. What do gate and up keep?"),
        (5 * width + C, "One wide piece is counted twice: the output of up is a factor of ∘, and "
                        "nothing else needs it."),
        (C, "x is there. Now the wide pieces, of F numbers each."),
        (3 * C * width, "Those are the weights. They are there anyway; count what x makes."),
        (right * 4, "Those are bytes. First count numbers."),
    ]  # fmt: skip
    told = {"given": f"C = {C}, F = {width}"}
    for value, sentence in slips:
        if abs(got - value) < 0.5:
            raise Wrong(f"numbers_per_token: {sentence}", got=got, **told)
    if abs(got - right) > 0.5:
        why = "that is not a sum of pieces of C and F numbers that a backward step needs."
        raise Wrong(f"numbers_per_token: {why}", got=got, **told)
    due = 4 * tokens * right
    got = number_field(answer, "bytes", keys)
    for power, sentence in [
        (4.0, "the count is right; a float32 has 4 bytes."),
        (2.0, "a float32 has 4 bytes, not 2."),
        (0.5, "a float32 has 4 bytes, not 8."),
        (1e6, "right, but give it in bytes, not MB."),
        (2.0**20, "right, but give it in bytes, not MiB."),
        (512.0, "that is one token. There are 512."),
    ]:
        if abs(got * power / due - 1) < 0.01:
            raise Wrong(f"bytes: {sentence}", got=got, **told)
    if abs(got / due - 1) > 0.01:
        raise Wrong("bytes: numbers a token, times tokens, times bytes a number.", got=got, **told)
    got = number_field(answer, "tokens", keys)
    even = 3 * C * width / right  # 394.97
    if abs(got / (even / 3) - 1) < 0.02:
        raise Wrong("tokens: that is one matrix. There are three.", got=got, **told)
    if abs(got / (even * 4) - 1) < 0.02 or abs(got / (even / 4) - 1) < 0.02:
        raise Wrong("tokens: bytes on one side, numbers on the other.", got=got, **told)
    if even - 1 <= got < even - 0.005:
        raise Wrong(
            "tokens: with so many it is still a little less than the weights.", got=got, **told
        )
    if not even - 0.005 <= got <= even + 1.1:
        why = "set the weights, 3·C·F numbers, equal to numbers a token times tokens."
        raise Wrong(f"tokens: {why}", got=got, **told)


# 2.7 Why twice ---------------------------------------------------------------------------------

_COSTS: dict[str, tuple[float, dict[float, str], str]] = {
    "middle": (
        2,
        {1: "two gradients are due, dX and dW, and each is a product of its own.",
         3: "that is forward and backward together."},
        "how many products of the forward's size does the backward have?",
    ),
    "no_input_gradient": (
        1,
        {2: "without dX one of the two products falls away.",
         0: "the weights still need their gradient."},
        "which of the two products is still needed?",
    ),
    "frozen_weights": (
        1,
        {0: "the weights are frozen, but the gradient must still pass through to the layers below.",
         2: "nobody needs dW of a frozen weight."},
        "which of the two products is still needed?",
    ),
    "training_step": (
        3,
        {2: "that is the backward alone; the forward comes before it.",
         4: "that is with the forward pass run twice."},
        "forward plus backward.",
    ),
    "checkpointed_step": (
        4,
        {3: "that is without the second forward pass.",
         5: "the forward is run once more, the backward only once.",
         6: "only the forward is run twice, not the backward."},
        "forward, forward again, backward.",
    ),
    "recomputing_attention": (
        2.5,
        {2: "that is with P kept: four products for two. Making P again adds one.",
         3: "only QKᵀ must be made again; O = PV is kept.",
         5: "five products is right; the forward has two, and a multiple of it is wanted.",
         1.5: "count dV, dP, dQ and dK, and then what it takes to have P."},
        "count products: how many in the forward, how many in the backward?",
    ),
    "flops_per_weight_and_token": (
        6,
        {2: "that is the forward pass alone.",
         3: "a multiplication and an addition are two operations.",
         4: "that is the backward pass alone.",
         8: "that is with checkpointing."},
        "each weight meets each token once in the forward: a multiplication and an addition.",
    ),
}  # fmt: skip


def check_twice(answer: Any) -> None:
    for name, (due, slips, nudge) in _COSTS.items():
        got = number_field(answer, name, list(_COSTS))
        if abs(got - due) < 0.01:
            continue
        sentence = next((why for value, why in slips.items() if abs(got - value) < 0.01), nudge)
        raise Wrong(f"{name}: {sentence}", got=short(got))


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "2.1",
        "Backward of a linear layer",
        1,
        check_linear,
        (
            "Each gradient has the shape of its value. Which product of dy and W gives (B, T, K)?",
            "W and b are used by every row of every sequence: their gradients are sums over B and T.",
            "x.flatten(0, 1) makes (B·T, K) of (B, T, K); then it is the formula of the text.",
        ),
        "A weight used many times gets the sum of many shares: no mean, no exception.",
    ),
    Exercise(
        "2.2",
        "Find the wrong gradient",
        2,
        check_witness,
        (
            "One weight at a time: a loss that takes only this weight, the others as they are.",
            "{**weights, name: y} is the same dictionary with one entry exchanged; numeric does "
            "the rest.",
            "Compare entry by entry, against the size of the gradient, not with a fixed number.",
            "Guilty: (claimed − seen).abs().max() > 1e-3 · seen.abs().max() + a hair for zeros.",
        ),
        "Two evaluations an entry: far too slow to train with, and a witness nobody can bribe.",
    ),
    Exercise(
        "2.3",
        "Softmax with cross-entropy backwards",
        2,
        check_cross_entropy,
        (
            "For one token it is p − onehot(y). What does the mean over the tokens do to it?",
            "F.one_hot does not like -100: put any word in its place, and erase the row later.",
            "targets != -100 says which rows count, and its sum is what to divide by.",
        ),
        "The probability is the gradient: what the model believes is what it must unlearn.",
    ),
    Exercise(
        "2.4",
        "Backward of RMSNorm",
        2,
        check_rms_norm,
        (
            "Layer norm's formula has a term for each path: direct, through μ, through σ. Which "
            "quantity does not exist here?",
            "x̂ is now x/r, without a mean taken away, and g is still γ∘dy.",
            "γ is shared by the tokens, as a bias is: its gradient is a sum over them.",
            "dx = (g − x̂ · the mean of g∘x̂ in each row) / r, with keepdim=True for the mean.",
        ),
        "One path less: what is taken away on the way back is what the norm took away on the way there.",
    ),
    Exercise(
        "2.5",
        "Attention backwards, causal and grouped",
        3,
        check_attention,
        (
            "First without groups: repeat k and v for every query head, and use the five formulas.",
            "The mask needs no backward of its own: where P is 0, dS = P∘(dP − Δ) is 0 too.",
            "The copies of a key are one key: add up the gradients of the query heads sharing it.",
            "dk of all query heads is (B, H, T, D): .view(B, G, H // G, T, D).sum(2).",
        ),
        "What is copied on the way there is added up on the way back: as with every value used twice.",
    ),
    Exercise(
        "2.6",
        "Numbers kept by a feed-forward layer",
        1,
        check_kept,
        (
            "Walk through the five steps: gate, up, silu, ∘, down. What must each know to go back?",
            "A product keeps both factors (weights not counted), silu its input. One piece of "
            "memory counts once, however many steps keep it.",
            "x, gate(x), silu(gate(x)), up(x), and the product that goes into down.",
        ),
        "A feed-forward layer keeps more than attention without P: four wide pieces a token.",
    ),
    Exercise(
        "2.7",
        "Interview: why about twice the forward?",
        3,
        check_twice,
        (
            "Y = XWᵀ is one product. Which products give dX and dW, and how large are they?",
            "A gradient that nobody asks for costs nothing; one that only passes through does.",
            "Attention forward: QKᵀ and PV. Backward: dV, dP, dQ, dK, and QKᵀ once more.",
            "With checkpoints the forward pass is run a second time, the backward pass still once.",
            "Forward: a multiplication and an addition for each weight and token. A training step "
            "is so many times that.",
        ),
        "Two gradients for one product: the whole budget of training follows from that line.",
    ),
)
