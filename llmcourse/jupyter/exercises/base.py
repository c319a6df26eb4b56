"""Check an answer at once: say what was given, what came, what was due, and offer the next hint.

A chapter's file defines `EXERCISES`; a notebook calls `check("8.2", cache_bytes)`. Nothing a reader
writes may end in a traceback here: a slip becomes a sentence.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmcourse.errors import CourseError
from llmcourse.jupyter import progress
from llmcourse.jupyter.exercises import panels
from llmcourse.jupyter.exercises.compare import (
    NotTried,
    Wrong,
    call,
    expect_close,
    expect_equal,
    reader_line,
    short,
)

__all__ = [
    "CheckResult",
    "Exercise",
    "NotTried",
    "Wrong",
    "all_exercises",
    "call",
    "check",
    "expect_close",
    "expect_equal",
    "find",
    "hint",
    "short",
]


@dataclass(frozen=True, slots=True)
class Exercise:
    """One exercise: its check raises Wrong (or NotTried), or returns when the answer is right.

    `hints` go from a nudge to nearly there; `solved` is the sentence on what the solution shows.
    """

    id: str
    title: str
    points: int
    check: Callable[[Any], None]
    hints: tuple[str, ...]
    solved: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found. As a cell's result it shows a panel; its plain text is the score alone."""

    exercise: str
    title: str
    status: str  # "right", "wrong" or "not tried"
    score: float
    max_score: float
    sentence: str
    given: Any = None
    expected: Any = None
    got: Any = None
    hints: tuple[str, ...] = ()  # those unlocked so far
    hints_in_all: int = 0
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether the answer was right."""
        return self.status == "right"

    def __str__(self) -> str:
        return panels.check_text(self)

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            "text/html": panels.check_html(self),
            # nbgrader casts the plain text of a graded cell's result to the points earned.
            "text/plain": f"{self.score:g}" if panels.in_notebook() else str(self),
            "application/vnd.llmcourse.check+json": {
                "exercise": self.exercise,
                "score": self.score,
                "max_score": self.max_score,
                "status": self.status,
            },
        }


def check(id: str, answer: Any = ...) -> CheckResult:
    """Check the answer to an exercise, say what came of it, and remember it.

    Never raises for a reader's slip. Raises CourseError if there is no such exercise.
    """
    exercise = find(id)
    status, wrong = _judge(exercise, answer)
    note, hints = "", 0
    if status != "not tried":  # a stub that is run is no attempt

        def remember(state: dict[str, Any]) -> None:
            nonlocal hints
            row = state["exercises"].setdefault(exercise.id, {})
            row["attempts"] = _count(row, "attempts") + 1
            row["solved"] = row.get("solved") is True or status == "right"
            row["points"] = exercise.points if row["solved"] else 0
            if status == "wrong":
                # The last hint is nearly the solution: it comes only to who asks for it.
                free = max(1, len(exercise.hints) - 1)
                row["hints"] = max(_count(row, "hints"), min(_count(row, "hints") + 1, free))
            hints = min(_count(row, "hints"), len(exercise.hints))

        note = progress.change(remember)
        if status == "wrong":
            hints = max(hints, min(1, len(exercise.hints)))  # even where nothing can be saved
    else:
        hints = _count(progress.read()["exercises"].get(exercise.id, {}), "hints")
    sentence = {"right": exercise.solved, "not tried": "Not tried yet."}.get(status) or str(wrong)
    return CheckResult(
        exercise=exercise.id,
        title=exercise.title,
        status=status,
        score=exercise.points if status == "right" else 0,
        max_score=exercise.points,
        sentence=sentence,
        given=wrong.given if wrong else None,
        expected=wrong.expected if wrong else None,
        got=wrong.got if wrong else None,
        hints=() if status == "right" else exercise.hints[:hints],
        hints_in_all=len(exercise.hints),
        note=note,
    )


def hint(id: str) -> panels.Panel:
    """Unlock and show the next hint of an exercise, above the ones shown before."""
    exercise = find(id)
    hints = 1

    def remember(state: dict[str, Any]) -> None:
        nonlocal hints
        row = state["exercises"].setdefault(exercise.id, {})
        hints = row["hints"] = min(_count(row, "hints") + 1, len(exercise.hints))

    note = progress.change(remember)
    return panels.hint_panel(exercise.id, exercise.hints[:hints], len(exercise.hints), note)


def find(id: str) -> Exercise:
    """The exercise of that id; raises CourseError, naming the nearest ones, if there is none."""
    name = re.fullmatch(r"(\d{1,2})\.\w+", str(id).strip())
    if name:
        for exercise in _chapter(int(name[1])):
            if exercise.id == str(id).strip():
                return exercise
    known = [exercise.id for exercise in all_exercises()]
    near = difflib.get_close_matches(str(id), known, n=3, cutoff=0.3) or known[:3]
    if name and int(name[1]) in {int(k.split(".")[0]) for k in known}:
        near = [k for k in known if int(k.split(".")[0]) == int(name[1])]
    raise CourseError(f'There is no exercise "{id}"; did you mean {_either(near)}?')


def _either(ids: list[str]) -> str:
    if len(ids) > 3:  # those of a chapter, in a row
        return f"one of {ids[0]} to {ids[-1]}"
    return " or ".join(ids) or "another chapter"


def all_exercises() -> list[Exercise]:
    """The exercises of all chapters, in the order of the course."""
    from llmcourse.jupyter import exercises

    chapters = sorted(
        int(m.name[2:])
        for m in pkgutil.iter_modules(exercises.__path__)
        if re.fullmatch(r"ch\d\d", m.name)
    )
    return [exercise for number in chapters for exercise in _chapter(number)]


def _chapter(number: int) -> tuple[Exercise, ...]:
    name = f"llmcourse.jupyter.exercises.ch{number:02d}"
    try:
        return importlib.import_module(name).EXERCISES
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return ()


def _count(row: dict[str, Any], key: str) -> int:
    value = row.get(key, 0)
    return value if isinstance(value, int) else 0


def _judge(exercise: Exercise, answer: Any) -> tuple[str, Wrong | None]:
    """The status of an answer, and the Wrong that tells why."""
    if _blank(answer):
        return "not tried", None
    try:
        with warnings.catch_warnings():
            # On stderr they would cost the points in nbgrader; the reader sees them in their own cell.
            warnings.simplefilter("ignore")
            exercise.check(answer)
    except NotTried:
        return "not tried", None
    except Wrong as wrong:
        return "wrong", wrong
    except Exception as error:
        # The check did not expect this kind of answer. The reader's own line, if there is one,
        # says more than ours.
        line = reader_line(error, answer)
        if line:
            return "wrong", Wrong(f"Your code stopped with {type(error).__name__}: {error}{line}.")
        kind = f"It is of type {type(answer).__name__}: {short(answer)}"
        return "wrong", Wrong(
            f"This answer cannot be read. {kind}. What does the exercise ask for?"
        )
    return "right", None


def _blank(answer: Any) -> bool:
    """Whether the reader has left the stub as it was."""
    if answer is None or answer is ... or answer is NotImplemented:
        return True
    if isinstance(answer, str):
        return not answer.strip()
    if isinstance(answer, dict):
        return all(_blank(value) for value in answer.values())
    if isinstance(answer, (list, tuple)):
        return all(_blank(value) for value in answer)
    return False
