"""What the reader meets in a notebook: panels, guesses, figures, the workspace and the grades."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import subprocess
import sys
import threading
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from llmcourse import paths
from llmcourse.errors import CourseError
from llmcourse.jupyter import chapters, edition, figures, guess, kernel, lab, progress, workspace
from llmcourse.jupyter import grade as grading
from llmcourse.jupyter.exercises import answers, base, compare, watch
from llmcourse.jupyter.exercises.base import Exercise, check, hint
from llmcourse.jupyter.exercises.compare import NotTried, Wrong, call, expect_close, expect_equal

TODAY = datetime.date(2026, 11, 23)


@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    """A workspace for each test."""
    monkeypatch.setenv("LLMCOURSE_WORKSPACE", str(tmp_path / "workspace"))


@pytest.fixture
def double(monkeypatch):
    """An exercise of our own: double a number."""

    def judge(fn):
        for n in (1, 5):
            expect_close(call(fn, n), 2 * n, given=n, slips=[(n * n, "You squared it.")])

    exercise = Exercise("90.1", "Double it", 2, judge, ("think", "add", "n + n"), "Twice is a sum.")
    monkeypatch.setattr(base, "_chapter", lambda number: (exercise,) if number == 90 else ())
    monkeypatch.setattr(base, "all_exercises", lambda: [exercise])
    return exercise


# Checks ------------------------------------------------------------------------------------------

WRONG = {
    "squared": (lambda n: n * n, "You squared it."),
    "raises": (lambda n: n / 0, "Given 1, your function stopped with ZeroDivisionError"),
    "nothing": (lambda n: None, "returned nothing"),
    "string": (lambda n: "2", "quotation marks"),
    "nan": (lambda n: math.nan, "NaN"),
    "shape": (lambda n: [n, n], "shape (2,)"),
    "arguments": (lambda: 2, "takes 0 positional arguments"),
    "a value": (2, "A function is wanted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_get_sentences(double, name):
    """Does each slip get its own sentence, and no points?"""
    answer, sentence = WRONG[name]
    result = check("90.1", answer)
    assert result.status == "wrong" and result.score == 0
    assert sentence in result.sentence


@pytest.mark.parametrize("stub", [None, ..., NotImplemented, "", lambda n: ..., [..., ...]])
def test_stub_is_not_tried(double, stub):
    """Is an untouched stub no attempt, so that it unlocks no hint?"""
    result = check("90.1", stub)
    assert (result.status, result.score, result.hints) == ("not tried", 0, ())
    assert progress.read()["exercises"] == {}


def test_right_is_remembered(double):
    """Does a solved exercise stay solved, even if the cell is broken later?"""
    assert check("90.1", lambda n: 2 * n).score == 2
    assert not check("90.1", lambda n: n).right
    assert progress.read()["exercises"]["90.1"]["solved"] is True


def test_hint_ladder(double):
    """Does a wrong attempt unlock one more hint, but the last one only a call of hint?"""
    assert check("90.1", lambda n: n).hints == ("think",)
    assert check("90.1", lambda n: n).hints == ("think", "add")
    assert check("90.1", lambda n: n).hints == ("think", "add")
    assert "n + n" in hint("90.1").text and "last" in hint("90.1").text
    assert check("90.1", lambda n: n).hints == double.hints


def test_unknown_exercise(double):
    """Does a mistyped id name the nearest ones?"""
    with pytest.raises(CourseError, match=r"90\.1"):
        check("90.7", 1)
    with pytest.raises(CourseError, match=r"90\.1"):
        hint("ninety")


def test_inputs_are_copies():
    """Can a function that writes into its input spoil the next call?"""
    import torch

    listed, tensor = [1, 2], torch.ones(2, requires_grad=True)

    def spoil(a, b):
        a.append(3)
        b.detach().zero_()
        return 0

    call(spoil, listed, tensor)
    assert listed == [1, 2] and tensor.tolist() == [1, 1]


def test_failing_line_is_the_readers(tmp_path):
    """Does the sentence quote the reader's deepest own line, not the library's below it?"""
    module = tmp_path / "mine.py"
    module.write_text(
        "import json\ndef outer(x):\n    return inner(x)\ndef inner(x):\n    return json.loads(x)\n"
    )
    names = {}
    exec(compile(module.read_text(), str(module), "exec"), names)
    with pytest.raises(Wrong, match=re.escape("in line 5: `return json.loads(x)`")):
        call(names["outer"], "{")


def test_stub_in_the_middle(tmp_path):
    """Is a function that lacks only the reader's lines "not tried", and one with a slip in it wrong?"""
    module = tmp_path / "mine.py"
    module.write_text(
        "def stub(x):\n    # your code here\n    return y\ndef slip(x):\n    return y  # your code here\n"
    )
    names = {}
    exec(compile(module.read_text(), str(module), "exec"), names)
    with pytest.raises(NotTried):
        call(names["stub"], 1)
    with pytest.raises(Wrong, match="NameError"):
        call(names["slip"], 1)


