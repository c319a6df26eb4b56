"""Which records are held out: committed lists of content hashes, no text among them.

`python -m llmcourse.data.splits` made the lists in `data/splits`; it is kept so that anyone can
check them, and is not needed to use the course.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from llmcourse.data.neighbours import clusters, near_duplicates
from llmcourse.paths import course

HELD_OUT = {  # records wanted in each held-out part; all others are for training
    "chinese_reviews": {"test": 2000, "validation": 1000},
    "english_chinese": {"test": 500, "validation": 300},
}


def key(record: Any) -> str:
    """The name of a record by its texts alone (16 hex digits of a SHA-256), whatever its label."""
    texts = [record.text] if hasattr(record, "text") else [record.english, record.chinese]
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def split_of(name: str, record: Any) -> str:
    """ "train", "validation" or "test" for a record of the data set `name`."""
    return _held_out(name).get(key(record), "train")


@cache
def _held_out(name: str) -> dict[str, str]:
    lists = json.loads((course() / "data" / "splits" / f"{name}.json").read_text("utf-8"))
    return {one: part for part in ("validation", "test") for one in lists[part]}


def twins(records: Sequence[Any]) -> list[tuple[int, int]]:
    """Index pairs of near-duplicates: for translations, in either language."""
    if hasattr(records[0], "english"):
        english = near_duplicates([r.english for r in records], n=3)
        return english + near_duplicates([r.chinese for r in records], n=2)
    return near_duplicates([r.text for r in records], n=2)


def make(records: Sequence[Any], wanted: dict[str, int]) -> dict[str, list[str]]:
    """Held-out keys for each part: only records without any near-duplicate, in the order of hashes."""
    alone = [group[0] for group in clusters(len(records), twins(records)) if len(group) == 1]
    keys = sorted(key(records[i]) for i in alone)
    parts, start = {}, 0
    for part, count in wanted.items():
        parts[part] = keys[start : start + count]
        start += count
    return parts


def main() -> None:
    """Write `data/splits/*.json` from the fetched data."""
    from llmcourse.data.datasets import load

    folder = course() / "data" / "splits"
    folder.mkdir(parents=True, exist_ok=True)
    for name, wanted in HELD_OUT.items():
        parts = make(list(load(name, origin="real")), wanted)
        (folder / f"{name}.json").write_text(json.dumps(parts, indent=0) + "\n", "utf-8")
        print(name, {part: len(keys) for part, keys in parts.items()})


if __name__ == "__main__":
    main()
