"""Checks of chapter 04: each knows the typical mistakes by computing what they would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmcourse.data.vocabulary import BOS, EOS, PAD
from llmcourse.jupyter.exercises.answers import field, number_field, parts, tensor
from llmcourse.jupyter.exercises.base import Exercise, Wrong, call, expect_close
from llmcourse.jupyter.exercises.watch import not_calling

# 4.1 Three masks -------------------------------------------------------------------------------

_SOURCES = ([[5, 6, 7, 2, PAD, PAD], [8, 9, 4, 5, 6, 2]], [[PAD, PAD, 7, 5, 2]])
_TARGETS = ([[BOS, 7, 8, PAD], [BOS, 9, 5, 6]], [[BOS, 4, 6]])


def check_masks(masks: Callable[[Tensor, Tensor], Any]) -> None:
    for source_rows, target_rows in zip(_SOURCES, _TARGETS, strict=True):
        source, target = torch.tensor(source_rows), torch.tensor(target_rows)
        given = f"source {source_rows}, target {target_rows}"
        got = call(masks, source, target)
        three = ("for the encoder", "for the decoder", "for the cross-attention")
        got = parts(got, three, given, "masks")
        (B, S), T = source.shape, target.shape[1]
        filling = (source == PAD)[:, None]  # (B, 1, S)
        ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
        none = torch.zeros(())
        cases = [
            ("encoder", S, S, source, filling.expand(B, S, S), [
                ("encoder: the mask stands on the side of the queries, so everybody still sees the "
                 "filling. Hide columns, not rows.", (source == PAD)[:, :, None]),
                ("encoder: no filling is hidden. Which keys are PAD?", none),
                ("encoder: the future is hidden too. The source is known from the start; the "
                 "encoder may look both ways.", filling | torch.ones(S, S).triu(1).bool()),
                ("encoder: that is the decoder's mask, and the filling is still seen.",
                 torch.ones(S, S).triu(1).bool()),
                ("encoder: upside down. True means hidden.", ~filling),
            ]),
            ("decoder", T, T, target, ahead.expand(B, T, T), [
                ("decoder: nothing is hidden, so each position may copy the token it should "
                 "predict.", none),
                ("decoder: filling is hidden, the future is not.", (target == PAD)[:, None]),
                ("decoder: a position must see itself: it holds the token that was just written, "
                 "not the one to come.", torch.ones(T, T).triu(0).bool()),
                ("decoder: it hides the past. Row i is query i, and later keys have larger j.",
                 ahead.T),
                ("decoder: upside down. True means hidden.", ~ahead),
            ]),
            ("cross", T, S, target, filling.expand(B, T, S), [
                ("cross: no filling of the source is hidden.", none),
                ("cross: the source has no future to hide; only its filling.",
                 filling | torch.ones(T, S).triu(1).bool()),
                ("cross: a causal mask hides source words from the first target positions, and "
                 "leaves the filling.", torch.ones(T, S).triu(1).bool()),
                ("cross: upside down. True means hidden.", ~filling),
            ]),
        ]  # fmt: skip
        for (name, rows, columns, asker, due, slips), found in zip(cases, got, strict=True):
            mask = _mask(found, (B, rows, columns), name, given)
            real = asker != PAD  # what filling would look at is nobody's business
            if torch.equal(mask[real], due[real]):
                continue
            for sentence, wrong in slips:
                if torch.equal(mask[real], wrong.bool().expand(B, rows, columns)[real]):
                    whole = torch.equal(mask, wrong.bool().expand(B, rows, columns))
                    if whole or "rows" not in sentence:
                        raise Wrong(sentence, given=given, got=mask)
            row = (mask != due).any(-1) & real
            b, i = row.nonzero()[0].tolist()
            why = f"{name}: sentence {b}, query {i} sees the wrong keys."
            raise Wrong(why, given=given, expected=due[b, i].tolist(), got=mask[b, i].tolist())


def _mask(found: Any, shape: tuple[int, int, int], name: str, given: str) -> Tensor:
    """A Boolean mask spread out to its whole shape."""
    try:
        mask = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(
            f"{name}: a mask is a tensor of True and False.", given=given, got=found
        ) from None
    if mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
        why = f"{name}: give True and False here; −∞ comes when the scores are masked."
        raise Wrong(why, given=given, got=mask)
    try:
        return mask.bool().expand(shape)
    except RuntimeError:
        why = f"{name}: rows are those who ask, columns those who are asked."
        told = f"shape {tuple(mask.shape)}"
        raise Wrong(why, given=given, expected=f"shape {shape}", got=told) from None


# 4.2 Cross-attention ---------------------------------------------------------------------------


def check_cross(cross_attention: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(42)
    library = ("scaled_dot_product_attention", "multi_head_attention_forward", "attend")
    itself = "That is {name}. Build it from matrix products and a softmax."
    for B, H, G, T, S, D, fill in [
        (1, 1, 1, 3, 3, 4, 0),
        (2, 4, 4, 3, 3, 4, 1),
        (2, 4, 2, 5, 7, 4, 2),
        (1, 4, 1, 1, 6, 8, 3),
    ]:
        C = H * D
        given = f"x of shape {(B, T, C)}, source {(B, S, C)}, {H} heads, w['k'] {(C, G * D)}"
        given += f", the last {fill} of source 0 filling" if fill else ", no filling"
        sizes = {"q": (C, C), "k": (C, G * D), "v": (C, G * D), "o": (C, C)}
        w = {
            name: torch.randn(size, generator=generator) * 2 * C**-0.5
            for name, size in sizes.items()
        }
        x = torch.randn(B, T, C, generator=generator)
        source = torch.randn(B, S, C, generator=generator)
        padding = torch.zeros(B, S, dtype=torch.bool)
        padding[0, S - fill :] = fill > 0
        with not_calling(*library, say=itself):
            got = call(cross_attention, x, source, w, H, padding)
        if isinstance(got, Tensor) and T != S and got.shape == (B, S, C):
            why = "There are S rows, one for each source token. The decoder asks: queries come from x."
            raise Wrong(why, given=given, got=f"shape {tuple(got.shape)}")
        about: dict[str, Any] = {"w": w, "H": H, "G": G}
        expected = _cross(x, source, source, padding, **about)
        none = torch.zeros(B, S, dtype=torch.bool)
        empty = torch.zeros(B, T, dtype=torch.bool)
        slips: list[tuple[Tensor, str]] = [
            (_cross(x, x, x, empty, **about),
             "Keys and values came from the decoder: that is self-attention. The source answers."),
            (_cross(x, source, source, none, **about),
             "The filling is still looked at: hide the scores of padded keys before the softmax."),
            (_cross(x, source, source, padding, late=True, **about),
             "The weights of the filling were set to 0 after the softmax, so the rows no longer sum "
             "to 1."),
            (_cross(x, source, source, ~padding, **about),
             "`padding` is True where there is nothing to see; you kept just that."),
            (_cross(x, source, source, padding, scale=1.0, **about),
             "The scale is missing: divide the scores by √D."),
            (_cross(x, source, source, padding, scale=C**-0.5, **about),
             "You divided by √C. Each head has only D = C / heads entries."),
            (_cross(x, source, source, padding, scale=1 / D, **about),
             "You divided by D; the scale is √D."),
            (_cross(x, source, source, padding, tile=True, **about),
             "Heads that share keys are neighbours: 0 0 1 1, not 0 1 0 1."),
            (_cross(x, source, source, padding, mix=False, **about),
             "The heads were joined, but not mixed: w['o'] is still to come."),
            (_cross(x, source, source, padding, axis=-2, **about),
             "The softmax runs over the queries. Each query shares its weights out among the source "
             "tokens."),
            (_cross(x, source, source, padding, causal=True, **about),
             "There is a causal mask. The source is known from the start: nothing of it is future."),
            (_cross(x, source, source, padding, fill=0.0, **about),
             "The scores of the filling were set to 0: that is still a weight of e⁰ = 1. Set them to −∞."),
            (_cross(x, source, source, padding,
                    **(about | {"w": w | {"k": w["v"], "v": w["k"]}})),
             "Keys and values are exchanged: scores come from w['k'], and what is mixed from w['v']."),
            (_cross(x, source, source, padding, cut=True, **about),
             "The heads were joined without putting them back: (B, H, T, D) first becomes (B, T, H, D)."),
            (_cross(x, source, source, padding, **(about | {"w": w | {"v": w["k"]}})),
             "The values are not projected, or projected by w['k']."),
            (_cross(x, source, source, padding, **(about | {"w": w | {n: w[n].T for n in "qo"}})),
             "The matrices are used transposed. A vector stands on the left: x @ w['q']."),
        ]  # fmt: skip
        if T == S:
            slips += [
                (_cross(source, source, source, padding, **about),
                 "Queries came from the source. The decoder asks: queries come from x."),
                (_cross(x, source, x, padding, **about),
                 "Only the keys came from the source; the values did not."),
                (_cross(source, x, x, empty, **about), "Who asks and who answers is swapped."),
            ]  # fmt: skip
        if G == H > 1:
            one = about | {"H": 1, "G": 1}
            why = "That is one head as wide as the model: cut q, k and v into heads before the scores."
            slips += [
                (_cross(x, source, source, padding, **one), why),
                (_cross(x, source, source, padding, scale=D**-0.5, **one), why),
            ]
        why = "It differs from the formula."
        if G < H:
            why += f" With fewer heads of keys it does: {H} query heads share {G}."
        expect_close(got, expected, given=given, tol=1e-4, why=why, slips=slips)


def _cross(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    padding: Tensor,
    *,
    w: Mapping[str, Tensor],
    H: int,
    G: int,
    scale: float | None = None,
    late: bool = False,
    tile: bool = False,
    mix: bool = True,
    axis: int = -1,
    causal: bool = False,
    fill: float = -torch.inf,
    cut: bool = False,
) -> Tensor:
    """Cross-attention in float64, head by head, with the usual slips as switches."""
    w = {name: value.double() for name, value in w.items()}
    q, k, v = x.double() @ w["q"], keys.double() @ w["k"], values.double() @ w["v"]
    D = q.shape[-1] // H
    outputs = []
    for head in range(H):
        group = head % G if tile else head // (H // G)
        own = slice(head * D, head * D + D)
        shared = slice(group * D, group * D + D)
        scores = q[..., own] @ k[..., shared].mT * (D**-0.5 if scale is None else scale)
        hidden = padding[:, None].expand_as(scores)
        if causal:
            hidden = hidden | torch.ones(scores.shape[-2:]).triu(1).bool()
        if not late:
            scores = scores.masked_fill(hidden, fill)
        weights = scores.softmax(axis)
        if late:
            weights = weights.masked_fill(hidden, 0)
        outputs.append(weights @ v[..., shared])
    joined = torch.stack(outputs, 1).flatten(1, 2).view(q.shape) if cut else torch.cat(outputs, -1)
    return joined @ w["o"] if mix else joined


# 4.3 Two ways BLEU goes wrong ------------------------------------------------------------------


def check_bleu(answer: Any) -> None:
    given = "translation of 10 words, reference of 20, all 10 found in it once"
    keys = ("tokens", "right", "swapped")
    slips: dict[str, tuple[float, list[tuple[float, str]]]] = {
        "tokens": (1, [
            (7, "Characters were counted. What does the default tokenizer cut at?"),
            (6, "That is what the Chinese tokenizer sees. The default one cuts at spaces and at "
                "ASCII punctuation."),
            (5, "Characters are what the Chinese tokenizer sees; and is 。 ASCII?"),
            (2, "The full stop 。 is not ASCII, so it stays where it is."),
            (4, "Words are known to nobody here: what does the default tokenizer cut at?"),
            (3, "Words are known to nobody here: what does the default tokenizer cut at?"),
            (0, "The sentence is not empty: a text without spaces is one long word."),
        ]),
        "right": (math.exp(-1), [
            (1, "That is the precision. A translation shorter than its reference pays the brevity "
                "penalty."),
            (0.5, "The penalty is exp(1 − 20/10), not the ratio of the lengths."),
            (math.exp(-0.5), "The exponent is 1 − reference/translation, not the other way round."),
            (0.5 * math.exp(-1), "The precision is 10 of 10: it is taken over the translation."),
            (0, "All ten words are right: the precision is not 0."),
        ]),
        "swapped": (0.5, [
            (math.exp(-1), "BLEU is not symmetric: now the 20 words are judged by the 10."),
            (1, "Only 10 of the 20 words are found now."),
            (0.5 * math.exp(-1), "No penalty now: what is judged is longer than what it is judged by."),
            (0.5 * math.exp(0.5), "The penalty is at most 1: being longer earns nothing."),
            (0, "10 of the 20 words are found."),
        ]),
    }  # fmt: skip
    both = [number_field(answer, name, keys) for name in ("right", "swapped")]
    if abs(both[0] - 0.5) < 0.006 and abs(both[1] - math.exp(-1)) < 0.006:
        raise Wrong("right and swapped are exchanged: the brevity penalty punishes what is *judged* "
                    "when it is the shorter one.", given=given, got=answer)  # fmt: skip
    for name, (due, wrong) in slips.items():
        got = number_field(answer, name, keys)
        if abs(got - due) < 0.006:
            continue
        for value, sentence in wrong:
            if abs(got - value) < 0.006:
                raise Wrong(f"{name}: {sentence}", given=given, got=got)
        if name != "tokens" and abs(got / 100 - due) < 0.006:
            raise Wrong(f"{name}: right, but give it between 0 and 1.", given=given, got=got)
        why = {
            "tokens": "count what stands between spaces, with ASCII punctuation cut off.",
            "right": "precision of the words, times the brevity penalty.",
            "swapped": "what was the reference is now judged, and the translation judges.",
        }[name]
        raise Wrong(f"{name}: {why}", given=given, got=got)


# 4.4 Label smoothing ---------------------------------------------------------------------------


def check_smoothing(smoothed_loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    generator = torch.Generator().manual_seed(43)
    for (B, T, V), amount, size in [
        ((1, 3, 5), 0.0, 1),
        ((2, 4, 6), 0.1, 1),
        ((3, 5, 9), 0.3, 3),
        ((1, 4, 5), 0.1, 300),
    ]:
        logits = size * torch.randn(B, T, V, generator=generator)
        target = torch.randint(3, V, (B, T), generator=generator)
        if B > 1:
            target[0, T - 2 :] = PAD
            target[1, T - 1 :] = PAD
        given = f"logits of shape {(B, T, V)}, target {target.tolist()}, amount {amount}"
        given += ", logits above 300" if size > 100 else ""
        itself = "That is cross_entropy itself. Start from the log-probabilities."
        with not_calling("cross_entropy", "cross_entropy_loss", say=itself):
            got = tensor(call(smoothed_loss, logits, target, amount), (), given)
        log_p = logits.double().log_softmax(-1)
        hit = -log_p.gather(-1, target[..., None])[..., 0]  # (B, T)
        spread = -log_p.mean(-1)
        real = target != PAD
        each = (1 - amount) * hit + amount * spread
        expected = each[real].mean()
        if not got.isfinite():
            why = "It is not finite: the logarithm of a softmax that became 0. Take log_softmax."
            raise Wrong(why, given=given, got=got)
        others = (-log_p.sum(-1) - hit) / (V - 1)
        expect_close(
            got, expected, given=given, tol=1e-4, why="That is not the smoothed loss.",
            slips=[
                (hit[real].mean(), "There is no smoothing in it."),
                (each.mean(), "Filling is counted: the mean runs over real targets only."),
                (each[real].sum() / each.numel(),
                 "Filling adds nothing to the sum, and is still counted in the mean."),
                (each[real].sum(), "That is the sum. Divide by the number of real targets."),
                (((1 - amount) * hit + amount * others)[real].mean(),
                 "The share went to the other tokens only. Here it goes to all V, the right one "
                 "included."),
                (((1 - amount) * hit - amount * log_p.sum(-1))[real].mean(),
                 "All V tokens together get the share: take the mean of their −log p, not the sum."),
                ((amount * hit + (1 - amount) * spread)[real].mean(),
                 "The two shares are exchanged: most of the weight belongs to the target."),
                ((hit + amount * spread)[real].mean(),
                 "The target keeps only 1 − amount of its weight; you left it whole."),
                (-expected, "The sign is turned: a loss is −log p."),
                (torch.stack([row[ok].mean() for row, ok in zip(each, real, strict=True)]).mean(),
                 "Sentences were averaged first, so short ones count more. Each token counts alike."),
                (-((1 - amount) * logits.double().gather(-1, target[..., None])[..., 0]
                   + amount * logits.double().mean(-1))[real].mean(),
                 "The logits are no log-probabilities yet: log_softmax first."),
                (_smoothed(logits.double().log_softmax(1), target, amount),
                 "The softmax runs over the positions. Each position shares its probability out among "
                 "the V tokens."),
                (((1 - amount) * hit - amount * log_p[..., PAD + 1 :].mean(-1))[real].mean(),
                 "PAD is one of the V tokens: leave out its *targets*, not its share."),
                (((1 - amount) * hit - amount * spread)[real].mean(),
                 "The smoothing is subtracted."),
            ],
        )  # fmt: skip


def _smoothed(log_p: Tensor, target: Tensor, amount: float) -> Tensor:
    each = (1 - amount) * log_p.gather(-1, target[..., None])[..., 0] + amount * log_p.mean(-1)
    return -each[target != PAD].mean()


# 4.5 Beam search -------------------------------------------------------------------------------

Step = Callable[[Sequence[int]], list[float]]
_V, _LONGEST = 6, 5


def _language(seed: int) -> Step:
    """A small language: log-probabilities of what follows depend on the place and the last token."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(_LONGEST + 1, _V, _V, generator=generator, dtype=torch.float64)
    logits[..., [PAD, BOS]] = -30.0
    logits[..., EOS] += 0.5
    table = logits.log_softmax(-1).tolist()

    def step(prefix: Sequence[int]) -> list[float]:
        tokens = [int(token) for token in prefix if int(token) != BOS]
        if EOS in tokens:
            raise ValueError("step was asked to go on after EOS")
        if len(tokens) > _LONGEST:
            raise ValueError(f"step was asked for more than {_LONGEST} tokens")
        return list(table[len(tokens)][tokens[-1] if tokens else BOS])

    return step


