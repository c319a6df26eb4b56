"""Answers to chapter 02 that readers give: every one must fail its check (tests/test_exercises.py).

A callable stands for a reader's function; anything else for a reader's value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# 2.1


def _linear(x: Tensor, W: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return dy @ W, dy.flatten(0, 1).T @ x.flatten(0, 1), dy.sum((0, 1))


def weight_transposed(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, db = _linear(x, W, dy)
    return dx, dW.T, db


def averaged_again(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, db = _linear(x, W, dy)
    return dx, dW / len(x), db


def averaged_over_rows(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, db = _linear(x, W, dy)
    return dx, dW / dy[..., 0].numel(), db


def one_gradient_a_sequence(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    return dy @ W, dy.mT @ x, dy.sum((0, 1))


def bias_summed_over_the_batch_only(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, _ = _linear(x, W, dy)
    return dx, dW, dy.sum(0)


def bias_not_summed(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, _ = _linear(x, W, dy)
    return dx, dW, dy


def bias_averaged(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, _ = _linear(x, W, dy)
    return dx, dW, dy.mean((0, 1))


def transpose_too_many(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    return dy @ W.T, *_linear(x, W, dy)[1:]


def transpose_where_it_fits(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    square = W.shape[0] == W.shape[1]
    return dy @ (W.T if square else W), *_linear(x, W, dy)[1:]


def sums_before_the_product(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    return dy @ W, torch.outer(dy.sum((0, 1)), x.sum((0, 1))), dy.sum((0, 1))


def linear_by_autograd(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    b = torch.zeros(len(W), dtype=x.dtype, requires_grad=True)
    x, W = x.requires_grad_(), W.requires_grad_()
    return torch.autograd.grad(x @ W.T + b, (x, W, b), dy)


def linear_by_backward(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    b = torch.zeros(len(W), dtype=x.dtype, requires_grad=True)
    x, W = x.requires_grad_(), W.requires_grad_()
    (x @ W.T + b).backward(dy)
    return x.grad, W.grad, b.grad


def linear_by_vjp(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    b = torch.zeros(len(W), dtype=x.dtype)
    return torch.func.vjp(lambda x, W, b: x @ W.T + b, x, W, b)[1](dy)


def bias_with_an_axis_too_many(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    dx, dW, db = _linear(x, W, dy)
    return dx, dW, db[None]


def as_a_dictionary(x: Tensor, W: Tensor, dy: Tensor) -> Any:
    return dict(zip(("dx", "dW", "db"), _linear(x, W, dy), strict=True))


# 2.2


def _slopes(loss: Any, weights: dict[str, Tensor], h: float = 1e-5, side: int = 2) -> Any:
    found = {}
    for name, x in weights.items():
        g = torch.zeros_like(x)
        for i in range(x.numel()):
            step = torch.zeros_like(x)
            step.view(-1)[i] = h
            high = loss({**weights, name: x + step})
            low = loss({**weights, name: x - step}) if side == 2 else loss(weights)
            g.view(-1)[i] = (high - low) / (side * h)
        found[name] = g
    return found


def fixed_tolerance(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    return [n for n in weights if (gradients[n] - seen[n]).abs().max() > 1e-4]


def norms_only(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    off = {n: abs(gradients[n].norm() - seen[n].norm()) for n in weights}
    return [n for n in weights if off[n] > 1e-3 * seen[n].norm()]


def sums_only(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    off = {n: abs(gradients[n].sum() - seen[n].sum()) for n in weights}
    return [n for n in weights if off[n] > 1e-3 * seen[n].abs().sum()]


def first_entry_only(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    a, b = ({n: g[n].view(-1)[0] for n in weights} for g in (gradients, seen))
    return [n for n in weights if abs(a[n] - b[n]) > 1e-3 * abs(b[n])]


def direction_only(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    cosine = {n: F.cosine_similarity(gradients[n].flatten(), seen[n].flatten(), 0) for n in seen}
    return [n for n in weights if cosine[n] < 0.999 and seen[n].norm() > 0]


def step_too_small(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights, 1e-15)
    return [n for n in weights if (gradients[n] - seen[n]).norm() > 1e-3 * seen[n].norm() + 1e-12]


def one_sided_and_coarse(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights, 0.1, side=1)
    return [n for n in weights if (gradients[n] - seen[n]).norm() > 1e-3 * seen[n].norm() + 1e-12]


def _judged_by(off: Any, tolerance: float = 1e-3) -> Any:
    """A witness that judges by off(claimed, seen), with a tolerance."""

    def function(loss: Any, weights: Any, gradients: Any) -> list[str]:
        seen = _slopes(loss, weights)
        bad = {
            n: off(gradients[n], seen[n]) > tolerance * seen[n].abs().max() + 1e-10 for n in seen
        }
        return [n for n in weights if bad[n]]

    return function


abs_forgotten = _judged_by(lambda claimed, seen: (claimed - seen).max())
abs_forgotten_turned = _judged_by(lambda claimed, seen: (seen - claimed).max())
tolerance_of_a_half = _judged_by(lambda claimed, seen: (claimed - seen).abs().max(), 0.5)
tolerance_of_a_tenth = _judged_by(lambda claimed, seen: (claimed - seen).abs().max(), 0.1)
tolerance_of_two_hundredths = _judged_by(lambda claimed, seen: (claimed - seen).abs().max(), 0.02)


def witness_by_autograd(loss: Any, weights: Any, gradients: Any) -> list[str]:
    leaves = {n: x.clone().requires_grad_() for n, x in weights.items()}
    seen = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return [n for n, g in zip(leaves, seen, strict=True) if not torch.allclose(g, gradients[n])]


def witness_by_backward(loss: Any, weights: Any, gradients: Any) -> list[str]:
    leaves = {n: x.clone().requires_grad_() for n, x in weights.items()}
    loss(leaves).backward()
    return [n for n, x in leaves.items() if not torch.allclose(x.grad, gradients[n])]


def zero_over_zero(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    off = {n: (gradients[n] - seen[n]).norm() / seen[n].norm() for n in weights}
    return [n for n in weights if not off[n] < 1e-3]


def only_the_first_guilty(loss: Any, weights: Any, gradients: Any) -> list[str]:
    seen = _slopes(loss, weights)
    off = {n: (gradients[n] - seen[n]).abs().max() for n in weights}
    return [n for n in weights if off[n] > 1e-3 * seen[n].abs().max() + 1e-10][:1]


# 2.3


def _parts(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = targets != -100
    hot = F.one_hot(targets.where(counts, torch.tensor(0)), logits.shape[-1]) * counts[:, None]
    return logits.softmax(-1), hot.to(logits.dtype), counts


def mean_missing(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, counts = _parts(logits, targets)
    return (p - hot) * counts[:, None]


def mean_over_all(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, counts = _parts(logits, targets)
    return (p - hot) * counts[:, None] / len(targets)


def ignored_rows_count(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, counts = _parts(logits, targets)
    return (p - hot) / counts.sum()


def minus_100_from_the_end(logits: Tensor, targets: Tensor) -> Tensor:
    p = logits.softmax(-1)
    p[torch.arange(len(p)), targets] -= 1
    return p / len(p)


def sign_turned(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, counts = _parts(logits, targets)
    return (hot - p) * counts[:, None] / counts.sum()


def onehot_missing(logits: Tensor, targets: Tensor) -> Tensor:
    p, _, counts = _parts(logits, targets)
    return p * counts[:, None] / counts.sum()


def softmax_missing(logits: Tensor, targets: Tensor) -> Tensor:
    _, hot, counts = _parts(logits, targets)
    return (logits - hot) * counts[:, None] / counts.sum()


def softmax_down_the_columns(logits: Tensor, targets: Tensor) -> Tensor:
    _, hot, counts = _parts(logits, targets)
    return (logits.softmax(0) - hot) * counts[:, None] / counts.sum()


def exp_overflows(logits: Tensor, targets: Tensor) -> Tensor:
    _, hot, counts = _parts(logits, targets)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return (p - hot) * counts[:, None] / counts.sum()


def mean_over_words_too(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, counts = _parts(logits, targets)
    return (p - hot) * counts[:, None] / (counts.sum() * logits.shape[-1])


def cross_entropy_by_autograd(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.requires_grad_()
    return torch.autograd.grad(F.cross_entropy(logits, targets), logits)[0]


def erased_in_p_only(logits: Tensor, targets: Tensor) -> Tensor:
    counts = targets != -100
    p = logits.softmax(-1) * counts[:, None]
    p[torch.arange(len(p)), targets.clamp_min(0)] -= 1
    return p / counts.sum()


def class_0_forgotten(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, _ = _parts(logits, targets)
    counts = targets > 0
    return (p - hot) * counts[:, None] / counts.sum()


def class_0_forgotten_but_counted(logits: Tensor, targets: Tensor) -> Tensor:
    p, hot, counts = _parts(logits, targets)
    return (p - hot) * (targets > 0)[:, None] / counts.sum()


# 2.4


def _rms(
    x: Tensor,
    gamma: Tensor,
    dy: Tensor,
    eps: float = 1e-5,
    *,
    root: str = "inside",
    centred: bool = False,
    mean_of_g: bool = False,
    last: str = "right",
    gain: str = "in g",
    dgamma: str = "right",
) -> tuple[Tensor, Tensor]:
    if centred:
        x = x - x.mean(-1, keepdim=True)
    square = x.pow(2).mean(-1, keepdim=True)
    r = {"inside": (square + eps).sqrt(), "outside": square.sqrt() + eps, "none": square.sqrt()}[
        root
    ]
    x_hat, g = x / r, dy if gain != "in g" else dy * gamma
    along = (g * x_hat).mean(-1, keepdim=True)
    dx = g - {
        "right": x_hat * along,
        "flat": along,
        "each": x_hat * g * x_hat,
        "sum": x_hat * along * x.shape[-1],
        "x": x * along,
        "none": 0 * x,
        "turned": -x_hat * along,
        "tokens": x_hat * (g * x_hat).mean(0),
    }.get(last, x_hat * along)
    if mean_of_g:
        dx = dx - g.mean(-1, keepdim=True)
    dx = dx if last == "undivided" else dx / r
    each = dy * x_hat
    total = {
        "right": each.sum(0),
        "channels": each.sum(-1),
        "each": each,
        "mean": each.mean(0),
        "gain": (gamma * each).sum(0),
        "x": (dy * x).sum(0),
        "beta": dy.sum(0),
        "keepdim": each.sum(0, keepdim=True),
    }[dgamma]
    return dx * gamma if gain == "late" else dx, total


def _rms_variant(**mistake: Any) -> Any:
    def function(x: Tensor, gamma: Tensor, dy: Tensor, eps: float = 1e-5) -> Any:
        return _rms(x, gamma, dy, eps, **mistake)

    return function


def rms_by_autograd(x: Tensor, gamma: Tensor, dy: Tensor, eps: float = 1e-5) -> Any:
    x, gamma = x.requires_grad_(), gamma.requires_grad_()
    return torch.autograd.grad(F.rms_norm(x, gamma.shape, gamma, eps), (x, gamma), dy)


def three_gradients(x: Tensor, gamma: Tensor, dy: Tensor, eps: float = 1e-5) -> Any:
    return *_rms(x, gamma, dy, eps), dy.sum(0)


# 2.5


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    *,
    back: float = 1.0,
    forward: float = -0.5,
    mask: float | str = -torch.inf,
    diagonal: int = 1,
    naive: bool = False,
    axis: int = -1,
    value_turned: bool = True,
    row: str = "right",
    transposed: bool = True,
    tiled: bool = False,
    tiled_back: bool | None = None,
    join: str = "sum",
) -> tuple[Tensor, Tensor, Tensor]:
    (B, H, T, D), G = q.shape, k.shape[1]
    n, tiled_back = H // G, tiled if tiled_back is None else tiled_back
    K, V = (x.repeat(1, n, 1, 1) if tiled else x.repeat_interleave(n, 1) for x in (k, v))
    S, future = q @ K.mT * D**forward, torch.ones(T, T, dtype=torch.bool).triu(diagonal)
    if not isinstance(mask, str):
        S = S.masked_fill(future, mask)
    P = S.exp() / S.exp().sum(axis, keepdim=True) if naive else S.softmax(axis)
    P, dP = P.masked_fill(future, 0) if mask == "late" else P, do @ V.mT
    if row == "right":
        dP = dP - (P * dP).sum(-1, keepdim=True)
    elif row == "columns":
        dP = dP - (P * dP).sum(-2, keepdim=True)
    elif row == "mean":
        dP = dP - dP.mean(-1, keepdim=True)
    dS = P * dP * back / D**0.5
    dK, dV = (dS.mT if transposed else dS) @ q, (P.mT if value_turned else P) @ do
    if join == "apart":
        return dS @ K, dK, dV
    split = (B, n, G, T, D) if tiled_back else (B, G, n, T, D)
    dK, dV = dK.view(split), dV.view(split)
    if join == "first":
        return dS @ K, dK[:, :, 0], dV[:, :, 0]
    how = torch.mean if join == "mean" else torch.sum
    return dS @ K, how(dK, 1 if tiled_back else 2), how(dV, 1 if tiled_back else 2)


def _variant(**mistake: Any) -> Any:
    def function(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Any:
        return _attention(q, k, v, do, **mistake)

    return function


def scale_missing(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Any:
    return _attention(q, k, v, do, back=q.shape[-1] ** 0.5)


def scaled_twice(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Any:
    return _attention(q, k, v, do, back=q.shape[-1] ** -0.5)


def attention_by_autograd(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Any:
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return torch.autograd.grad(out, (q, k, v), do)


def keys_and_values_swapped(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Any:
    dq, dk, dv = _attention(q, k, v, do)
    return dq, dv, dk


def one_gradient_only(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Any:
    return _attention(q, k, v, do)[0]


_KEPT = {"numbers_per_token": 6720, "bytes": 13_762_560, "tokens": 395}
_TWICE = {
    "middle": 2,
    "no_input_gradient": 1,
    "frozen_weights": 1,
    "training_step": 3,
    "checkpointed_step": 4,
    "recomputing_attention": 2.5,
    "flops_per_weight_and_token": 6,
}

WRONG: dict[str, list[Any]] = {
    "2.1": [
        weight_transposed,
        averaged_again,
        averaged_over_rows,
        one_gradient_a_sequence,
        bias_summed_over_the_batch_only,
        bias_not_summed,
        bias_averaged,
        transpose_too_many,
        transpose_where_it_fits,
        sums_before_the_product,
        linear_by_autograd,
        linear_by_backward,
        linear_by_vjp,
        bias_with_an_axis_too_many,
        as_a_dictionary,
        lambda x, W, dy: dy @ W,
        lambda x, W: W,
    ],
    "2.2": [
        fixed_tolerance,
        norms_only,
        sums_only,
        first_entry_only,
        direction_only,
        step_too_small,
        one_sided_and_coarse,
        zero_over_zero,
        only_the_first_guilty,
        abs_forgotten,
        abs_forgotten_turned,
        tolerance_of_a_half,
        tolerance_of_a_tenth,
        tolerance_of_two_hundredths,
        witness_by_autograd,
        witness_by_backward,
        lambda loss, weights, gradients: [],
        lambda loss, weights, gradients: list(weights),
        lambda loss, weights, gradients: "A",
        lambda loss, weights, gradients: ["W_k"],
    ],
    "2.3": [
        mean_missing,
        mean_over_all,
        ignored_rows_count,
        minus_100_from_the_end,
        sign_turned,
        onehot_missing,
        softmax_missing,
        softmax_down_the_columns,
        exp_overflows,
        mean_over_words_too,
        erased_in_p_only,
        class_0_forgotten,
        class_0_forgotten_but_counted,
        cross_entropy_by_autograd,
    ],
    "2.4": [
        _rms_variant(mean_of_g=True),
        _rms_variant(centred=True),
        _rms_variant(centred=True, mean_of_g=True),
        *(_rms_variant(last=how) for how in ("flat", "each", "sum", "x", "none", "turned")),
        _rms_variant(last="tokens"),
        _rms_variant(last="undivided"),
        _rms_variant(gain="forgotten"),
        _rms_variant(gain="late"),
        _rms_variant(root="outside"),
        _rms_variant(root="none"),
        *(_rms_variant(dgamma=how) for how in ("channels", "each", "mean", "gain", "x", "beta")),
        _rms_variant(dgamma="keepdim"),
        rms_by_autograd,
        three_gradients,
        lambda x, gamma, dy, eps=1e-5: _rms(x, gamma, dy, eps)[0],
        lambda x, gamma, dy, eps=1e-5: _rms(x, gamma, dy, eps)[::-1],
    ],
    "2.5": [
        scale_missing,
        scaled_twice,
        _variant(mask="none"),
        _variant(mask="late"),
        _variant(mask=0.0),
        _variant(diagonal=0),
        _variant(diagonal=0, mask=-1e9),
        _variant(naive=True),
        _variant(axis=-2),
        _variant(axis=-2, mask="none"),
        _variant(axis=1),
        _variant(value_turned=False),
        _variant(forward=0.0),
        _variant(forward=0.0, back=2.0),
        _variant(forward=-1.0),
        _variant(tiled=True, tiled_back=False),
        _variant(tiled_back=True),
        _variant(row="none"),
        _variant(row="columns"),
        _variant(row="mean"),
        _variant(transposed=False),
        _variant(tiled=True),
        _variant(join="mean"),
        _variant(join="first"),
        _variant(join="apart"),
        attention_by_autograd,
        keys_and_values_swapped,
        one_gradient_only,
    ],
    "2.6": [
        {**_KEPT, "numbers_per_token": 576 + 3 * 1536},  # silu's input forgotten
        {**_KEPT, "numbers_per_token": 2 * 576 + 4 * 1536},  # x twice
        {**_KEPT, "numbers_per_token": 4 * 1536},  # x forgotten
        {**_KEPT, "numbers_per_token": 3 * 576 * 1536},  # the weights
        {**_KEPT, "numbers_per_token": 26_880},  # bytes
        {**_KEPT, "numbers_per_token": 1000},
        {**_KEPT, "bytes": 13_762_560 / 4},
        {**_KEPT, "bytes": 13.76},
        {**_KEPT, "bytes": 26_880},
        {**_KEPT, "tokens": 132},  # one matrix
        {**_KEPT, "tokens": 99},  # numbers against bytes
        {**_KEPT, "tokens": 512},
        {**_KEPT, "tokens": 394},
        {**_KEPT, "tokens": 397},
        {"numbers_per_token": 6720},
        {**_KEPT, "bytes": "14 MB"},
        6720,
    ],
    "2.7": [
        {**_TWICE, "middle": 1},
        {**_TWICE, "middle": 3},
        {**_TWICE, "no_input_gradient": 2},
        {**_TWICE, "frozen_weights": 0},
        {**_TWICE, "training_step": 2},
        {**_TWICE, "checkpointed_step": 6},
        {**_TWICE, "recomputing_attention": 3},
        {**_TWICE, "recomputing_attention": 2},
        {**_TWICE, "flops_per_weight_and_token": 3},
        {**_TWICE, "flops_per_weight_and_token": 100},
        {"middle": 2},
        "two products",
    ],
}
