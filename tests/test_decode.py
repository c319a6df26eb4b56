"""The decoding room: sampling as a distribution, its filters against a slow obvious version."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.decode.generate import generate_cached
from llmcourse.decode.sampling import (
    filtered,
    generate_sampled,
    min_p,
    sample,
    top_k,
    top_p,
    with_temperature,
)
from llmcourse.errors import CourseError

INF = math.inf
DRAWS = 20_000
ODDS = 1e-6  # a right sampler fails one chi-square test with this probability


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny steps: a second thread only waits, and beside a busy program for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_hand(logits, temperature=1.0, k=None, p=None, share=None):
    """The distribution after all four settings, in Python floats, one token at a time."""
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if k is not None:
        order = order[:k]
    if p is not None and p < 1:
        total, kept, reached = sum(weights[i] for i in order), [], 0.0
        for i in order:
            kept.append(i)
            reached += weights[i] / total
            if reached >= p:
                break
        order = kept
    if share is not None:
        order = [i for i in order if weights[i] >= share * weights[order[0]]]
    total = sum(weights[i] for i in order)
    return [weights[i] / total if i in order else 0.0 for i in range(len(weights))]


def p_value(counts, expected):
    """Pearson's chi-square: how often a right sampler is off by as much as this, or more."""
    possible = expected > 0
    if counts[~possible].any():
        return 0.0
    gap = (counts - expected)[possible] ** 2 / expected[possible]
    degrees = torch.tensor((possible.sum().item() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(degrees, gap.sum() / 2).item() if degrees else 1.0


SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.2},
    "all": {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
    "one token": {"top_k": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sample_is_the_distribution(name):
    """Do 20,000 draws of each of two rows fit the distribution computed by hand?

    Pearson's chi-square with p below 1e-6 fails. 16 tests: a right sampler would fail one of them
    with odds of 16 in a million; the seed is fixed, so it passes always or never.
    """
    settings = SETTINGS[name]
    generator = torch.Generator().manual_seed(6)
    rows = [[2.0, 1.0, 0.5, 0.0, 0.0, -1.0, -3.0, 1.5], [0.0, 3.0, -1.0, 0.1, 2.9, 0.0, 1.0, -2.0]]
    logits = torch.tensor(rows).repeat_interleave(DRAWS, 0)  # (2 * DRAWS, V)
    drawn = sample(logits, generator=generator, **settings).view(2, DRAWS)
    names = {"temperature": "temperature", "top_k": "k", "top_p": "p", "min_p": "share"}
    by_name = {names[key]: value for key, value in settings.items()}
    for row, ids in zip(rows, drawn, strict=True):
        expected = DRAWS * torch.tensor(by_hand(row, **by_name), dtype=torch.float64)
        counts = torch.bincount(ids, minlength=8).double()
        assert p_value(counts, expected) > ODDS, (counts, expected)


def test_the_test_would_notice():
    """Would the same test refuse samplers with the usual faults, so that passing means something?"""
    generator = torch.Generator().manual_seed(7)
    row = [2.0, 1.0, 0.5, 0.0, 0.0, -1.0, -3.0, 1.5]
    expected = DRAWS * torch.tensor(by_hand(row, 1.5, p=0.8), dtype=torch.float64)
    logits = torch.tensor(row).expand(DRAWS, 8)
    faulty = {
        "no temperature": sample(logits, top_p=0.8, generator=generator),
        "temperature last": sample(
            top_p(logits, 0.8), temperature=1.5, generator=generator
        ),
        "no cut": sample(logits, temperature=1.5, generator=generator),
        "one token short": sample(logits, temperature=1.5, top_k=4, generator=generator),
        "greedy": sample(logits, temperature=0),
    }  # fmt: skip
    assert sum(x > 0 for x in expected) == 5  # so that top_k = 4 is one token short
    for name, ids in faulty.items():
        counts = torch.bincount(ids, minlength=8).double()
        assert p_value(counts, expected) < ODDS, name


def test_rows_are_drawn_independently():
    """Are two rows with the same logits as often equal as chance says, and is each row its own?

    Equal pairs are binomial with 20,000 draws at 0.25: the test asks for 5 standard deviations,
    which chance exceeds with odds of 6 in ten million.
    """
    generator = torch.Generator().manual_seed(8)
    ids = sample(torch.zeros(2 * DRAWS, 4), generator=generator).view(2, DRAWS)
    equal = (ids[0] == ids[1]).sum().item()
    assert abs(equal - DRAWS / 4) < 5 * math.sqrt(DRAWS * 0.25 * 0.75)
    hard = torch.full((3, 5), -INF)
    hard[[0, 1, 2], [4, 0, 2]] = 0.0
    assert sample(hard, generator=generator).tolist() == [4, 0, 2]
    assert sample(hard[1], generator=generator).item() == 0


@given(
    rows=st.integers(1, 3).flatmap(
        lambda B: st.integers(1, 9).flatmap(
            lambda V: st.lists(
                st.lists(st.integers(-8, 8).map(lambda z: z / 2), min_size=V, max_size=V),
                min_size=B,
                max_size=B,
            )
        )
    ),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    k=st.one_of(st.none(), st.integers(1, 12)),
    p=st.one_of(st.none(), st.floats(0.05, 0.97), st.just(1.0)),
    share=st.one_of(st.none(), st.sampled_from([0.0, 0.07, 0.31, 1.0])),
)
@settings(max_examples=150, deadline=None)
def test_filtered_equals_by_hand(rows, temperature, k, p, share):
    """Is every row, alone and in a batch, what Python floats give, ties in the order of ids?"""
    logits = torch.tensor(rows)
    kept = filtered(logits, temperature=temperature, top_k=k, top_p=p, min_p=share)
    for row, out in zip(rows, kept.softmax(-1), strict=True):
        expected = by_hand(row, temperature, k, p, share)
        edge = (
            [by_hand(row, temperature, k, p * f, share) for f in (1 - 1e-6, 1 + 1e-6)] if p else []
        )
        if any(e != expected for e in edge):
            continue  # p is met to the last digit: rounding may decide
        torch.testing.assert_close(out, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    alone = torch.stack(
        [filtered(row, temperature=temperature, top_k=k, top_p=p, min_p=share) for row in logits]
    )
    torch.testing.assert_close(kept, alone, rtol=0, atol=0)


def kept_ids(logits):
    return torch.nonzero(logits > -INF).flatten().tolist()


def test_top_p_keeps_the_token_that_crosses():
    """0.5, 0.3, 0.15, 0.05: does p = 0.6 keep two, 0.79 two, 0.81 three, 0.01 one, 1 all?"""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    for p, ids in [
        (0.6, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.01, [1]),
        (1.0, [0, 1, 2, 3]),
    ]:
        assert kept_ids(top_p(logits, p)) == ids
    assert torch.equal(top_p(logits, 0.6)[[1, 3]], logits[[1, 3]])  # what stays is left as it is
    assert kept_ids(top_p(torch.tensor([0.0, -30.0]), 1.0)) == [0, 1]  # 1 + e^-30 is 1 in float32


def test_filters_see_what_the_one_before_left():
    """After top-k, is p a share of what is left? (0.5 + 0.3 of 0.95 is 0.84.)"""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept_ids(filtered(logits, top_p=0.83)) == [0, 1, 2]
    assert kept_ids(filtered(logits, top_k=3, top_p=0.83)) == [0, 1]
    # Temperature first: at 2 the same p needs more tokens, and min-p lets more pass.
    assert kept_ids(filtered(logits, temperature=2.0, top_p=0.8)) == [0, 1, 2]
    assert kept_ids(filtered(logits, min_p=0.35)) == [0, 1]
    assert kept_ids(filtered(logits, temperature=2.0, min_p=0.35)) == [0, 1, 2]


def test_ties_go_to_the_lower_id():
    """Of equal tokens, do the first ones stay, so that k = 1 is the greedy choice?"""
    same = torch.zeros(6)
    assert kept_ids(top_k(same, 2)) == [0, 1]
    assert kept_ids(top_p(same, 0.4)) == [0, 1, 2]
    assert kept_ids(min_p(same, 1.0)) == [0, 1, 2, 3, 4, 5]
    assert kept_ids(top_k(torch.tensor([0.0, 1.0, 1.0]), 1)) == [1]
    assert sample(torch.tensor([0.0, 1.0, 1.0]), temperature=0).item() == 1
    assert kept_ids(top_k(same, 99)) == [0, 1, 2, 3, 4, 5]


def test_extremes_of_temperature():
    """Do tiny and huge temperatures stay finite and become the greedy and the equal choice?"""
    logits = torch.tensor([[300.0, 299.0, -300.0], [1.0, -INF, 2.0]])
    cold, hot = (with_temperature(logits, t).softmax(-1) for t in (1e-37, 1e6))
    assert torch.equal(cold, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    torch.testing.assert_close(hot[0], torch.full((3,), 1 / 3), rtol=1e-3, atol=0)
    torch.testing.assert_close(hot[1], torch.tensor([0.5, 0, 0.5]), rtol=1e-3, atol=0)
    assert sample(logits, temperature=0).tolist() == [0, 2]
    half = sample(logits.bfloat16(), temperature=0.7, top_p=0.9, min_p=0.1, top_k=2)
    assert half.shape == (2,)


WRONG = [
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": INF}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"top_k": 0}, "top-k"),
    ({"top_k": 2.5}, "top-k"),
    ({"top_p": 0.0}, "top-p"),
    ({"top_p": 1.1}, "top-p"),
    ({"top_p": math.nan}, "top-p"),
    ({"min_p": -0.1}, "min-p"),
    ({"min_p": 1.5}, "min-p"),
    ({"min_p": 1.5, "temperature": 0}, "min-p"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_a_setting_out_of_range_is_one_sentence(settings, said):
    """Is a value that means nothing refused by name, at temperature 0 as well?"""
    with pytest.raises(CourseError, match=said):
        sample(torch.zeros(3), **settings)


def test_logits_that_are_no_numbers_are_refused():
    """Does a NaN from the model get a sentence rather than a token?"""
    with pytest.raises(CourseError, match="NaN"):
        sample(torch.tensor([0.0, math.nan]))
    with pytest.raises(CourseError, match="NaN"):
        sample(torch.tensor([0.0, math.nan]), temperature=0)


def test_generate_cached_chooses(tiny):
    """Does another choice, the second most likely, see the logits that a model without a cache has?"""
    text = [3, 1, 4]
    for _ in range(8):
        logits = tiny(torch.tensor([text]))[0, -1]
        text.append(sorted(range(len(logits)), key=logits.tolist().__getitem__)[-2])
    second = generate_cached(
        tiny, text[:3], max_tokens=8, choose=lambda logits: int(logits.topk(2).indices[1])
    )
    assert list(second) == text[3:]


def test_generate_sampled(tiny):
    """Is it greedy generation at temperature 0, one text a seed, and stopped by an end token?"""
    greedy = list(generate_cached(tiny, [3, 1, 4], max_tokens=12))
    assert list(generate_sampled(tiny, [3, 1, 4], max_tokens=12, temperature=0)) == greedy
    assert list(generate_sampled(tiny, [3, 1, 4], max_tokens=12, top_k=1)) == greedy

    def text(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        return list(
            generate_sampled(tiny, [3, 1, 4], max_tokens=12, generator=generator, **settings)
        )

    assert text(1) == text(1) != text(2)
    whole = text(1)
    assert text(1, end_ids={whole[5]}) == whole[: whole.index(whole[5])]
    with pytest.raises(CourseError, match="prompt is empty"):
        next(generate_sampled(tiny, [], max_tokens=1))
    with pytest.raises(CourseError, match="top-p"):
        next(generate_sampled(tiny, [1], max_tokens=1, top_p=7))


def test_generate_sampled_draws_from_the_model(tiny):
    """Are first tokens distributed as the model's softmax, sharpened, and second ones given the first?

    Chi-square against the model without a cache; odds of failing by chance 2 in a million.
    """
    generator = torch.Generator().manual_seed(9)
    prompt, runs = [3, 1, 4], 400
    setting = {"temperature": 0.7, "top_k": 5}
    pairs = [
        tuple(generate_sampled(tiny, prompt, max_tokens=2, generator=generator, **setting))
        for _ in range(runs)
    ]

    def fits(drawn, text):
        logits = tiny(torch.tensor([text]))[0, -1].tolist()
        expected = len(drawn) * torch.tensor(by_hand(logits, 0.7, k=5), dtype=torch.float64)
        return p_value(torch.bincount(torch.tensor(drawn), minlength=97).double(), expected) > ODDS

    assert fits([first for first, _ in pairs], prompt)
    most = max({first for first, _ in pairs}, key=[first for first, _ in pairs].count)
    assert fits([second for first, second in pairs if first == most], [*prompt, most])