def test_warnings_and_exits_in_a_readers_function(double, recwarn):
    """Does a warning cost no points (stderr does, in nbgrader), and an exit() not end the kernel?"""
    import warnings

    assert check("90.1", lambda n: warnings.warn("old", stacklevel=1) or 2 * n).right
    assert "old" not in [str(one.message) for one in recwarn.list]
    assert check("90.1", lambda n: sys.exit(3)).status == "wrong"


def test_nothing_a_reader_returns_raises(double):
    """Does an object that answers nothing sensibly still get a sentence?"""

    class Hostile:
        def __repr__(self):
            raise ValueError

        __eq__ = __float__ = __len__ = __bool__ = __array__ = __repr__
        __hash__ = None

    for answer in (
        lambda n: Hostile(),
        Hostile(),
        lambda n: {1: Hostile()},
        lambda n: 1j,
        object(),
    ):
        assert check("90.1", answer).status == "wrong"
        str(check("90.1", answer)), check("90.1", answer)._repr_mimebundle_()


def test_expect_close_says_where():
    """Does a difference in an array name its place, exchanged axes, and a tensor's dtype not matter?"""
    import torch

    expect_close(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), [1, 2])
    expect_close(math.inf, math.inf)
    with pytest.raises(Wrong, match=r"most at \[1\]: 5 came, 2 was due"):
        expect_close([1, 5], [1, 2])
    with pytest.raises(Wrong, match="two axes exchanged"):
        expect_close(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(Wrong):
        expect_close(-math.inf, math.inf)
    with pytest.raises(Wrong, match="boolean"):
        expect_close(True, 1)


def test_expect_close_explains():
    """Is the slip named that makes a difference here, found by its NaN too, and the value's name said?"""
    import torch

    nan, slips = math.nan, [([1, 2], "No slip."), ([1, 3], "A slip."), ([1, math.nan], "Over 0.")]
    with pytest.raises(Wrong, match=r"^dx: A slip\."):
        expect_close([1, 3], [1, 2], slips=slips, name="dx")
    with pytest.raises(Wrong, match=r"^Over 0\."):
        expect_close([1, nan], [1, 2], slips=slips)
    with pytest.raises(Wrong, match=r"NaN .* at \[0\]"):
        expect_close([nan, 2], [1, 2], slips=slips)
    with pytest.raises(Wrong, match="Not yet"):  # near enough to the slip that is none
        expect_close([1, 2.0025], [1, 2], tol=1e-3, why="Not yet", slips=[([1, 2.0015], "No.")])
    with pytest.raises(Wrong, match=r"numbers are right.*length 1 too many"):
        expect_close(torch.ones(2, 1, 3), torch.ones(2, 3))
    with pytest.raises(Wrong, match="One number is wanted"):
        expect_close(torch.ones(1), 1.0)


def test_call_as_hides_the_inputs():
    """Do inputs that would fill the sentence give way to words, and an error keep its line?"""
    with pytest.raises(
        Wrong, match=r"^Your function stopped with KeyError: 'b', in line"
    ) as caught:
        compare.call_as("a dictionary", lambda d: d["b"], {"a": 1})
    assert caught.value.given == "a dictionary"
    assert compare.call_as("a number", lambda n: 2 * n, 3) == 6
    with pytest.raises(NotTried):
        compare.call_as("a number", lambda n: ..., 3)


FIELDS = {
    "no dictionary": ([1], "dictionary with the keys 'a', 'b' and 'c'"),
    "another key": ({"A": 1}, "'a' is still missing"),
    "untouched": ({"a": ...}, "'a' is still missing"),
    "blank": ({"a": " "}, "'a' is still missing"),
    "a word": ({"a": "ten"}, "'a' should be one number"),
    "two numbers": ({"a": [1, 2]}, "'a' should be one number"),
    "NaN": ({"a": math.nan}, "'a' should be a finite number"),
}


@pytest.mark.parametrize(("answer", "sentence"), FIELDS.values(), ids=FIELDS)
def test_number_field(answer, sentence):
    """Is what is missing or no number said by name, and a field not asked for left alone?"""
    with pytest.raises(Wrong, match=sentence):
        answers.number_field(answer, "a", "abc")
    assert answers.number_field({"a": "3.5", "b": ...}, "a", "abc") == 3.5


def test_parts():
    """Are so many things one list, and anything else a sentence with their names?"""
    import torch

    assert answers.parts((1, 2), "hc", "an x") == [1, 2]
    for got in (torch.ones(2), [1], (1, 2, 3), "hc", 1):
        with pytest.raises(Wrong, match=r"^Two states are wanted: h and c\.$"):
            answers.parts(got, "hc", "an x", "states")
    with pytest.raises(Wrong, match="h and c, as a tuple, in this order"):
        answers.parts({"h": 1, "c": 2}, "hc", "an x")


def test_tensor():
    """Do lists, rows, arrays and numbers pass for a tensor, and nothing else, and not another shape?"""
    import numpy as np
    import torch

    rows = [[1.0, 0.1], [3.0, 4.0]]
    for got in (rows, np.array(rows), torch.tensor(rows), [torch.tensor(row) for row in rows]):
        found = answers.tensor(got, (2, 2), "an x")
        torch.testing.assert_close(found, torch.tensor(rows).double())
    assert answers.tensor(2, (), "an x") == 2
    for got in ("ab", {"a": 1}, [[1], [2, 3]], object(), [torch.ones(2), torch.ones(3)]):
        with pytest.raises(Wrong, match=r"^A tensor of shape \(2, 2\) is wanted, and this is a"):
            answers.tensor(got, (2, 2), "an x")
    with pytest.raises(Wrong, match=r"^o: The shape is \(3, 2\).*axes exchanged"):
        answers.tensor(torch.ones(3, 2), (2, 3), "an x", "o")


def test_not_calling():
    """Is the library's function noticed under any name, and the reader's own of that name let be?"""
    import statistics

    import torch

    alias = statistics.median  # written in Python

    cell = {}
    exec("def median(values):\n    return sorted(values)[len(values) // 2]", cell)
    before = sys.getprofile()
    with watch.not_calling("median", "softmax", say="That is {name}."):
        assert cell["median"]([3, 1, 2]) == 2
    for run in (
        lambda: alias([1]),
        lambda: torch.ones(2).softmax(0),
        lambda: call(lambda: alias([])),
    ):
        with (
            pytest.raises(Wrong, match=r"^That is (median|softmax)\.$"),
            watch.not_calling("median", "softmax", say="That is {name}."),
        ):
            run()
    even = {"when": lambda arguments: len(arguments["data"]) == 2, "say": "Two."}
    with watch.not_calling("median", **even):
        alias([1])
    with pytest.raises(Wrong, match=r"^Two\.$"), watch.not_calling("median", **even):
        alias([1, 2])
    with pytest.raises(Wrong, match="another"), watch.not_calling("median", say="No."):
        raise Wrong("another matter")
    assert sys.getprofile() is before


def test_expect_equal():
    """Do words and orders compare exactly, a tuple standing for a list, True not for 1?"""
    expect_equal((1, 2), [1, 2])
    for got in ("b", ["a"], 1, None):
        with pytest.raises(Wrong):
            expect_equal(got, "a")
    with pytest.raises(Wrong):
        expect_equal(True, 1)
    with pytest.raises(Wrong, match="Backwards"):
        expect_equal([2, 1], [1, 2], slips=[([2, 1], "Backwards.")])


def test_panel_is_safe_and_accessible(double):
    """Is what a reader's function returns shown as text, and the status by words and role?"""
    html = check("90.1", lambda n: "<script>alert(1)</script>")._repr_mimebundle_()["text/html"]
    assert "<script>" not in html and 'role="status"' in html and "Not yet" in html
    assert not re.search(r"(color|background)[^;]*:\s*#", re.sub(r"var\([^)]*\)", "", html))


def test_short():
    """Are numbers readable and big things told by their shape?"""
    import torch

    assert compare.short(134515008) == "134,515,008"
    assert compare.short(0.1 + 0.2) == "0.3"
    assert compare.short(torch.zeros(40, 40)) == "tensor of shape (40, 40)"
    assert compare.short(torch.tensor([1.0, 2.5])) == "[1, 2.5]"


# Progress ----------------------------------------------------------------------------------------


def test_damaged_progress_is_set_aside(double):
    """Does a torn file cost nothing but one sentence, its content kept?"""
    check("90.1", lambda n: 2 * n)
    progress.file().write_text('{"exercises": {"90.1": {"sol')
    result = check("90.1", lambda n: 2 * n)
    assert result.right and "progress.damaged-1.json" in result.note
    assert '"sol' in progress.file().with_name("progress.damaged-1.json").read_text()
    assert check("90.1", lambda n: 2 * n).note == ""


def test_progress_where_nothing_can_be_written(double, monkeypatch, tmp_path):
    """Is an answer on a full or read-only disk still right, with a sentence?"""
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LLMCOURSE_WORKSPACE", str(blocked))
    result = check("90.1", lambda n: 2 * n)
    assert result.right and "could not be saved" in result.note
    assert check("90.1", lambda n: n).hints == ("think",)


def test_progress_of_many_writers():
    """Do writers at once lose nothing?"""

    def add(number):
        progress.change(lambda state: state["guesses"].update({str(number): {"value": number}}))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(progress.read()["guesses"]) == 20


# Guesses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("1,200 tokens/s", 1200),
        ("×4", 4),
        ("3e8", 3e8),
        ("0,5", 0.5),
        ("−2", -2),
        ("1_000", 1000),
        ("about 20", 20),
        ("0,5 MB", 0.5),
        ("10^-5", 1e-5),
        ("10**-5", 1e-5),
        ("10⁻⁵", 1e-5),
        ("about 10^(-5)", 1e-5),
        ("1·10^-5", 1e-5),
        ("2.5 × 10⁻⁸ s⁻¹", 2.5e-8),
        ("1,5*10^3 tokens", 1500),
        ("-2^10", -1024),
        ("1/5", 0.2),
        ("3/10^2", 0.03),
        ("4 * 9 * 512", 18_432),
        ("512x512", 262_144),
        ("1/0", None),
        ("10^999", None),
        ("1e999", None),
        ("fast", None),
        ("", None),
    ],
)
def test_number_in_what_was_typed(text, value):
    """Is what people type for a number read as it was meant?"""
    found = guess.number(text)
    assert found == (value if value is None else pytest.approx(value, rel=1e-12))


