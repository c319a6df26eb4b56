"""The chapters of the course: their files, their exercises, and how far the reader has come.

What is asked of a chapter here is read from its notebook's metadata, so that a list of points does
not cost the import of PyTorch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from llmcourse import paths
from llmcourse.errors import CourseError
from llmcourse.jupyter import progress
from llmcourse.jupyter.exercises.panels import Panel, panel


@dataclass(frozen=True, slots=True)
class Chapter:
    """One chapter: its number, its source notebook, its title, and the points of each exercise."""

    number: int
    path: Path
    title: str
    points: dict[str, float]  # exercise id -> points

    @property
    def solved(self) -> float:
        """The points earned so far."""
        done = progress.read()["exercises"]
        return sum(p for id, p in self.points.items() if done.get(id, {}).get("solved") is True)

    @property
    def finished(self) -> bool:
        """Whether every exercise is solved."""
        return self.solved >= sum(self.points.values())


def files() -> list[Path]:
    """The source notebooks, in the order of the course; raises CourseError if there are none."""
    folder = paths.course() / "notebooks"
    found = sorted(p for p in folder.glob("*.ipynb") if re.match(r"\d\d_", p.name))
    if not found:
        raise CourseError(
            f"There are no chapters in {folder}; install the course again, or run it from its checkout."
        )
    return found


def chapters() -> list[Chapter]:
    """All chapters."""
    return [read(path) for path in files()]


def read(path: Path) -> Chapter:
    """The chapter in a source notebook."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    points: dict[str, float] = {}
    title = path.stem
    for cell in cells:
        source = "".join(cell["source"])
        heading = re.search(r"^# +(.+)$", source, re.MULTILINE)
        if cell["cell_type"] == "markdown" and heading and title == path.stem:
            title = heading[1].strip()
        graded = cell.get("metadata", {}).get("nbgrader", {})
        if graded.get("grade"):
            points[exercise_id(graded["grade_id"])] = graded.get("points", 0)
    return Chapter(int(path.name[:2]), path, title, points)


def exercise_id(grade_id: str) -> str:
    """The exercise of an nbgrader id: "check-8-2" and "ex-8-2" belong to "8.2"."""
    return ".".join(grade_id.split("-")[1:])


def progress_panel() -> Panel:
    """The points of each chapter, as a table."""
    rows = [(c.title, c.solved, sum(c.points.values())) for c in chapters()]
    done, whole = sum(r[1] for r in rows), sum(r[2] for r in rows)
    wide = max(len(title) for title, _, _ in rows)
    text = "\n".join(f"{title:{wide}}  {got:3g} of {most:g}" for title, got, most in rows)
    body = "".join(
        f'<tr><th scope="row" style="text-align: left; font-weight: normal;">{escape(title)}</th>'
        f"<td>{got:g} of {most:g}</td>"
        f'<td><progress value="{got:g}" max="{most:g}" aria-label="{escape(title)}">'
        f"{got:g}/{most:g}</progress></td></tr>"
        for title, got, most in rows
    )
    table = f"<table><caption>{done:g} of {whole:g} points</caption>{body}</table>"
    return Panel(panel("news", table), f"{text}\n{'in all':{wide}}  {done:3g} of {whole:g}")
