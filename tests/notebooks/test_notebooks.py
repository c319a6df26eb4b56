"""Every notebook, as a reader and as a student meets it: it runs, its outputs hold, its form is kept."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmcourse.jupyter import chapters, edition, grade, kernel
from llmcourse.jupyter.exercises.base import all_exercises

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CELL_S, NOTEBOOK_S = 60, 90
# A machine known to be slow says so itself; the limit is never stretched silently.
SLOW = float(os.environ.get("LLMCOURSE_SLOW_FACTOR", "1"))
TIMED = re.compile(r"\b(compare|bandwidth|perf_counter|TokenTimes|timeit|peak_bytes)\(")
ABSOLUTE = re.compile(
    r"(?<![\w.:/<-])/(home|root|tmp|Users|work|opt|usr|var|mnt)/\w|\b[A-Z]:\\\\?\w"
)

# nbval kills its kernels, so what they covered is saved after each cell.
SAVE_COVERAGE = """
try:
    import coverage
except ImportError:
    coverage = None
if coverage and coverage.Coverage.current():
    get_ipython().events.register("post_run_cell", lambda *_: coverage.Coverage.current().save())
"""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path, kind="code"):
    return [c for c in edition.load(path).cells if c.cell_type == kind]


def tags(cell):
    return set(cell.metadata.get("tags", ()))


def test_there_are_notebooks():
    """Does this file test anything at all?"""
    assert NOTEBOOKS, f"no notebook in {FOLDER}"


@each
def test_runs_and_says_the_same(path, checkpoint, seconds, tmp_path):
    """In a fresh kernel, does each cell give what is committed, in time?"""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-q",
        "--no-header",
    ]
    command += ["--nbval-cell-timeout", str(round(CELL_S * SLOW))]
    command += ["--nbval-sanitize-with", str(HERE / "sanitize.cfg"), "--color=no", "--tb=short"]
    command += ["-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:cov", "-c", os.devnull]
    command += ["--rootdir", str(FOLDER), str(path)]
    env = {
        **os.environ,
        "LLMCOURSE_WORKSPACE": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    env.pop("PYTEST_ADDOPTS", None)
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "coverage_save.py").write_text(SAVE_COVERAGE, "utf-8")
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or threads spin beside a busy neighbour
    begun = time.perf_counter()
    # nbval does not notice a dead kernel, so the whole has a limit, too.
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=NOTEBOOK_S * SLOW * 4
    )
    seconds[path.name] = took = time.perf_counter() - begun
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert took <= NOTEBOOK_S * SLOW, (
        f"{took:.0f} s; a chapter has {NOTEBOOK_S} s (LLMCOURSE_SLOW_FACTOR)"
    )


@each
def test_student_edition_runs_and_earns_nothing(path, checkpoint):
    """Untouched, does the student edition run to its end without an error, for no points?"""
    nb = edition.student_notebook(edition.load(path))
    note = kernel.run(
        nb, set(range(len(nb.cells))), cell_s=CELL_S * SLOW, notebook_s=4 * NOTEBOOK_S * SLOW
    )
    assert note == ""
    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            told = output.get("data", {}).get(grade.MIME)
            assert not told or told["score"] == 0, told
            assert not told or told["status"] == "not tried", told
            if "raises-exception" not in tags(cell):
                assert output.output_type != "error", f"{cell.source}\n{output.get('evalue')}"


@each
def test_source_earns_all(path):
    """Do the committed outputs (which nbval compares with a run) show full points everywhere?"""
    for cell in cells(path):
        if cell.metadata.get("nbgrader", {}).get("grade"):
            told = [o.data[grade.MIME] for o in cell.outputs if grade.MIME in o.get("data", {})]
            assert len(told) == 1 and told[0]["status"] == "right", cell.source
            assert told[0]["score"] == cell.metadata.nbgrader.points
            assert not tags(cell) & {"nbval-ignore-output", "nbval-skip"}, "a check is compared"


@each
def test_parameters(path):
    """Is there one cell papermill can set, of plain assignments?"""
    found = [c for c in cells(path) if "parameters" in tags(c)]
    assert len(found) == 1
    kinds = {type(node) for node in ast.parse(found[0].source).body}
    assert kinds <= {ast.Assign, ast.AnnAssign}, kinds


@each
def test_figures_have_alt_text(path):
    """Can somebody who does not see the figures follow, in the notebook and in the book?"""
    for cell in cells(path):
        shown = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        for output in shown:
            assert output.metadata.get("image/png", {}).get("alt", "").strip(), cell.source
        if shown:
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert alt.strip(), f"no metadata.mystnb.image.alt: {cell.source}"


@each
def test_outputs_are_clean(path):
    """Is every cell run, in order, without error, stderr, time stamps or paths of one machine?"""
    counts = []
    for cell in cells(path):
        if cell.source.strip():
            counts.append(cell.execution_count)
        assert "execution" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error" or "raises-exception" in tags(cell), cell.source
            assert output.get("name") != "stderr", f"{cell.source}\n{output.text}"
            told = dict(output.get("data", {}), text=output.get("text", ""))
            told.pop("image/png", None)
            assert not (bad := ABSOLUTE.search(json.dumps(told))), bad
    assert counts == list(range(1, len(counts) + 1))
    for cell in edition.load(path).cells:
        assert not (bad := ABSOLUTE.search(cell.source)), bad


@each
def test_ignored_timings_are_asserted(path):
    """Where a timed output is not compared, does an assertion nearby say what must hold anyway?"""
    code = cells(path)
    for position, cell in enumerate(code):
        if "nbval-ignore-output" in tags(cell) and TIMED.search(cell.source):
            near = "\n".join(c.source for c in code[position : position + 4])
            assert re.search(r"^\s*assert\b", near, re.MULTILINE), cell.source


@each
def test_cells_are_short(path):
    """Does every code cell fit on a screen beside its output?"""
    long = [c.source for c in cells(path) if c.source.count("\n") >= 25]
    assert not long, long[0]


@each
def test_exercises_are_graded(path):
    """Does nbgrader's metadata agree with the exercises, and the solutions with their markers?"""
    exercises = {e.id: e for e in all_exercises()}
    nb = edition.load(path)
    edition.student_notebook(nb)  # raises on an unbalanced marker
    graded = [c.metadata.nbgrader for c in nb.cells if "nbgrader" in c.metadata]
    ids = [g.grade_id for g in graded]
    assert len(ids) == len(set(ids)), "a grade_id stands twice"
    for cell in nb.cells:
        if "nbgrader" not in cell.metadata:
            assert edition.BEGIN not in cell.source, f"a solution without nbgrader: {cell.source}"
            continue
        g = cell.metadata.nbgrader
        assert g.schema_version == 3 and g.task is False
        id = chapters.exercise_id(g.grade_id)
        if g.grade:
            assert g.locked and not g.solution and g.grade_id.startswith("check-")
            assert g.points == exercises[id].points
            assert f'check("{id}"' in cell.source
            assert ids.index("ex-" + g.grade_id.removeprefix("check-")) < ids.index(g.grade_id)
        else:
            assert g.solution and not g.locked and g.grade_id.startswith("ex-")
            assert edition.BEGIN in cell.source
    standing = {chapters.exercise_id(g.grade_id) for g in graded if g.grade}
    number = str(int(path.name[:2]))
    assert standing == {id for id in exercises if id.split(".")[0] == number}