def test_guess_is_kept(capsys):
    """Does a guess survive a new run, and is a word never taken for a number's guess?"""
    first = guess.predict("k", "How fast?", "tokens/s")
    assert first.value is None and "No guess yet" in first.against(3.0).text
    first.set(6.0)
    again = guess.predict("k", "How fast?", "tokens/s")
    assert again.value == 6.0
    assert "too high by a factor of 2" in again.against(3.0).text
    assert "off by 3 tokens/s" in again.against(3.0, kind="difference").text
    assert guess.predict("k", "Which?", options=["a", "b"]).value is None


def test_guess_among_options():
    """Is a choice compared as a choice?"""
    one = guess.predict("o", "Which?", options=["up", "down"])
    one.set("up")
    assert "saw it coming" in one.against("up").text
    assert "not what you expected" in one.against("down").text


def test_guess_is_asked_in_good_english(monkeypatch):
    """Are the options listed after the question, whatever words they are, and none for a number?"""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    guess.predict("w", "What comes next?", options=["it trains", "a <shape>", "nothing"])
    guess.predict("n", "How fast?", "tokens/s")
    words, count = shown
    assert words["text/plain"].startswith(
        "Guess: What comes next? Choose: it trains · a <shape> · nothing. No guess yet"
    )
    assert "What comes next?</strong> Choose: it trains · a &lt;shape&gt;" in words["text/html"]
    assert count["text/plain"].startswith("Guess: How fast? (tokens/s) No guess yet")