def _beam(
    step: Step, width: int, penalty: float, longest: int = _LONGEST, slip: str = ""
) -> list[int]:
    """Beam search over tuples, slow and plain, with the usual slips by name."""

    def rank(item: tuple[tuple[int, ...], float]) -> float:
        tokens, score = item
        n = len(tokens) - (slip == "eos not counted" and EOS in tokens)
        if slip == "no penalty":
            return score
        if slip == "mean":
            return score / max(1, n) ** penalty
        if slip == "multiplied":
            return score * ((5 + n) / 6) ** penalty
        return score / ((5 + n) / 6) ** penalty

    beam: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    aside: list[tuple[tuple[int, ...], float]] = []
    for _ in range(longest + {"too short": -1, "too long": 1}.get(slip, 0)):
        grown = []
        for tokens, score in beam:
            if EOS in tokens:
                if slip not in ("dropped", "aside"):
                    grown.append((tokens, score))
                continue
            for token, log_p in enumerate(step(tokens)):
                new = log_p if slip == "last only" else score + log_p
                if slip == "probabilities added":
                    new = score + math.exp(log_p)
                grown.append(((*tokens, token), new))
        if not grown:
            break
        by = (lambda item: item[1]) if slip == "prune by sum" else rank
        beam = sorted(grown, key=by, reverse=True)[:width]
        if slip == "aside":
            grown.sort(key=rank, reverse=True)
            aside += [item for item in grown[: 2 * width] if EOS in item[0]]
            beam = [item for item in grown if EOS not in item[0]][:width]
        if slip == "first finished" and any(EOS in tokens for tokens, _ in beam):
            beam = [item for item in beam if EOS in item[0]]
            break
        if all(EOS in tokens for tokens, _ in beam):
            break
    best = max(beam + aside, key=rank)[0]
    return [token for token in best if token != EOS]


