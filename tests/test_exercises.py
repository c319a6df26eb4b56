"""Every exercise of every chapter: a check accepts the solution and nothing a beginner would write."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from llmcourse.jupyter import chapters, edition
from llmcourse.jupyter.exercises.base import all_exercises, check
from llmcourse.jupyter.exercises.compare import GENERIC

HERE = Path(__file__).parent
EXERCISES = all_exercises()
each = pytest.mark.parametrize("exercise", EXERCISES, ids=[e.id for e in EXERCISES])


def wrong_answers(exercise):
    number = int(exercise.id.split(".")[0])
    path = HERE / "wrong_answers" / f"ch{number:02d}.py"
    spec = importlib.util.spec_from_file_location(f"wrong_answers_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG.get(exercise.id, [])


def answer(exercise, student=False):
    """What the notebook hands to this check: with the solution, or as the student finds it.

    Runs the imports and definitions above, and the answer's cell; no model, no figures.
    """
    number = int(exercise.id.split(".")[0])
    source = [p for p in chapters.files() if int(p.name[:2]) == number]
    if not source:
        pytest.skip(f"chapter {number} has no notebook yet")
    nb = edition.load(source[0])
    if student:
        nb = edition.student_notebook(nb)
    wanted, names = f"ex-{exercise.id.replace('.', '-')}", {}
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    ids = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in code]
    for cell, id in zip(code, ids, strict=True):
        if id == wanted:
            exec(compile(cell.source, wanted, "exec"), names)
            break
        exec(compile(definitions(cell.source), "above", "exec"), names)
    given = (
        ast.parse(code[ids.index(wanted.replace("ex-", "check-"))].source).body[-1].value.args[1]
    )
    return eval(compile(ast.Expression(given), "check", "eval"), names)


def definitions(source):
    """The imports, functions, classes and plain constants of a cell."""
    kept = "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in source.split("\n")
    )
    tree = ast.parse(kept)
    tree.body = [node for node in tree.body if _defines(node)]
    return tree


def _defines(node):
    if isinstance(node, ast.Assign):
        try:
            ast.literal_eval(node.value)
            return True
        except ValueError:
            return False
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


def returns(value):
    def function(*_, **__):
        return value

    return function


EMPTY = {"None": None, "dots": ..., "zero": 0, "empty string": "", "empty list": []}
EMPTY |= {"empty dict": {}, "nan": float("nan"), "a function of nothing": returns(None)}
EMPTY |= {"a function of dots": returns(...), "a function of zero": returns(0)}


@each
def test_solution_is_right(exercise):
    """Does the course's own solution pass, whole points?"""
    result = check(exercise.id, answer(exercise))
    assert result.status == "right", str(result)
    assert result.score == result.max_score == exercise.points > 0


@each
def test_stub_is_not_tried(exercise):
    """Is the untouched stub no attempt, and no traceback?"""
    result = check(exercise.id, answer(exercise, student=True))
    assert (result.status, result.score) == ("not tried", 0), str(result)


@each
@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
def test_empty_answers_fail(exercise, empty):
    """Does nothing, in any form, earn nothing?"""
    result = check(exercise.id, empty)
    assert result.status != "right" and result.score == 0


@each
def test_wrong_answers_fail(exercise):
    """Do at least two typical wrong answers fail, each with a sentence of its own that helps?"""
    wrong = wrong_answers(exercise)
    assert len(wrong) >= 2
    said = []
    for position, answer in enumerate(wrong):
        result = check(exercise.id, answer)
        assert result.status == "wrong" and result.score == 0, f"number {position} passed: {answer}"
        assert "Traceback" not in str(result) and len(result.sentence) < 400
        said.append(result.sentence)
    helpful = {sentence for sentence in said if not any(words in sentence for words in GENERIC)}
    assert len(helpful) >= 2, said


@each
def test_hints_and_words(exercise):
    """Are there hints from nudge to nearly there, and a sentence on what the solution shows?"""
    assert len(exercise.hints) >= 2 and all(hint.strip() for hint in exercise.hints)
    assert exercise.title.strip() and exercise.solved.strip().endswith((".", "?", "!"))


def test_ids_are_unique():
    """Does each id name one exercise?"""
    ids = [e.id for e in EXERCISES]
    assert ids and len(ids) == len(set(ids))