def test_guess_form():
    """Does the form keep what is typed on Enter, and ask again for what is no number?"""
    ask = guess.Guess("f", "How fast?", "tokens/s", None)
    form = guess._form(ask, "How fast?", "")
    field, answer = form.children[1].children[0], form.children[2]
    field.value = "quick"
    assert ask.value is None and "Type a number" in answer.value
    field.value = "12"
    assert ask.value == 12 and guess.Guess("f", "", "", None).value == 12
    choice = guess.Guess("g", "Which?", "", ("a", "b"))
    guess._form(choice, "Which?", "").children[1].children[0].value = "b"
    assert choice.value == "b"


# Figures -----------------------------------------------------------------------------------------


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_read_on_white_and_black():
    """WCAG 2.2: is every line at least 3 : 1, and text over 4 : 1, in both themes?"""
    assert contrast("#000000", "#ffffff") == 21
    for ground in ("#ffffff", "#111111"):
        assert contrast(figures.TEXT, ground) > 4
        for name in figures.LOOK:
            assert contrast(figures.colour(name), ground) >= 3, (name, ground)
    assert len({tuple(figures.look(n).values()) for n in figures.LOOK}) == len(figures.LOOK)
    assert len({(look[1], look[2]) for look in figures.LOOK.values()}) == len(figures.LOOK)
    with pytest.raises(CourseError):
        figures.colour("magic")


def test_show_is_deterministic(monkeypatch):
    """Are two drawings of the same the same bytes, at twice the pixels, and the figure closed?"""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, **options: shown.append((data, options))
    )
    with matplotlib.rc_context():
        figures.use_style()
        for _ in range(2):
            fig, axes = plt.subplots()
            axes.plot([1, 2, 4])
            figures.show(fig, alt="It doubles.")
            assert not plt.fignum_exists(fig.number)
    (first, options), (second, _) = shown
    assert first["image/png"] == second["image/png"]
    meta = options["metadata"]["image/png"]
    assert meta["alt"] == "It doubles."
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(b64decode(first["image/png"])))
    assert image.size == (2 * meta["width"], 2 * meta["height"]) and not image.text
    assert image.getpixel((0, 0))[3] == 0, "the face is not transparent"