def test_every_exercise_has_its_notebook():
    """Is there no check without a chapter?"""
    present = {str(int(p.name[:2])) for p in NOTEBOOKS}
    assert {e.id.split(".")[0] for e in all_exercises()} <= present


SAME = {
    "far digits": ("0.30000000000000004", "0.3000000000000001"),
    "far digits of a big number": ("134515.00812", "134515.0093"),
    "far digits with an exponent": ("1.23456789e-05", "1.23456712e-05"),
    "addresses": ("<object at 0x7faf0bf4e8e8>", "<object at 0x7f793c34e8e8>"),
}
DIFFERENT = {
    "a sixth digit": ("0.123456", "0.123457"),
    "a sixth digit of many": ("3.14159265", "3.14158265"),
    "whole numbers": ("134515008", "134515009"),
    "small errors": ("2.1e-16", "2.1e-02"),
    "signs": ("-1.2345678", "1.2345678"),
    "versions": ("2.13.0", "2.13.1"),
    "checksums": ("d41d8cd98f00b204e9800998ecf8427e", "d41d8cd98f00b204e9800998ecf8427f"),
    "scores": ("'score': 1", "'score': 2"),
}


def sanitized(text):
    from nbval.plugin import get_sanitize_patterns

    for regex, replace in get_sanitize_patterns((HERE / "sanitize.cfg").read_text("utf-8")):
        text = re.sub(regex, replace, text)
    return text


@pytest.mark.parametrize("name", [*SAME, *DIFFERENT])
def test_sanitizer(name):
    """Does the sanitizer mask a number's noise, and never its meaning?"""
    one, other = {**SAME, **DIFFERENT}[name]
    assert (sanitized(one) == sanitized(other)) is (name in SAME)
