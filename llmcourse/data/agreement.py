"""Subject–verb agreement with attractors: a small task that needs no download and no licence.

"The keys to the cabinet" goes on with " are", though the nearest noun is singular. The items come
from our own word lists. Source of the task: Linzen, Dupoux, Goldberg 2016; Marvin and Linzen 2018.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from llmcourse.errors import CourseError

Number = Literal["singular", "plural"]


@dataclass(frozen=True, slots=True)
class AgreementPair:
    """A sentence's beginning with its right and its wrong next word (each with a leading space).

    `number` is the subject's; `attractors` are those of the nouns between it and the verb.
    `right` and `wrong` are one token each in SmolLM2's vocabulary, so two logits decide an item.
    """

    prefix: str
    right: str
    wrong: str
    number: Number
    attractors: tuple[Number, ...]


_VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))

# Singular and plural; the prepositions fit every noun of their group.
_THINGS = (
    "key keys|picture pictures|letter letters|book books|report reports|label labels|cable cables|"
    "poster posters|sign signs|ticket tickets|gift gifts|package packages|box boxes|lamp lamps|"
    "chair chairs|map maps"
)
_BESIDE_THINGS = "near|behind|beside|next to|in front of"
_PLACES = (
    "cabinet cabinets|door doors|window windows|garden gardens|house houses|bridge bridges|"
    "car cars|school schools|station stations|tower towers|tree trees|shop shops"
)
_PEOPLE = (
    "boy boys|girl girls|teacher teachers|doctor doctors|farmer farmers|pilot pilots|"
    "singer singers|lawyer lawyers|student students|author authors|driver drivers|nurse nurses"
)
_DID = "chased|saw|helped|admired|followed|liked|photographed|remembered"
_OTHERS = (
    "dog dogs|guard guards|visitor visitors|neighbor neighbors|horse horses|manager managers|"
    "cousin cousins|painter painters|officer officers|child children"
)


def pairs(n: int = 1000, seed: int = 0) -> list[AgreementPair]:
    """`n` distinct items in random order, the same ones for the same seed.

    Subject and attractors are singular or plural equally often and in every combination (to
    within one item), so neither leaning to one verb form nor copying the nearest noun helps.
    Raises CourseError if there are not that many items.
    """
    chooser = random.Random(seed)
    cells: dict[tuple[Number, ...], list[AgreementPair]] = {}
    for item in _all_items():
        cells.setdefault((item.number, *item.attractors), []).append(item)
    # Half of the items have one attractor (4 combinations), half have two (8): weights 2 and 1.
    order = [cell for cell in sorted(cells) for _ in range(2 if len(cell) == 2 else 1)]
    chooser.shuffle(order)
    share = dict.fromkeys(cells, 0)
    for i in range(n):
        share[order[i % len(order)]] += 1
    if any(share[cell] > len(items) for cell, items in cells.items()):
        most = len(order) * min(
            len(items) // (2 if len(cell) == 2 else 1) for cell, items in cells.items()
        )
        raise CourseError(
            f"There are {most:,} balanced agreement items; ask for no more than that."
        )
    chosen = [item for cell in sorted(cells) for item in chooser.sample(cells[cell], share[cell])]
    chooser.shuffle(chosen)
    return chosen


def _all_items() -> Iterator[AgreementPair]:
    """Every sentence the lists can make, each with each verb, in a fixed order."""
    things, places, people, others = map(_nouns, (_THINGS, _PLACES, _PEOPLE, _OTHERS))
    beside, did = _BESIDE_THINGS.split("|"), _DID.split("|")
    # "The keys near the cabinet"
    for subject, link, place in product(things, beside, places):
        yield from _forms(subject, [(link, place)])
    # "The boy who chased the dogs"
    for subject, verb, other in product(people, did, others):
        yield from _forms(subject, [(f"who {verb}", other)])
    # "The boy who chased the dogs near the house"
    for (s, subject), verb, (o, other), (p, place) in product(
        enumerate(people), did[:4], enumerate(others), enumerate(places)
    ):
        if (s + o + p) % 4 == 0:  # a quarter is plenty, spread evenly over the words
            yield from _forms(subject, [(f"who {verb}", other), (beside[(s + o) % 5], place)])


def _forms(
    subject: tuple[str, str], rest: list[tuple[str, tuple[str, str]]]
) -> Iterator[AgreementPair]:
    """All numbers of a sentence's nouns, with all verbs."""
    numbers: tuple[Number, Number] = ("singular", "plural")
    for chosen in product((0, 1), repeat=1 + len(rest)):
        head, *others = chosen
        middle = "".join(
            f" {link} the {noun[number]}" for (link, noun), number in zip(rest, others, strict=True)
        )
        prefix = f"The {subject[head]}{middle}"
        attractors = tuple(numbers[number] for number in others)
        for verb in _VERBS:
            yield AgreementPair(prefix, verb[head], verb[1 - head], numbers[head], attractors)


def _nouns(words: str) -> list[tuple[str, str]]:
    return [(one, many) for one, many in (word.split() for word in words.split("|"))]