# Student edition ---------------------------------------------------------------------------------

# In these, < begins a solution and > ends it.
CLEARED = {
    "function": (
        "def f(x):\n    'Doc.'\n    <\n    return x\n    >\nf(1)",
        "def f(x):\n    'Doc.'\n    return ...  # your code here\nf(1)",
    ),
    "top level": ("answer = ...\n<\nanswer = 3\n>", "answer = ...\n# your code here"),
    "middle": (
        "def f(x):\n    y = 0\n    <\n    y = x\n    >\n    return y",
        "def f(x):\n    y = 0\n    # your code here\n    return y",
    ),
    "loop": (
        "def f(x):\n    for i in x:\n        <\n        x += i\n        >\n    return x",
        "def f(x):\n    for i in x:\n        ...  # your code here\n    return x",
    ),
    "methods": (
        "class A:\n    def f(\n        self,\n    ):\n        <\n        pass\n        >\n\n"
        "    def g(self):\n        <\n        pass\n        >",
        "class A:\n    def f(\n        self,\n    ):\n        return ...  # your code here\n\n"
        "    def g(self):\n        return ...  # your code here",
    ),
    "class": ("class A:\n    <\n    x = 1\n    >", "class A:\n    ...  # your code here"),
}


@pytest.mark.parametrize("name", CLEARED)
def test_solutions_are_cleared(name):
    """Is what is left Python that runs, with the stub where the solution stood?"""
    source, left = CLEARED[name]
    source = source.replace("<", edition.BEGIN).replace(">", edition.END)
    assert edition.clear_solutions(source) == left
    compile(left, name, "exec")


