"""Answers to chapter 03 that readers give: every one must fail its check (tests/test_exercises.py).

A callable stands for a reader's function; anything else for a reader's value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, BOS, EOS = 0, 1, 2
Rows = list[list[int]]


def _filled(rows: Rows) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


# 3.1


def nothing_shifted(rows: Rows) -> tuple[Tensor, Tensor]:
    whole = _filled([[BOS, *row, EOS] for row in rows])
    return whole, whole


def wrong_way(rows: Rows) -> tuple[Tensor, Tensor]:
    whole = _filled([[BOS, *row, EOS] for row in rows])
    return whole[:, 1:], whole[:, :-1]


def two_too_far(rows: Rows) -> tuple[Tensor, Tensor]:
    return _filled([[BOS, *row] for row in rows]), _filled([[*row[1:], EOS] for row in rows])


def one_too_far(rows: Rows) -> tuple[Tensor, Tensor]:
    return _filled([[BOS, *row[:-1]] for row in rows]), _filled([[*row[1:], EOS] for row in rows])


def never_stops(rows: Rows) -> tuple[Tensor, Tensor]:
    return _filled([[BOS, *row[:-1]] for row in rows]), _filled(rows)


def no_start(rows: Rows) -> tuple[Tensor, Tensor]:
    return _filled(rows), _filled([[*row[1:], EOS] for row in rows])


def filling_on_the_left(rows: Rows) -> tuple[Tensor, Tensor]:
    def left(many: Rows) -> Tensor:
        return _filled([row[::-1] for row in many]).flip(1)

    return left([[BOS, *row] for row in rows]), left([[*row, EOS] for row in rows])


def lengths_differ(rows: Rows) -> tuple[Tensor, Tensor]:
    return _filled([[BOS, *row, EOS] for row in rows]), _filled([[*row, EOS] for row in rows])


def not_filled(rows: Rows) -> tuple[Rows, Rows]:
    return [[BOS, *row] for row in rows], [[*row, EOS] for row in rows]


# 3.2


def _lost(logits: Tensor, wanted: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]


def everything_counts(logits: Tensor, wanted: Tensor) -> Tensor:
    return _lost(logits, wanted).mean()


def library(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)


def divided_by_all(logits: Tensor, wanted: Tensor) -> Tensor:
    return (_lost(logits, wanted) * (wanted != PAD)).mean()


def the_sum(logits: Tensor, wanted: Tensor) -> Tensor:
    return (_lost(logits, wanted) * (wanted != PAD)).sum()


def mean_of_means(logits: Tensor, wanted: Tensor) -> Tensor:
    real = wanted != PAD
    return ((_lost(logits, wanted) * real).sum(1) / real.sum(1)).mean()


def logits_silenced(logits: Tensor, wanted: Tensor) -> Tensor:
    return _lost(logits * (wanted != PAD)[..., None], wanted).mean()


def log_of_softmax(logits: Tensor, wanted: Tensor) -> Tensor:
    p = logits.softmax(-1).gather(-1, wanted[..., None])[..., 0]
    return -p.log()[wanted != PAD].mean()


def no_logarithm(logits: Tensor, wanted: Tensor) -> Tensor:
    p = logits.softmax(-1).gather(-1, wanted[..., None])[..., 0]
    return -p[wanted != PAD].mean()


def without_the_end(logits: Tensor, wanted: Tensor) -> Tensor:
    return _lost(logits, wanted)[wanted > EOS].mean()


def not_reduced(logits: Tensor, wanted: Tensor) -> Tensor:
    return _lost(logits, wanted) * (wanted != PAD)


def in_bits(logits: Tensor, wanted: Tensor) -> Tensor:
    return _lost(logits, wanted)[wanted != PAD].mean() / torch.tensor(2.0).log()


def over_positions(logits: Tensor, wanted: Tensor) -> Tensor:
    lost = -logits.log_softmax(1).gather(-1, wanted[..., None])[..., 0]
    return lost[wanted != PAD].mean()


# 3.3


def _cell(order: str = "ifgo", bias: str = "both", slip: str = "") -> Any:
    def cell(x, h, c, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
        added = {"both": b_ih + b_hh, "one": b_ih, "none": 0 * b_ih, "twice": 2 * b_ih}[bias]
        z = x @ W_ih.T + h @ W_hh.T + added
        part = dict(zip(order, z.chunk(4, -1), strict=True))
        i, f, o = (part[name] if slip == "raw" else part[name].sigmoid() for name in "ifo")
        g = part["g"].sigmoid() if slip == "sigmoid" else part["g"].tanh()
        if slip == "closed":
            f = 1 - f
        if slip == "exchanged":
            i, f = f, i
        new = f * c + i * g
        out = o * (c.tanh() if slip == "old" else new if slip == "no tanh" else new.tanh())
        return (new, out) if slip == "turned" else out if slip == "h alone" else (out, new)

    return cell


def the_library_cell(x, h, c, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    return torch.lstm_cell(x, (h, c), W_ih, W_hh, b_ih, b_hh)


def the_library_module(x, h, c, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    cell = nn.LSTMCell(x.shape[-1], h.shape[-1]).double()
    cell.load_state_dict({"weight_ih": W_ih, "weight_hh": W_hh, "bias_ih": b_ih, "bias_hh": b_hh})
    return cell(x, (h, c))


def not_transposed(x, h, c, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    return x @ W_ih, c


# 3.4


def _reader(how: str) -> Any:
    def read(cell: nn.LSTMCell, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(len(x), cell.hidden_size)
        for t in range(x.shape[1]):
            real = ~padding[:, t, None]
            token = x[:, t] * real if how == "input" else x[:, t]
            new_h, new_c = cell(token, (h, c))
            if how in ("ignored", "input"):
                h, c = new_h, new_c
            elif how == "zero":
                h, c = new_h * real, new_c * real
            elif how == "only h":
                h, c = torch.where(real, new_h, h), new_c
            elif how == "only c":
                h, c = new_h, torch.where(real, new_c, c)
            elif how == "inverted":
                h, c = torch.where(real, h, new_h), torch.where(real, c, new_c)
        return h, c

    return read


def until_the_first_filling(cell: nn.LSTMCell, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    h = c = x.new_zeros(len(x), cell.hidden_size)
    going = torch.ones_like(padding[:, :1])
    for t in range(x.shape[1]):
        going = going & ~padding[:, t, None]
        new_h, new_c = cell(x[:, t], (h, c))
        h, c = torch.where(going, new_h, h), torch.where(going, new_c, c)
    return h, c


def first_tokens_by_count(cell: nn.LSTMCell, x: Tensor, padding: Tensor) -> Any:
    ends = []
    for row, real in zip(x, (~padding).sum(1).tolist(), strict=True):
        h = c = x.new_zeros(1, cell.hidden_size)
        for t in range(real):
            h, c = cell(row[None, t], (h, c))
        ends.append((h, c))
    return torch.cat([h for h, _ in ends]), torch.cat([c for _, c in ends])


def without_a_state(cell: nn.LSTMCell, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    h = c = torch.zeros(len(x), cell.hidden_size)
    for t in range(x.shape[1]):
        real = ~padding[:, t, None]
        new_h, new_c = cell(x[:, t])
        h, c = torch.where(real, new_h, h), torch.where(real, new_c, c)
    return h, c


def c_before_h(cell: nn.LSTMCell, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    h = c = torch.zeros(len(x), cell.hidden_size)
    for t in range(x.shape[1]):
        real = ~padding[:, t, None]
        new_h, new_c = cell(x[:, t], (h, c))
        h, c = torch.where(real, new_h, h), torch.where(real, new_c, c)
    return c, h


def outputs_only(cell: nn.LSTMCell, x: Tensor, padding: Tensor) -> Tensor:
    return _reader("ignored")(cell, x, padding)[0]


_STEPS = {
    "lstm_training": 51,
    "transformer_training": 5,
    "lstm_writing": 70,
    "transformer_writing": 43,
}
_TALK = {
    "numbers": 960,
    "plain": 30,
    "reversed_first": 1,
    "reversed_last": 59,
    "reversed_mean": 30,
}

WRONG: dict[str, list[Any]] = {
    "3.1": [
        nothing_shifted,
        wrong_way,
        two_too_far,
        one_too_far,
        never_stops,
        no_start,
        filling_on_the_left,
        lengths_differ,
        not_filled,
        lambda rows: rows,
        lambda rows: (rows, rows),
        "one to the left",
    ],
    "3.2": [
        everything_counts,
        library,
        divided_by_all,
        the_sum,
        mean_of_means,
        logits_silenced,
        log_of_softmax,
        no_logarithm,
        without_the_end,
        not_reduced,
        in_bits,
        over_positions,
        lambda logits, wanted: -_lost(logits, wanted)[wanted != PAD].mean(),
        lambda logits, wanted: logits,
        1.0,
    ],
    "3.3": [
        the_library_cell,
        the_library_module,
        not_transposed,
        _cell("ifog"),
        _cell("fiog"),
        _cell("figo"),
        _cell(bias="one"),
        _cell(bias="none"),
        _cell(bias="twice"),
        _cell(slip="exchanged"),
        _cell(slip="sigmoid"),
        _cell(slip="raw"),
        _cell(slip="closed"),
        _cell(slip="no tanh"),
        _cell(slip="old"),
        _cell(slip="turned"),
        _cell(slip="h alone"),
    ],
    "3.4": [
        _reader("ignored"),
        _reader("input"),
        _reader("zero"),
        _reader("only h"),
        _reader("only c"),
        _reader("inverted"),
        until_the_first_filling,
        first_tokens_by_count,
        outputs_only,
        without_a_state,
        c_before_h,
        lambda cell, x, padding: cell(x[:, -1]),
    ],
    "3.5": [
        {**_STEPS, "lstm_training": 100},  # layers one after the other
        {**_STEPS, "lstm_training": 50},  # the last climb forgotten
        {**_STEPS, "lstm_training": 52},
        {**_STEPS, "transformer_training": 250},  # token by token
        {**_STEPS, "transformer_training": 43},
        {**_STEPS, "lstm_writing": 51},  # as in training
        {**_STEPS, "lstm_writing": 100},
        {**_STEPS, "lstm_writing": 40},  # the source not read
        {**_STEPS, "transformer_writing": 5},  # as in training
        {**_STEPS, "transformer_writing": 100},  # the source read again and again
        {**_STEPS, "transformer_writing": 7},
        {"lstm_training": 51},
        {**_STEPS, "lstm_training": "many"},
        51,
    ],
    "3.6": [
        {**_TALK, "numbers": 240},  # h of one layer
        {**_TALK, "numbers": 480},
        {**_TALK, "numbers": 7200},  # all outputs
        {**_TALK, "numbers": 17},
        {**_TALK, "plain": 29},
        {**_TALK, "plain": 60},
        {**_TALK, "reversed_first": 30},
        {**_TALK, "reversed_last": 30},
        {**_TALK, "reversed_mean": 15},
        {**_TALK, "reversed_mean": 2},
        {"numbers": 960},
        "attention",
    ],
}