# (language, width, penalty, longest): chosen so that every fair reading of the contract agrees (ended ones
# kept in the beam or set aside; pruned by sum or by rank) and each slip shows somewhere.
_BEAMS: tuple[tuple[int, int, float, int], ...] = (
    (5, 1, 0.0, _LONGEST),
    (1741, 3, 2.0, _LONGEST),
    (1144, 3, 2.0, _LONGEST),
    (3286, 3, 1.0, _LONGEST),
    (6, 3, 1.0, 3),  # nothing has ended by then
)

_BEAM_SLIPS = {
    "dropped": "Hypotheses that have ended are lost: keep them, at their score, until the end.",
    "last only": "Only the last step counts. A hypothesis is worth the sum of all its log "
    "probabilities.",
    "probabilities added": "Probabilities were added. A sentence's probability is the product of its "
    "steps: add their logarithms.",
    "no penalty": "The length penalty has no effect: long hypotheses lose only for being long.",
    "mean": "Divided by the length itself: the penalty is ((5 + n) / 6) ** penalty.",
    "multiplied": "Log probabilities are negative: multiplying by the penalty punishes length. Divide.",
    "eos not counted": "EOS counts as a token of the length.",
    "too short": "It stops one step early: a hypothesis may have `longest` tokens.",
    "too long": "It goes on after `longest` tokens; what has not ended by then counts as it is.",
    "first finished": "It stops when the first hypothesis ends; a better one may still be growing.",
}