@pytest.mark.parametrize(
    "source",
    [
        "### BEGIN SOLUTION\n1",
        "1\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_unbalanced_markers(source):
    """Is a lost marker an error, not a solution handed to the reader?"""
    with pytest.raises(CourseError, match="no partner"):
        edition.clear_solutions(source)


def meta(kind, id, points=None):
    grade = kind == "check"
    base = {
        "schema_version": 3,
        "grade": grade,
        "solution": not grade,
        "locked": grade,
        "task": False,
    }
    return {"nbgrader": base | {"grade_id": f"{kind}-{id}"} | ({"points": points} if grade else {})}


HAND = 'answer = ...\n### BEGIN SOLUTION\nanswer = {"weights": [0.75, 0.25], "output": [6, 1]}\n### END SOLUTION'
CAUSAL = """import torch
def causal_attention(q, k, v):
    ### BEGIN SOLUTION
    scores = q @ k.mT / q.shape[-1] ** 0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    ### END SOLUTION"""


def course_notebook(goal="One goal."):
    """A chapter of two exercises whose checks are the real ones of chapter 01."""
    cells = [
        new_markdown_cell(f"# 01 A chapter\n{goal}"),
        new_code_cell("%load_ext llmcourse"),
        new_code_cell("tokens = 8", metadata={"tags": ["parameters"]}),
        new_code_cell(HAND, metadata=meta("ex", "1-1")),
        new_code_cell('check("1.1", answer)', metadata=meta("check", "1-1", 1)),
        new_markdown_cell("<details>…</details>", metadata={"tags": ["solution-remark"]}),
        new_code_cell(CAUSAL, metadata=meta("ex", "1-2")),
        new_code_cell('check("1.2", causal_attention)', metadata=meta("check", "1-2", 2)),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one chapter, in a folder of its own."""
    folder = tmp_path / "course" / "notebooks"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "course", lambda: folder.parent)
    path = folder / "01_chapter.ipynb"
    path.write_text(edition.dumps(course_notebook()), "utf-8")
    return path


def test_student_notebook():
    """Are solutions, remarks and outputs gone, all else kept, and the bytes always the same?"""
    nb = course_notebook()
    nb.cells[4].outputs = [nbformat.v4.new_output("stream", text="x")]
    nb.metadata["widgets"] = {}
    out = edition.student_notebook(nb)
    nbformat.validate(out)
    assert len(out.cells) == 7 and all(not c.get("outputs") for c in out.cells)
    assert out.cells[3].metadata == nb.cells[3].metadata and "widgets" not in out.metadata
    text = edition.dumps(out)
    assert "0.75" not in text and "scaled_dot" not in text and "SOLUTION" not in text
    assert text == edition.dumps(edition.student_notebook(course_notebook()))
    assert not {c.id for c in out.cells} & {c.id for c in nb.cells}


# Workspace ---------------------------------------------------------------------------------------


def update(course, goal="Another goal."):
    course.write_text(edition.dumps(course_notebook(goal)), "utf-8")


def edit(path, text="mine"):
    nb = edition.load(path)
    nb.cells.append(new_markdown_cell(text))
    path.write_text(edition.dumps(nb), "utf-8")
    return path.read_text("utf-8")


def test_workspace_first_and_second_time(course, tmp_path):
    """Is the student edition written once, and nothing touched the second time?"""
    folder = tmp_path / "w"
    assert workspace.refresh(folder).new == ["01_chapter.ipynb"]
    before = (folder / "01_chapter.ipynb").stat().st_mtime_ns
    assert "0.75" not in (folder / "01_chapter.ipynb").read_text("utf-8")
    report = workspace.refresh(folder)
    assert report.kept == ["01_chapter.ipynb"] and "up to date" in str(report)
    assert (folder / "01_chapter.ipynb").stat().st_mtime_ns == before


def test_workspace_update_of_untouched(course, tmp_path):
    """Is an untouched chapter replaced, and one that was only run too, its outputs set aside?"""
    workspace.refresh(tmp_path)
    mine = tmp_path / "01_chapter.ipynb"
    nb = edition.load(mine)
    nb.cells[1].execution_count = 1
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="a measurement")]
    mine.write_text(json.dumps(nb), "utf-8")
    update(course)
    assert workspace.refresh(tmp_path).updated == ["01_chapter.ipynb"]
    assert "Another goal." in mine.read_text("utf-8")
    kept = tmp_path / ".llmcourse" / "replaced" / "01_chapter-1.ipynb"
    assert "a measurement" in kept.read_text("utf-8")


def test_workspace_never_overwrites_an_edit(course, tmp_path):
    """Does an edited chapter stay, the newer one arriving beside it once, under a name of its own?"""
    workspace.refresh(tmp_path)
    mine = tmp_path / "01_chapter.ipynb"
    edited = edit(mine)
    taken = tmp_path / "01_chapter.new-2026-11-23.ipynb"
    taken.write_text("the reader's own")
    update(course)
    report = workspace.refresh(tmp_path, today=TODAY)
    beside = tmp_path / "01_chapter.new-2026-11-23-2.ipynb"
    assert report.beside == {"01_chapter.ipynb": beside.name} and beside.name in str(report)
    assert mine.read_text("utf-8") == edited and taken.read_text() == "the reader's own"
    again = workspace.refresh(tmp_path, today=TODAY + datetime.timedelta(1))
    assert again.beside == {} and again.waiting == {"01_chapter.ipynb": beside.name}
    update(course, "A third goal.")
    third = workspace.refresh(tmp_path, today=TODAY).beside["01_chapter.ipynb"]
    assert third not in (beside.name, taken.name) and beside.exists()
    mine.write_text((tmp_path / third).read_text("utf-8"), "utf-8")  # the reader takes the new one
    assert workspace.refresh(tmp_path).kept == ["01_chapter.ipynb"]
    update(course, "A fourth goal.")
    assert workspace.refresh(tmp_path).updated == ["01_chapter.ipynb"]


def test_workspace_deleted_and_own_files(course, tmp_path):
    """Is a deleted chapter written again, and a file of the reader's left alone?"""
    workspace.refresh(tmp_path)
    own = tmp_path / "notes.ipynb"
    own.write_text("not even JSON")
    (tmp_path / "01_chapter.ipynb").unlink()
    assert workspace.refresh(tmp_path).restored == ["01_chapter.ipynb"]
    assert own.read_text() == "not even JSON"


@pytest.mark.parametrize("damage", ["{", "[]", '{"01_chapter.ipynb": 3}'])
def test_workspace_without_its_manifest(course, tmp_path, damage):
    """If the list of what was written is lost, is every difference taken for an edit?"""
    workspace.refresh(tmp_path)
    (tmp_path / ".llmcourse" / "manifest.json").write_text(damage)
    before = (tmp_path / "01_chapter.ipynb").read_text("utf-8")
    update(course)
    report = workspace.refresh(tmp_path)
    assert list(report.beside) == ["01_chapter.ipynb"] and report.notes
    assert (tmp_path / "01_chapter.ipynb").read_text("utf-8") == before


def test_workspace_that_cannot_be(course, tmp_path):
    """Is a file, or the course's own folder, refused in one sentence?"""
    (tmp_path / "f").write_text("")
    with pytest.raises(CourseError, match="not a folder"):
        workspace.refresh(tmp_path / "f")
    with pytest.raises(CourseError, match="own notebooks"):
        workspace.refresh(course.parent)
    course.unlink()
    with pytest.raises(CourseError, match="no chapters"):
        workspace.refresh(tmp_path / "w")


# Lab ---------------------------------------------------------------------------------------------


def test_first_unfinished(course):
    """Does the lab open the chapter where there is something to solve, else the first?"""
    (course.parent / "00_before.ipynb").write_text(
        edition.dumps(
            new_notebook(cells=[new_code_cell("check", metadata=meta("check", "0-1", 1))])
        )
    )
    assert lab.first_unfinished() == "00_before.ipynb"
    progress.change(lambda state: state["exercises"].update({"0.1": {"solved": True}}))
    assert lab.first_unfinished() == "01_chapter.ipynb"
    assert "1 of 1" in chapters.progress_panel().text and "1 of 4" in chapters.progress_panel().text
    for id in ("1.1", "1.2"):
        progress.change(lambda state, id=id: state["exercises"].update({id: {"solved": True}}))
    assert lab.first_unfinished() == "00_before.ipynb"


def test_port_that_is_taken():
    """Is a port in use one sentence, before anything starts?"""
    import socket

    with socket.socket() as busy:
        busy.bind((lab.HOST, 0))
        busy.listen()
        with pytest.raises(CourseError, match="Port"):
            lab._free_port(busy.getsockname()[1])


@pytest.mark.slow
def test_lab_opens(course, tmp_path):
    """Does JupyterLab start on the workspace, behind its token, and stop on Ctrl-C, news off?"""
    import signal
    import urllib.error
    import urllib.request

    env = {**os.environ, "DISPLAY": "", "WAYLAND_DISPLAY": "", "SSH_CONNECTION": "x"}
    code = f"""from pathlib import Path; from llmcourse import paths
paths.course = lambda: Path({str(course.parent.parent)!r})
from llmcourse.jupyter.lab import open_lab; open_lab()"""
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines = list(iter(server.stdout.readline, "Stop it with Ctrl-C.\n"))
        assert "New in" in lines[0]
        address = next(line.strip() for line in lines if "http" in line)
        url, token = re.fullmatch(
            r"(http://127\.0\.0\.1:\d+)/lab/tree/01_chapter\.ipynb\?token=(\w{48})", address
        ).groups()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/api/contents")
        said = json.load(urllib.request.urlopen(f"{url}/api/contents?token={token}"))
        assert [one["name"] for one in said["content"]] == ["01_chapter.ipynb"]
        plugin = "@jupyterlab/apputils-extension:notification"
        settings = json.load(
            urllib.request.urlopen(f"{url}/lab/api/settings/{plugin}?token={token}")
        )
        assert settings["schema"]["properties"]["fetchNews"]["default"] == "false"
        begun = time.monotonic()
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait(timeout=15) == 0 and time.monotonic() - begun < 15
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


# In a kernel -------------------------------------------------------------------------------------


def executed(*sources):
    nb = new_notebook(cells=[new_code_cell(source) for source in sources])
    assert kernel.run(nb, set(range(len(nb.cells)))) == ""
    return nb.cells


@pytest.mark.slow
def test_extension_in_a_kernel():
    """Are the names there, is a CourseError one sentence, and has its cell still failed?"""
    cells = executed(
        "%load_ext llmcourse",
        "check, hint, record, scoreboard, predict('t', 'How?')",
        "check('0.x', 1)",
        'check("1.1", {"weights": [0.75, 0.25], "output": [6, 1]})',
        "%llmcourse nonsense",
        "1/0",
        "guess = predict('q', 'Which?', options=['a', 'b'])",
    )
    assert not cells[0].outputs
    error = cells[2].outputs[-1]
    assert error.output_type == "error" and error.ename == "CourseError"
    assert len(error.traceback) == 1 and error.traceback[0].startswith("There is no exercise")
    result = cells[3].outputs[-1]
    assert float(result.data["text/plain"]) == 1 and result.data[grading.MIME]["status"] == "right"
    assert "there are %llmcourse" in cells[4].outputs[-1].evalue
    assert len(cells[5].outputs[-1].traceback) > 1, "other errors keep their traceback"
    form = cells[6].outputs[0].data
    assert {"text/html", "text/plain", "application/vnd.jupyter.widget-view+json"} == set(form)


@pytest.mark.slow
def test_terminal_session_reads_well():
    """In IPython without a front end, is the panel text, and an error one line?"""
    code = "%load_ext llmcourse\ncheck('1.1', {'weights': [1, 1], 'output': [1, 1]})\ncheck('7.77', 1)\n"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--colors=nocolor", "--no-banner"],
        input=code,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (
        "Not yet" in done.stdout
        and "Hint 1" in done.stdout
        and "There is no exercise" in done.stdout
    )
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_nbgrader_reads_the_points(course):
    """Do nbgrader's own tools clear the solutions, and give the points our checks give?"""
    preprocessors = pytest.importorskip(
        "nbgrader.preprocessors", reason="pip install '.[teaching]'"
    )
    from nbgrader.utils import determine_grade

    source, stub = course_notebook(), course_notebook()
    cleared, _ = preprocessors.ClearSolutions().preprocess(stub, {})
    for nb, due in [(source, 3), (cleared, 0)]:
        assert kernel.run(nb, set(range(len(nb.cells)))) == ""
        grades = [
            determine_grade(c) for c in nb.cells if c.metadata.get("nbgrader", {}).get("grade")
        ]
        assert sum(got for got, _ in grades) == due and sum(most for _, most in grades) == 3


# Grading -----------------------------------------------------------------------------------------


def graded(nb, path, **limits):
    path.write_text(edition.dumps(nb), "utf-8")
    return grading.grade([path], **limits)[0]


def statuses(row):
    return {one["id"]: one["status"] for one in row["exercises"]}


@pytest.mark.slow
def test_grade_source_and_student(course, tmp_path):
    """Does the source earn all, the untouched student edition nothing, the reader's files stay as they are?"""
    row = graded(course_notebook(), tmp_path / "renamed.ipynb")
    assert (row["score"], row["max_score"], row["note"]) == (3, 3, "")
    row = graded(edition.student_notebook(course_notebook()), tmp_path / "mine.ipynb")
    assert (row["score"], row["max_score"]) == (0, 3)
    assert statuses(row) == {"1.1": "not tried", "1.2": "not tried"}
    assert not paths.workspace().exists()
    assert "0 of 3 points" in grading.text([row]) and "Two tokens by hand" in grading.text([row])


@pytest.mark.slow
def test_grade_cannot_be_faked(course, tmp_path):
    """Do deleted, edited and imitated checks earn nothing, and a missing answer neither?"""
    fake = f'"{grading.MIME}": {{"exercise": "1.2", "score": 2, "max_score": 2, "status": "right"}}'
    nb = edition.student_notebook(course_notebook())
    ex, hold = nb.cells[5], nb.cells[6]
    hold.source = "2.0"
    hold.outputs = [
        nbformat.v4.new_output("execute_result", json.loads(f"{{{fake}}}"), execution_count=1)
    ]
    ex.source = f"""
def causal_attention(q, k, v):
    from IPython.display import display
    display({{{fake}}}, raw=True)
    return q
def check(id, answer):
    return 2.0
print('{{{fake}}}')"""
    del nb.cells[3]  # the answer of 1.1; its check is still there
    row = graded(nb, tmp_path / "fake.ipynb")
    assert row["score"] == 0 and statuses(row) == {"1.1": "missing", "1.2": "wrong"}


@pytest.mark.slow
def test_grade_without_check_cells_and_extension(course, tmp_path):
    """Is a right answer worth its points though the copy lost the checks and its first cells?"""
    nb = course_notebook()
    nb.cells = [c for c in nb.cells if c.metadata.get("nbgrader", {}).get("solution")]
    assert graded(nb, tmp_path / "x.ipynb")["score"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, note",
    [("while True: pass", "Stopped after 15 s"), ("import os; os._exit(1)", "kernel died")],
    ids=["endless", "dead"],
)
def test_grade_goes_on_or_says_why(course, tmp_path, fault, note):
    """Do an endless cell and a dead kernel cost only what comes from them?"""
    nb = course_notebook()
    nb.cells[6].source += f"\n{fault}"
    row = graded(nb, tmp_path / "x.ipynb", cell_s=15 if "while" in fault else 60)
    assert note in row["note"]
    assert statuses(row)["1.1"] == "right"


def test_grade_of_no_chapter(course, tmp_path):
    """Is something that is no chapter one sentence, unless others can be graded?"""
    stray = tmp_path / "stray.ipynb"
    stray.write_text(edition.dumps(new_notebook(cells=[new_code_cell("1")])))
    text = tmp_path / "text.ipynb"
    text.write_text("hello")
    for path, why in [
        (stray, "not a chapter"),
        (text, "not a Jupyter"),
        (tmp_path / "no.ipynb", "cannot be read"),
    ]:
        with pytest.raises(CourseError, match=why):
            grading.grade([path])


# Experiments --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_papermill_sets_parameters_and_results_come_back(tmp_path):
    """Set from outside, does a chapter-like notebook record what it computed, readable without scraping?"""
    import papermill

    from llmcourse.measure.results import read_results

    parameters = new_code_cell("tokens = 3", metadata={"tags": ["parameters"]})
    work = new_code_cell("%load_ext llmcourse\nrecord(doubled=2 * tokens, unit='tokens')")
    notebook = new_notebook(cells=[parameters, work])
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, tmp_path / "in.ipynb")
    for tokens in (7, 21):
        out = tmp_path / f"out{tokens}.ipynb"
        papermill.execute_notebook(
            str(tmp_path / "in.ipynb"), str(out), {"tokens": tokens}, progress_bar=False
        )
        assert read_results(out) == {"doubled": 2 * tokens, "unit": "tokens"}
