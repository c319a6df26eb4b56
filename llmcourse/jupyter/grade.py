"""Points for any copy of a chapter: its answers, the course's checks, a fresh kernel.

The check cells are taken from the course, never from the copy, and only what those cells return
counts: deleting, editing or imitating a check earns nothing. The copy's code does run, with the
rights of whoever grades, so grade what strangers sent in a container.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmcourse.errors import CourseError
from llmcourse.jupyter import chapters, edition, kernel

MIME = "application/vnd.llmcourse.check+json"


def grade(
    notebooks: Iterable[str | Path],
    *,
    cell_s: float = kernel.CELL_S,
    notebook_s: float = kernel.NOTEBOOK_S,
) -> list[dict[str, Any]]:
    """Grade copies of chapters: a list of {notebook, score, max_score, exercises, note}.

    Each exercise is {id, title, score, max_score, status}; status is "right", "wrong",
    "not tried", "missing" (its answer cell is gone) or "not run". A copy that cannot be read gets
    no points and a note; CourseError is raised if that is so for all of them.
    """
    paths = [Path(notebook) for notebook in notebooks]
    found: list[tuple[Path, Any, Path | None, str]] = []
    for path in paths:
        try:
            nb = edition.load(path)
            found.append((path, nb, _chapter_of(path, nb), ""))
        except CourseError as error:
            found.append((path, None, None, str(error)))
    if found and all(nb is None for _, nb, _, _ in found):
        raise CourseError(found[0][3])
    return [
        _grade_one(path, nb, source, cell_s, notebook_s)
        if nb is not None and source is not None
        else {"notebook": str(path), "score": 0, "max_score": 0, "exercises": [], "note": note}
        for path, nb, source, note in found
    ]


def text(graded: Iterable[dict[str, Any]]) -> str:
    """What `grade` found, for a terminal."""
    lines = []
    for row in graded:
        lines.append(f"{row['notebook']}: {row['score']:g} of {row['max_score']:g} points")
        for one in row["exercises"]:
            points = f"{one['score']:g}/{one['max_score']:g}"
            lines.append(f"  {one['id']:6} {points:>6}  {one['status']:10} {one['title']}".rstrip())
        if row.get("note"):
            lines.append(f"  {row['note']}")
    return "\n".join(lines)


def _grade_one(
    path: Path, nb: Any, source: Path, cell_s: float, notebook_s: float
) -> dict[str, Any]:
    course = edition.load(source)
    checks = {_grade_id(cell): cell for cell in course.cells if _is_check(cell)}
    run, placed = _assemble(nb, course, checks)
    note = kernel.run(run, set(placed.values()), cell_s=cell_s, notebook_s=notebook_s)
    exercises = []
    for grade_id, cell in checks.items():
        id, points = chapters.exercise_id(grade_id), cell.metadata.nbgrader.points
        status = _status(run.cells[placed[grade_id]], id) if grade_id in placed else "missing"
        exercises.append(
            {
                "id": id,
                "title": _title(id),
                "score": points if status == "right" else 0,
                "max_score": points,
                "status": status,
            }
        )
    return {
        "notebook": str(path),
        "score": sum(one["score"] for one in exercises),
        "max_score": sum(one["max_score"] for one in exercises),
        "exercises": exercises,
        "note": note,
    }


def _assemble(nb: Any, course: Any, checks: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    """The copy's cells with the course's parameters and checks, and where each check stands.

    A check stands where the copy has it, but not above the answer it belongs to.
    """
    import nbformat

    cells = [copy.deepcopy(cell) for cell in nb.cells]
    answers = {_grade_id(cell): i for i, cell in enumerate(cells) if _is_answer(cell)}
    stood = {_grade_id(cell): i for i, cell in enumerate(cells) if _is_check(cell)}
    after: dict[int, list[str]] = {}
    for grade_id in checks:
        answer = answers.get(grade_id.replace("check-", "ex-", 1))
        if answer is not None:
            after.setdefault(max(answer, stood.get(grade_id, answer)), []).append(grade_id)

    out = nbformat.v4.new_notebook(metadata=course.metadata)
    # The names of the course are there even if the copy lost the cell that brings them.
    out.cells.append(nbformat.v4.new_code_cell("%load_ext llmcourse"))
    parameters = [cell for cell in course.cells if _is_parameters(cell)]
    if not any(_is_parameters(cell) for cell in cells):
        out.cells += [nbformat.v4.new_code_cell(cell.source) for cell in parameters]
    placed: dict[str, int] = {}
    for position, cell in enumerate(cells):
        if _is_parameters(cell) and parameters:
            out.cells.append(nbformat.v4.new_code_cell(parameters[0].source))
        elif cell.cell_type == "code" and not _is_check(cell):
            out.cells.append(nbformat.v4.new_code_cell(cell.source))
        for grade_id in after.get(position, ()):
            placed[grade_id] = len(out.cells)
            # Imported anew: the copy may have given `check` another meaning.
            source = "from llmcourse.jupyter import check\n" + checks[grade_id].source
            out.cells.append(nbformat.v4.new_code_cell(source))
    return out, placed


def _status(cell: Any, id: str) -> str:
    """What the check cell returned; what the reader's function displayed on the way is no result."""
    if cell.execution_count is None:
        return "not run"
    for output in cell.outputs:
        told = output.get("data", {}).get(MIME) if output.output_type == "execute_result" else None
        if isinstance(told, dict) and told.get("exercise") == id:
            return str(told.get("status"))
    return "wrong"


def _chapter_of(path: Path, nb: Any) -> Path:
    """The source of the chapter this is a copy of, told by its exercises, whatever its name."""
    ids = [_grade_id(cell) for cell in nb.cells if _is_answer(cell) or _is_check(cell)]
    numbers = [int(m[1]) for id in ids if (m := re.fullmatch(r"(?:ex|check)-(\d+)-\w+", id))]
    named = re.match(r"(\d\d)_", path.name)
    if not numbers and named:  # all its exercises are deleted: it is worth 0 points, not an error
        numbers = [int(named[1])]
    for source in chapters.files():
        if numbers and int(source.name[:2]) == max(set(numbers), key=numbers.count):
            return source
    raise CourseError(f"{path} is not a chapter of this course: it holds none of its exercises.")


def _title(id: str) -> str:
    from llmcourse.jupyter.exercises.base import find

    try:
        return find(id).title
    except CourseError:
        return ""


def _grade_id(cell: Any) -> str:
    return str(cell.metadata.get("nbgrader", {}).get("grade_id", ""))


def _is_check(cell: Any) -> bool:
    return cell.cell_type == "code" and bool(cell.metadata.get("nbgrader", {}).get("grade"))


def _is_answer(cell: Any) -> bool:
    found = cell.metadata.get("nbgrader", {})
    return cell.cell_type == "code" and bool(found.get("solution")) and not found.get("grade")


def _is_parameters(cell: Any) -> bool:
    return cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", ())