def check_beam(beam_search: Callable[[Step, int, float, int], Any]) -> None:
    for seed, width, penalty, longest in _BEAMS:
        step = _language(seed)
        given = f"a language of {_V} tokens, width {width}, penalty {penalty:g}, at most {longest} tokens"
        got = call(beam_search, step, width, penalty, longest)
        tokens = _tokens(got, given)
        due = _beam(step, width, penalty, longest)
        if tokens == due:
            continue
        told = {"given": given, "expected": due, "got": tokens}
        if width > 1 and tokens == _beam(step, 1, penalty, longest):
            greedy_too = [
                s for s in _BEAM_SLIPS if _beam(step, width, penalty, longest, s) == tokens
            ]
            if not greedy_too:
                why = (
                    "That is the greedy answer: keep `width` hypotheses after every step, not one."
                )
                raise Wrong(why, **told)
        for slip, sentence in _BEAM_SLIPS.items():
            if tokens == _beam(step, width, penalty, longest, slip):
                raise Wrong(sentence, **told)
        raise Wrong(f"A better hypothesis of rank {_rank_of(step, due, penalty):.3f} was in reach; "
                    f"yours has {_rank_of(step, tokens, penalty):.3f}.", **told)  # fmt: skip


def _tokens(got: Any, given: str) -> list[int]:
    if isinstance(got, Tensor):
        got = got.tolist()
    try:
        tokens = [int(token) for token in got]
    except (TypeError, ValueError):
        raise Wrong("A list of tokens is wanted, like [4, 3].", given=given, got=got) from None
    if tokens and tokens[0] == BOS:
        tokens = tokens[1:]
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens


def _rank_of(step: Step, tokens: Sequence[int], penalty: float) -> float:
    """The rank of a whole answer, with EOS where there is room for it; -inf for what cannot be."""
    whole = [*tokens, EOS][:_LONGEST]
    score = 0.0
    for place, token in enumerate(whole):
        if not 0 <= token < _V:
            return -math.inf
        score += step(whole[:place])[token]
    return score / ((5 + len(whole)) / 6) ** penalty


# 4.6 Parallel over time ------------------------------------------------------------------------


def check_interview(answer: Any) -> None:
    names = ("transformer_training", "lstm_training", "generating", "scoring", "own_words")
    due = {"transformer_training": "1", "lstm_training": "T", "generating": "T", "scoring": "1",
           "own_words": "T"}  # fmt: skip
    why = {
        "transformer_training": "all the inputs are on the table before the first product: the "
        "translation is known, shifted by one.",
        "lstm_training": "the translation is known here too, but the state is not: what does state t "
        "wait for?",
        "generating": "token t is an input of step t + 1, and nobody has it yet.",
        "scoring": "the sentence is given, as in training: is anything still unknown?",
        "own_words": "teacher forcing is gone. Where does the input at place t come from now?",
    }
    for name in names:
        got = str(field(answer, name, names)).strip().lower()
        got = {"one": "1", "1.0": "1", "t": "T", "1": "1"}.get(got, got)
        if got not in ("1", "T"):
            raise Wrong(f"{name}: choose 1 or 'T'.", got=got)
        if got != due[name]:
            raise Wrong(f"{name}: {why[name]}", got=got)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "4.1",
        "The three masks",
        1,
        check_masks,
        (
            "Who asks is a row, who is asked a column. Filling must never be looked at.",
            "(source == PAD) is (B, S). Where does the new axis go, so that it marks columns?",
            "(source == PAD)[:, None] is (B, 1, S) and serves every query, of either side.",
            "The future: torch.ones(T, T, dtype=torch.bool).triu(1), and nowhere else.",
        ),
        "Two lines, three masks: what may be seen is all that tells an encoder from a decoder.",
    ),
    Exercise(
        "4.2",
        "Cross-attention with shared keys",
        2,
        check_cross,
        (
            "Queries from x; keys and values from source. How many heads of each fit?",
            "D is C // heads, and w['k'].shape[1] // D heads of keys there are.",
            "(B, S, G·D) → .unflatten(-1, (-1, D)).transpose(1, 2) → (B, G, S, D); then "
            "repeat_interleave along the heads.",
            "scores.masked_fill(padding[:, None, None], -torch.inf).softmax(-1) @ v, heads back to "
            "(B, T, C), times w['o'].",
        ),
        "The source is read once and asked at every step, so halving its heads halves what is kept.",
    ),
    Exercise(
        "4.3",
        "Two ways BLEU goes wrong",
        1,
        check_bleu,
        (
            "Where does a tokenizer made for European text cut?",
            "BLEU-1 is precision times min(1, exp(1 − reference length / translation length)).",
            "Swapped: 20 words are judged, 10 of them are found, and nothing is too short.",
        ),
        "The wrong order scores higher than the right one: nothing warns you but the habit of checking.",
    ),
    Exercise(
        "4.4",
        "Label smoothing from parts",
        2,
        check_smoothing,
        (
            "Two losses: −log p of the target, and the mean of −log p over all V tokens.",
            "Mix them: 1 − amount of the first, amount of the second.",
            "log_softmax(-1), then gather(-1, target[..., None]) picks the target's.",
            "Average over target != PAD only.",
        ),
        "The optimum is no longer certainty, so the logits stop growing: a brake for small data.",
    ),
    Exercise(
        "4.5",
        "Beam search with a length penalty",
        2,
        check_beam,
        (
            "A hypothesis is a list of tokens and the sum of their log probabilities.",
            "At each step every live one has V children; those that have ended are their own child.",
            "grown = [those that have ended] + [([*tokens, v], log_p + more) for each live one, for "
            "v, more in enumerate(step(tokens))].",
            "Sort grown by log_p / ((5 + n) / 6) ** penalty, keep the first `width`, and do so `longest` "
            "times; then the first of the beam is the answer, without EOS.",
        ),
        "Twelve lines. What the course's version adds is only batching: all hypotheses in one step of the model.",
    ),
    Exercise(
        "4.6",
        "Interview: parallel in training, not in generating",
        3,
        check_interview,
        (
            "For each case ask: what does position t need, and when is it there?",
            "Known target and no state: everything is there at once.",
            "An LSTM waits for its state; a writer waits for its own last word.",
        ),
        "The whole course lives in this sentence: reading is parallel, writing is not.",
    ),
)  # fmt: skip
