"""The course's data sets as typed records: the real ones if they can be had, else our own samples."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache as remember
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llmcourse.data import records as r
from llmcourse.data.fetch import fetch, writing
from llmcourse.data.index import OutOfReach
from llmcourse.data.sources import MATERIALS
from llmcourse.data.splits import HELD_OUT, split_of
from llmcourse.errors import CourseError
from llmcourse.paths import cache, course

PARSER = 1  # raise it when a parser changes: its JSONL in the cache is made anew
Origin = Literal["real", "sample"]

_KINDS: dict[str, tuple[type, Callable[[Path], list[Any]]]] = {
    "chinese_reviews": (r.Review, r.parse_reviews),
    "english_chinese": (r.Pair, r.parse_pairs),
    "chinese_words": (r.Word, r.parse_words),
    "help_articles": (r.Article, r.parse_articles),
    "prose": (r.Text, r.parse_books),
    "django_docs": (r.Text, r.parse_documentation),
    "movielens": (r.Rating, r.parse_ratings),
    "movies": (r.Movie, r.parse_movies),
}


@dataclass(frozen=True, slots=True, repr=False)
class Dataset(Sequence[Any]):
    """Records of one set, used like a list. `origin` says whether they are real or our sample."""

    name: str
    split: str | None
    origin: Origin
    records: tuple[Any, ...]

    @property
    def card(self) -> str:
        """Where the set comes from, its licence, its traps (Markdown)."""
        return (course() / "data" / "cards" / f"{self.name}.md").read_text("utf-8")

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records)

    def __repr__(self) -> str:  # never the texts themselves: most may not be redistributed
        part = f", {self.split}" if self.split else ""
        return f"{self.name}{part}: {len(self):,} records ({self.origin})"


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return tuple(_KINDS)


def load(name: str, *, split: str | None = None, origin: Origin | None = None) -> Dataset:
    """Records of a data set; `split` is None (all), "train", "validation" or "test".

    Fetches and parses at the first call. Where the index is out of reach, our own small sample
    comes instead and a line on stderr says so; `origin` insists on one of the two. Raises
    CourseError for an unknown name or split, and if the real set is insisted on but not to be had.
    """
    if name not in _KINDS:
        raise CourseError(f"There is no data set {name!r}; choose one of {', '.join(names())}.")
    found: Origin = "sample" if origin == "sample" else "real"
    if found == "real":
        try:
            rows = _real(name)
        except OutOfReach as error:
            if origin == "real":
                raise
            _say_once(f"Using the course's own small sample instead of {name}. {error}")
            found = "sample"
    if found == "sample":
        rows = _sample(name)
    if split is not None:
        part_of = _splits(name, found)
        rows = tuple(row for row in rows if part_of(row) == split)
        if not rows:
            raise CourseError(
                f"{name} has no part {split!r}; leave `split` out to get all records."
            )
    return Dataset(name, split, found, rows)


def held_out_text() -> str:
    """The English story that perplexity is measured on (Alice); never used for calibration."""
    return load("prose")[0].text


def calibration_text(characters: int = 200_000) -> str:
    """English that is not the held-out text and not its kind: technical documentation."""
    pages = load("django_docs")  # the guides come first: they are prose, the reference is lists
    guides = sorted(pages, key=lambda page: not page.title.startswith(("intro/", "topics/")))
    return "\n".join(page.text for page in guides)[:characters]


def fetch_all(chosen: Iterable[str] | None = None, *, progress: bool = True) -> dict[str, int]:
    """Fetch and parse data sets now (all, or those named); how many records each has."""
    chosen = names() if chosen is None else tuple(chosen)
    for name in chosen:
        if name not in _KINDS:
            raise CourseError(f"There is no data set {name!r}; choose one of {', '.join(names())}.")
    return {name: len(_real(name, progress)) for name in chosen}


def describe(chosen: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Facts about the data sets (all, or those named), without fetching: for `llmcourse data`.

    `here` says whether the real set is in the cache; `download_bytes` is what fetching it costs.
    """
    return [_facts(name) for name in (names() if chosen is None else chosen)]


def _facts(name: str) -> dict[str, Any]:
    material = MATERIALS[name]
    card = (course() / "data" / "cards" / f"{name}.md").read_text("utf-8")
    return {
        "name": name,
        "title": card.splitlines()[0].removeprefix("# "),
        "here": _parsed(name).is_file(),
        "records": material.counts["all"],
        "licence": material.licence,
        "source": f"{material.source.package}=={material.source.version}",
        "download_bytes": material.source.size,
    }


def _parsed(name: str) -> Path:
    """Where the records of a set are kept once they are parsed."""
    return cache() / "datasets" / f"{name}-{MATERIALS[name].source.sha256[:8]}-v{PARSER}.jsonl"


@remember
def _real(name: str, progress: bool = True) -> tuple[Any, ...]:
    """All records, parsed once and kept as JSON lines under the source's checksum."""
    record, parse = _KINDS[name]
    source, path = MATERIALS[name].source, _parsed(name)
    if (rows := _read_jsonl(path, record, MATERIALS[name].counts["all"])) is not None:
        return rows
    parsed = parse(_fetch_unless_hopeless(name, progress))
    if len(parsed) != MATERIALS[name].counts["all"]:
        raise CourseError(
            f"{source.filename} gave {len(parsed):,} records of {name} where "
            f"{MATERIALS[name].counts['all']:,} were expected; please report it."
        )
    with writing(path, source.size):
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in parsed)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        os.replace(temporary, path)
    return tuple(parsed)


_hopeless: dict[str, OutOfReach] = {}


def _fetch_unless_hopeless(name: str, progress: bool) -> Path:
    """Fetch, but wait for an unreachable index only once in a process."""
    filename = MATERIALS[name].source.filename
    if filename in _hopeless:
        raise _hopeless[filename]
    try:
        return fetch(MATERIALS[name].source, progress=progress)
    except OutOfReach as error:
        _hopeless[filename] = error
        raise


@remember
def _sample(name: str) -> tuple[Any, ...]:
    path = course() / "data" / "samples" / f"{name}.jsonl"
    rows = _read_jsonl(path, _KINDS[name][0], None)
    assert rows, f"{path} is part of the course"
    return rows


def _splits(name: str, origin: Origin) -> Callable[[Any], str]:
    if name == "movielens":
        parts = r.last_of_each_user(_real(name) if origin == "real" else _sample(name))
        return lambda row: parts.get(row, "train")
    if name not in HELD_OUT:
        raise CourseError(f"{name} is not split; leave `split` out.")
    if origin == "sample":  # every fifth is for the test, the one after it for validation
        place = {row: i % 5 for i, row in enumerate(_sample(name))}
        return lambda row: {3: "validation", 4: "test"}.get(place[row], "train")
    return partial(split_of, name)


def _read_jsonl(path: Path, record: type, count: int | None) -> tuple[Any, ...] | None:
    """The records of a file, or None if it is missing, damaged or short (then it is made anew)."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            rows = tuple(record(**json.loads(line)) for line in file)
    except (OSError, ValueError, TypeError):
        return None
    return rows if count is None or len(rows) == count else None


@remember
def _say_once(sentence: str) -> None:
    print(sentence, file=sys.stderr)
