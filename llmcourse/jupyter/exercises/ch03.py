"""Checks of chapter 03: teacher forcing, padding, an LSTM cell, and the chain of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from llmcourse.data.vocabulary import BOS, EOS, PAD
from llmcourse.jupyter.exercises.answers import number_field, parts
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.compare import call_as
from llmcourse.jupyter.exercises.watch import not_calling

State = tuple[Tensor, Tensor]


# 3.1 Teacher forcing ---------------------------------------------------------------------------


def _table(got: Any, name: str, rows: int, given: str) -> list[list[int]]:
    """A (B, T) tensor, or rows of one length, as lists."""
    if isinstance(got, Tensor):
        got = got.tolist()
    try:
        listed = [[int(one) for one in row] for row in got]
    except (TypeError, ValueError):
        raise Wrong(f"{name}: a (B, T) tensor of ids is wanted.", given=given, got=got) from None
    if len(listed) != rows:
        why = f"{name} has {len(listed)} rows, and there are {rows} sentences."
        raise Wrong(why, given=given, got=listed)
    if len({len(row) for row in listed}) > 1:
        why = f"{name}: the rows differ in length. Fill the short ones with PAD on the right."
        raise Wrong(why, given=given, got=listed)
    return listed


def check_shift(teach: Callable[..., Any]) -> None:
    for rows in ([[5, 6, 7], [8]], [[9]], [[4, 11], [5, 6, 7, 8, 9], [12, 5, 5]]):
        given = f"the sentences {rows}"
        two = ("what the decoder is given", "what it has to say")
        pair = parts(call(teach, rows), two, given)
        shown, wanted = (
            _table(one, name, len(rows), given)
            for one, name in zip(pair, ("given", "wanted"), strict=True)
        )
        if len(shown[0]) != len(wanted[0]):
            why = "Both need the same length: at each position one token is given, one is wanted."
            raise Wrong(why, given=given, expected="one shape", got=(shown, wanted))
        for row, came, asked in zip(rows, shown, wanted, strict=True):
            told: dict[str, Any] = {"given": f"the sentence {row}", "got": (came, asked)}
            _judge_shift(row, _stripped(came), _stripped(asked), told)
            if _stripped(asked) != asked[: len(row) + 1]:
                why = "The filling stands on the left or in between; here it goes to the right."
                raise Wrong(why, **told)


def _stripped(row: list[int]) -> list[int]:
    return [one for one in row if one != PAD]


def _judge_shift(row: list[int], came: list[int], asked: list[int], told: dict[str, Any]) -> None:
    """One sentence. What is given where nothing is wanted any more does not matter."""
    if came == asked and len(asked) > 1:
        why = "The decoder is handed the very token it has to say. It will learn to copy, and the "
        raise Wrong(why + "loss will look wonderful.", **told)
    if asked == [*row, EOS] and came[: len(row) + 1] == [BOS, *row]:
        return
    if came == [*row, EOS] and asked[: len(row) + 1] == [BOS, *row]:
        why = "The two are exchanged, or the shift goes the wrong way: at each position the NEXT "
        raise Wrong(why + "token is wanted.", **told)
    if BOS in asked:
        raise Wrong("BOS is given, and never wanted: no sentence continues with it.", **told)
    if EOS not in asked:
        why = "EOS is never wanted, so the decoder would never learn to stop."
        raise Wrong(why, **told)
    if BOS not in came:
        why = "The first word has to be said, too, and before it nothing was given. What stands "
        raise Wrong(why + "at the start?", **told)
    if asked == [*row[1:], EOS]:
        why = "The first word is never wanted: the shift is one position too far."
        raise Wrong(why, **told)
    raise Wrong("At each position, what is wanted is the token after the one given.", **told)


# 3.2 A loss that does not count padding --------------------------------------------------------


def check_loss(translation_loss: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(32)
    cases: list[tuple[str, list[list[int]], float]] = [
        ("no filling", [[4, 5, 2]], 1.0),
        ("a long and a short sentence", [[4, 5, 6, 2], [7, 2, 0, 0]], 1.0),
        ("three lengths", [[4, 2, 0, 0, 0], [5, 6, 7, 4, 2], [6, 5, 2, 0, 0]], 1.0),
        ("logits of several hundred", [[4, 5, 2], [6, 2, 0]], 300.0),
    ]
    for what, rows, size in cases:
        wanted = torch.tensor(rows)
        B, T = wanted.shape
        V = 8
        given = f"logits of shape {(B, T, V)}, wanted {rows} ({what})"
        logits = size * torch.randn(B, T, V, generator=generator)
        exact = logits.double()
        real = wanted != PAD
        lost = -exact.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]  # (B, T)
        right = (lost * real).sum() / real.sum()
        itself = "`ignore_index` is the library's answer. Here, write what it does."
        with not_calling("cross_entropy", "nll_loss", say=itself, when=_leaves_filling_out):
            got = call(translation_loss, logits, wanted)
        if isinstance(got, Tensor) and got.numel() == 1:
            got = got.reshape(())
            if not got.isfinite():
                why = "It is not finite: the logarithm of a softmax that underflowed is -∞. "
                raise Wrong(why + "There is one function for both.", given=given, got=got)
        p = exact.softmax(-1).gather(-1, wanted[..., None])[..., 0]
        muted = -(exact * real[..., None]).log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
        bad = (real & (wanted != EOS)).sum()
        across = -exact.log_softmax(1).gather(-1, wanted[..., None])[..., 0]
        expect_close(
            got, right, given=given, tol=1e-4,
            slips=[
                (lost.mean(), "The filling is counted: the model earns an easy loss for "
                              "predicting PAD after PAD."),
                ((lost * real).sum() / (B * T), "The filling is out of the sum and still in the "
                                                "count. Divide by the tokens that count."),
                ((lost * real).sum(), "That is the sum. The mean over the real tokens is wanted."),
                ((lost * real).sum() / B, "That is the loss a sentence. Divide by the tokens, or "
                                          "long sentences weigh more."),
                (((lost * real).sum(1) / real.sum(1)).mean(),
                 "That is the mean of the sentences' means. Every token is to weigh the same."),
                (muted.mean(), "Logits set to 0 are no silence: they say that all V words are "
                               "equally likely, and cost log V."),
                (-right, "The sign is turned: a loss is positive."),
                (right / math.log(2), "Those are bits. Nats are wanted: the natural logarithm."),
                (across[real].mean(), "The softmax ran over the positions. Which axis of (B, T, V) "
                                      "holds the words?"),
                (-(p * real).sum() / real.sum(), "The logarithm is missing."),
                ((lost * (wanted != EOS) * real).sum() / bad,
                 "EOS was left out. To stop is something the decoder must learn, too."),
                (lost * real, "One number is wanted, the mean; these are the losses of all tokens."),
            ],
        )  # fmt: skip


def _leaves_filling_out(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("ignore_index") == PAD


# 3.3 An LSTM cell ------------------------------------------------------------------------------


def _cell(
    x: Tensor, h: Tensor, c: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    *, order: str = "ifgo", biases: int = 2, squash: bool = True, candidate: str = "tanh",
    exchanged: bool = False, old: bool = False, turned: bool = False, gates: str = "sigmoid",
) -> State:  # fmt: skip
    """The cell, with one mistake if asked for one."""
    bias = {2: b_ih + b_hh, 1: b_ih, 0: 0 * b_ih, 4: 2 * b_ih}[biases]
    z = x @ W_ih.T + h @ W_hh.T + bias
    part = dict(zip(order, z.chunk(4, dim=-1), strict=True))
    i, f, o = (part[name].sigmoid() if gates != "raw" else part[name] for name in "ifo")
    g = {"tanh": part["g"].tanh(), "sigmoid": part["g"].sigmoid(), "raw": part["g"]}[candidate]
    if exchanged:
        i, f = f, i
    if gates == "closed":
        f = 1 - f
    new = f * c + i * g
    held = c if old else new
    h = o * (held.tanh() if squash else held)
    return (new, h) if turned else (h, new)


_CELL_SLIPS: list[tuple[dict[str, Any], str]] = [
    ({"turned": True}, "The order is h, then c."),
    ({"biases": 1}, "One bias is missing: PyTorch keeps two, and adds both."),
    ({"biases": 0}, "Both biases are missing."),
    ({"biases": 4}, "b_ih was added twice; the second one is b_hh."),
    ({"order": "ifog"}, "The gates are cut in the order i, f, o, g. PyTorch's is i, f, g, o."),
    ({"order": "fiog"}, "The gates are cut in another order than PyTorch's i, f, g, o."),
    ({"order": "figo"}, "Input gate and forget gate are exchanged in the cut: i comes first."),
    (
        {"exchanged": True},
        "i and f are exchanged: f says what stays of the old c, i what is let in.",
    ),
    ({"gates": "raw"}, "The gates lack their sigmoid: it keeps them between 0 and 1."),
    (
        {"gates": "raw", "candidate": "raw"},
        "The four parts are still raw: sigmoid and tanh are due.",
    ),
    ({"candidate": "raw"}, "g lacks its tanh."),
    ({"gates": "closed"}, "f near 1 means keep: it is the old c times f, not times 1 - f."),
    ({"candidate": "sigmoid"}, "g is no gate: it is what is written, between -1 and 1."),
    ({"squash": False}, "c leaves through a tanh before the output gate."),
    ({"old": True}, "h was made of the old c. Update c first."),
]


def check_cell(lstm_cell: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(33)
    for B, E, N in [(1, 2, 3), (4, 3, 3), (2, 5, 4)]:
        given = f"x of shape {(B, E)}, h and c of shape {(B, N)}, four gates"
        shapes = [(B, E), (B, N), (B, N), (4 * N, E), (4 * N, N), (4 * N,), (4 * N,)]
        args = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
        right = torch.lstm_cell(args[0], (args[1], args[2]), *args[3:])
        itself = "That is the library's own cell. Build it from matrix products, sigmoid and tanh."
        with not_calling("lstm_cell", "LSTMCell.forward", "LSTM.forward", say=itself):
            got = call(lstm_cell, *args)
        pair = parts(got, ("the new h", "the new c"), given)
        for at in (1, 0):  # c first: h is made of it
            slips = [(_cell(*args, **how)[at], why) for how, why in _CELL_SLIPS]
            expect_close(pair[at], right[at], given=given, name="hc"[at], tol=1e-4, slips=slips)


# 3.4 Padded equals unpadded --------------------------------------------------------------------


def _read(cell: nn.LSTMCell, x: Tensor, padding: Tensor, how: str = "right") -> State:
    """The states after the real tokens, or after a typical mistake."""
    h = c = x.new_zeros(len(x), cell.hidden_size)
    ended = torch.zeros_like(padding[:, :1])
    if how == "shortest":
        shortest = int((~padding).sum(1).min())
        x, padding, how = x[:, :shortest], padding[:, :shortest], "ignored"
    if how == "count":
        padding = torch.arange(x.shape[1]) >= (~padding).sum(1, keepdim=True)
    for t in range(x.shape[1]):
        skip = padding[:, t, None]
        token = x[:, t] * ~skip if how == "input" else x[:, t]
        new_h, new_c = cell(token, None if how == "forgetful" else (h, c))
        if how == "zero":
            h, c = new_h * ~skip, new_c * ~skip
            continue
        if how in ("ignored", "input"):
            skip = torch.zeros_like(skip)
        if how == "inverted":
            skip = ~skip
        if how == "first end":
            ended = ended | skip
            skip = ended
        if how == "previous":
            skip = padding[:, max(t - 1, 0), None]
        h, c = (
            new_h if how == "only c" else torch.where(skip, h, new_h),
            new_c if how == "only h" else torch.where(skip, c, new_c),
        )
    return h, c


_READ_SLIPS = {
    "ignored": "The filling is read like words: the same sentence ends in another state in a longer "
    "batch.",
    "input": "An input of 0 is no silence: the biases and the old state still move the cell.",
    "zero": "The state is wiped out at the filling. It should stay as it was.",
    "only h": "h waits at the filling, but c does not: the memory goes on changing.",
    "only c": "c waits at the filling, but h does not.",
    "first end": "That stops for good at the first filling. Filling may stand on the left, too.",
    "inverted": "True marks filling: the real tokens were skipped.",
    "shortest": "The batch was cut at its shortest sentence; the others lose words.",
    "count": "The number of real tokens is right, but they were taken from the left, where filling may "
    "stand.",
    "previous": "That looks at the filling of the position before: off by one.",
    "forgetful": "Each token starts from nothing: the cell was not given the state before it.",
}


def check_read(read: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(34)
    cell = nn.LSTMCell(3, 4)  # of float32: a reader's `torch.zeros(B, N)` is, too
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layouts = [
        ("no filling", ["1111", "1111"]),
        ("filling on the right", ["11111", "11000", "11110"]),
        ("filling on the left", ["00111", "11111", "00001"]),
        ("filling on both sides", ["0110", "1111", "0011"]),
    ]
    for what, rows in layouts:
        padding = torch.tensor([[mark == "0" for mark in row] for row in rows])
        B, S = padding.shape
        given = f"{B} sentences of up to {S} tokens, {what}"
        x = torch.randn(B, S, 3, generator=generator)
        got = call_as(given, read, deepcopy(cell), x, padding)
        pair = parts(got, "hc", given)
        with torch.no_grad():
            right = _read(cell, x, padding)
            slips = {how: _read(cell, x, padding, how) for how in _READ_SLIPS}
        for at in (0, 1):
            listed = [(state[at], _READ_SLIPS[how]) for how, state in slips.items()]
            listed.append((right[1 - at], "The order is h, then c."))
            expect_close(pair[at], right[at], given=given, name="hc"[at], tol=1e-4, slips=listed)


# 3.5 Steps that wait for one another -----------------------------------------------------------


def check_steps(answer: Any) -> None:
    given = "S = 30, T = 20; LSTMs of 2 + 2 layers; a Transformer of 3 + 2 blocks"
    right = {
        "lstm_training": 51,
        "transformer_training": 5,
        "lstm_writing": 70,
        "transformer_writing": 43,
    }
    slips: dict[str, dict[float, str]] = {
        "lstm_training": {
            100: "All steps were added. But layer 2 can read token 1 while layer 1 reads token 2.",
            50: "Nearly: the last token still has to climb to the second layer.",
            52: "One too many: the decoder's first layer starts from the encoder's first layer, "
            "which is done one step before the second.",
            4: "Layers can not run through all tokens at once: each step needs the state before it.",
            30: "That is the encoder's first layer alone.",
            31: "That is the encoder. The decoder starts from its end.",
            20: "That is the decoder's first layer alone.",
            21: "That is the decoder. It waits for the encoder.",
            70: "In training the true words are known: the decoder's first layer need not wait for "
            "the second to choose a word.",
        },
        "transformer_training": {
            3: "That is the encoder. The decoder's blocks need its output.",
            2: "That is the decoder. It waits for the encoder.",
            250: "In a block all tokens are handled at the same time.",
            130: "In a block all tokens are handled at the same time.",
            50: "In a block all tokens are handled at the same time.",
            51: "In a block all tokens are handled at the same time.",
            43: "In training the true words are known: all positions of the decoder run at once.",
        },
        "lstm_writing": {
            51: "Now a word must be chosen in the top layer before the next one can be read in the "
            "first.",
            50: "Each new word climbs through two layers.",
            100: "The writing is right. But reading is a wave: layer 2 of the encoder works beside "
            "layer 1, not after it.",
            71: "One too many: when the decoder's first layer has made its first step, the "
            "encoder's second layer is done, too.",
            40: "That is the writing. Who has read the source?",
            20: "Each new word climbs through two layers, and first the source is read.",
        },
        "transformer_writing": {
            5: "That is training. In writing a word must be chosen before the next one can be read.",
            40: "That is the decoder. Who has read the source?",
            100: "The source is read once, not again for every word.",
            23: "Each new word climbs through both blocks of the decoder.",
            22: "Each new word climbs through both blocks of the decoder.",
            60: "The source is read once, and each new word climbs through the decoder's blocks only.",
            70: "The source is read all at once: each of the encoder's blocks counts once.",
        },
    }
    for name in right:
        got = number_field(answer, name, list(right))
        if got == right[name]:
            continue
        why = slips[name].get(got, "walk the chain: what must be finished before this can start?")
        raise Wrong(f"{name}: {why}", given=given, got=got)


# 3.6 Interview ---------------------------------------------------------------------------------


def check_interview(answer: Any) -> None:
    given = "2 layers of 240, 30 words, word i translated by word i"
    right = {
        "numbers": 960,
        "plain": 30,
        "reversed_first": 1,
        "reversed_last": 59,
        "reversed_mean": 30,
    }
    near = "count from the step that reads the word to the step that writes its translation: the "
    near += "difference of the two step numbers."
    slips: dict[str, dict[float, str]] = {
        "numbers": {
            240: "that is h of one layer. An LSTM's state is h and c, in each layer.",
            480: "that is half of it. An LSTM's state is h and c, in each layer.",
            7200: "those are all outputs of the top layer. Without attention the decoder never "
            "sees them.",
            14400: "those are the outputs of all steps. Without attention the decoder sees the "
            "last state only.",
            28800: "the number of words does not matter: only the last state is handed over.",
            30: "the number of words does not matter: the state always has the same size.",
        },
        "plain": {29: near, 31: near, 59: near, 60: near, 1: near, 0: near, 15: near},
        "reversed_first": {
            30: "the source is now read from its end: when is word 1 read?",
            0: near,
            2: near,
            59: "that is the last word. The first one is now read just before the writing starts.",
        },
        "reversed_last": {
            60: near,
            58: near,
            30: "the last word is now read first, and written last.",
            1: "that is the first word. The last one is now read first, and written last.",
        },
        "reversed_mean": {
            29.5: "walk all words: the distances are 1, 3, 5, … What is their mean?",
            15: "walk all words: the distances are 1, 3, 5, … What is their mean?",
            1: "that is the first word alone. The distances are 1, 3, 5, …",
        },
    }
    for name in right:
        got = number_field(answer, name, list(right))
        if got == right[name]:
            continue
        why = slips[name].get(got, "not that. " + near[0].upper() + near[1:])
        if name == "numbers" and got not in slips[name]:
            why = "not that. What does the decoder start from? h and c, in each layer."
        raise Wrong(f"{name}: {why}", given=given, got=got)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "3.1",
        "Teacher forcing",
        1,
        check_shift,
        (
            "Write one sentence by hand: above, what the decoder sees; below, what it has to say.",
            "Before the first word it sees BOS; after the last word it has to say EOS.",
            "So one is [BOS, *row], the other [*row, EOS]: equally long. Then fill both.",
        ),
        "One position apart: whoever forgets it trains a copying machine with a wonderful loss.",
    ),
    Exercise(
        "3.2",
        "A loss that does not count padding",
        2,
        check_loss,
        (
            "First the loss of every token, (B, T); only then decide which of them count.",
            "-logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0] is the loss of each "
            "token.",
            "wanted != PAD marks those that count: pick them, and take the mean of what is left.",
        ),
        "A loss is a mean over something: say over what, or short sentences make it look good.",
    ),
    Exercise(
        "3.3",
        "An LSTM cell equal to PyTorch's",
        2,
        check_cell,
        (
            "All four are made at once: one (B, 4N) tensor from x and h, then cut it in four.",
            "W_ih has the shape (4N, E), so x meets its transpose; both biases are added.",
            "i, f, g, o = z.chunk(4, dim=-1); g goes through tanh, the gates through sigmoid.",
            "c = f * c + i * g, and then h = o * tanh(c).",
        ),
        "The new c is the old c times f, plus something: where f is near 1, memory and gradient "
        "pass.",
    ),
    Exercise(
        "3.4",
        "Padded equals unpadded",
        2,
        check_read,
        (
            "Loop over the positions. At each, some rows have a real token, some only filling.",
            "Let the cell compute all rows, then decide row by row whether the state may change.",
            "padding[:, t, None] is (B, 1): torch.where(it, old, new), for h and for c.",
        ),
        "Compute everywhere, keep where it counts: that is how batches of unequal length are made.",
    ),
    Exercise(
        "3.5",
        "Steps that wait for one another",
        1,
        check_steps,
        (
            "Draw a grid, tokens to the right, layers upwards. What must be done before each dot?",
            "An LSTM's dot waits for its left and its lower neighbour: a wave, S + L − 1 for one "
            "encoder of L layers.",
            "In writing, the first layer waits for the word, and the word for the top layer: L "
            "steps a word.",
        ),
        "Training is parallel over the words in one of them, writing in neither: chapter 08 starts "
        "here.",
    ),
    Exercise(
        "3.6",
        "Interview: what would you change first?",
        3,
        check_interview,
        (
            "Number the steps from 1 to 60: thirty for reading, then thirty for writing.",
            "Plain: word i is read at step i and written at step 30 + i.",
            "Reversed: word i is read at step 31 − i and still written at step 30 + i.",
        ),
        "Reading backwards leaves the mean distance as it was; it only gives training an easy end "
        "to start from. Attention makes every distance the same.",
    ),
)
