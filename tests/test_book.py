"""The website's parts: the table of contents, folding, downloads, translation; the full build is slow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COURSE = Path(__file__).resolve().parents[1]
BOOK = COURSE / "book"
sys.path.insert(0, str(BOOK))

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("sphinx", reason="the book's packages are not here: make book")
import assemble  # noqa: E402
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output  # noqa: E402


def chapters():
    return [c for part in assemble.table_of_contents()[0] for c in part.chapters]


@pytest.fixture
def notebook():
    """A chapter in four cells: an exercise, its check, a remark, a figure with its description."""
    solution = new_code_cell(
        "def double(x):\n    ### BEGIN SOLUTION\n    y = 2 * x\n    return y\n    ### END SOLUTION"
    )
    check = new_code_cell('check("0.1", double)', outputs=[new_output("execute_result")])
    check.outputs[0].data = {
        "text/html": "<b>Right</b>",
        "application/vnd.llmcourse.check+json": {"score": 1},
    }
    figure = new_code_cell("show(fig)", outputs=[new_output("display_data")])
    figure.outputs[0].data = {"image/png": ""}
    figure.outputs[0].metadata = {"image/png": {"alt": "a falling line"}}
    remark = new_markdown_cell("It is linear.", metadata={"tags": ["solution-remark"]})
    return new_notebook(cells=[solution, check, remark, figure])


def test_contents_name_every_notebook():
    """Is every notebook in the table of contents, in the order of the numbers, with a sentence?"""
    listed = [c.file for c in chapters()]
    assert listed == sorted(set(listed))
    assert [int(name[:2]) for name in listed] == list(range(27))
    found = {path.stem for path in (COURSE / "notebooks").glob("[0-9]*.ipynb")}
    assert found <= set(listed), f"not in book/toc.yml: {sorted(found - set(listed))}"
    assert all(c.goal for c in chapters() if c.file in found), (
        "a written chapter needs its goal in toc.yml"
    )


def test_titles_are_the_notebooks():
    """Does each chapter's first heading say what the map calls it?"""
    for chapter in (c for c in chapters() if c.notebook.exists()):
        first = nbformat.read(chapter.notebook, as_version=4).cells[0].source.splitlines()[0]
        assert first == f"# {chapter.label}"


def test_map_links_what_exists(tmp_path):
    """Does the map link written chapters, and only name the others?"""
    text = assemble.course_map(assemble.table_of_contents()[0])
    linked = set(re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", text))
    assert linked == {path.stem for path in (COURSE / "notebooks").glob("[0-9]*.ipynb")}
    assert all(c.label in text for c in chapters())


def test_solutions_are_folded(notebook):
    """Does the page show the stub first, and keep the whole solution, folded, without markers?"""
    page = assemble.fold_solutions(notebook)
    stub, solution, check, remark, figure = page.cells
    assert "return ...  # your code here" in stub.source and "2 * x" not in stub.source
    assert solution.source == "def double(x):\n    y = 2 * x\n    return y"
    assert "hide-input" in solution.metadata["tags"]
    assert solution.metadata["mystnb"]["code_prompt_show"] == "Show the solution"
    assert dict(check.outputs[0].data) == {"text/html": "<b>Right</b>"}
    assert remark.source.startswith("<details>") and "It is linear." in remark.source
    assert figure.metadata["mystnb"]["image"]["alt"] == "a falling line"
    assert "BEGIN SOLUTION" in notebook.cells[0].source, "the source notebook was changed"
    nbformat.validate(page)


def test_links_out_of_notebooks_reach_the_repository():
    """Do links to the repository's files work on the website, and links between chapters stay?"""
    text = "[code](../llmcourse/models/llama.py) [next](01_attention_math.ipynb)"
    assert assemble.link_to_repository(text, "https://host/x") == (
        "[code](https://host/x/blob/main/llmcourse/models/llama.py) [next](01_attention_math.ipynb)"
    )


def test_downloads(tmp_path):
    """Has the student's download no solution and no output, and the other one both?"""
    assemble.write_downloads(tmp_path)
    sources = sorted((COURSE / "notebooks").glob("[0-9]*.ipynb"))
    assert [p.name for p in sorted((tmp_path / "exercises").iterdir())] == [p.name for p in sources]
    for path in (tmp_path / "exercises").iterdir():
        assert "BEGIN SOLUTION" not in path.read_text("utf-8")
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells)
        assert "BEGIN SOLUTION" in (tmp_path / "solutions" / path.name).read_text("utf-8")


def sphinx(builder: str, source: Path, target: Path, *options: str) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        builder,
        "-c",
        str(BOOK),
    ]
    command += [
        "-d",
        str(target.parent / f"doctrees-{builder}"),
        *options,
        str(source),
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_chinese_page_from_a_small_catalogue(tmp_path):
    """Do a few translated sentences make a Chinese page: prose in Chinese, code as it was, search alive?"""
    source, locale = tmp_path / "source", tmp_path / "locale" / "zh_CN" / "LC_MESSAGES"
    source.mkdir()
    locale.mkdir(parents=True)
    code = "total = 1 + 1  # stays"
    page = new_notebook(
        cells=[new_markdown_cell("# Speed\n\nA token is a piece\nof text."), new_code_cell(code)],
        metadata={"language_info": {"name": "ipython", "pygments_lexer": "ipython3"}},
    )
    nbformat.write(page, source / "index.ipynb")
    catalogue = {"Speed": "速度", "A token is a piece of text.": "词元是一段文本。"}
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n'
    entries = "".join(
        f"\nmsgid {json.dumps(k)}\nmsgstr {json.dumps(v, ensure_ascii=False)}\n"
        for k, v in catalogue.items()
    )
    (locale / "index.po").write_text(header + entries, encoding="utf-8")
    locale_dirs = f"locale_dirs={tmp_path / 'locale'}"
    sphinx("html", source, tmp_path / "html", "-D", "language=zh_CN", "-D", locale_dirs)
    text = (tmp_path / "html" / "index.html").read_text("utf-8")
    assert '<html lang="zh-CN"' in text
    assert "词元是一段文本。" in text and "A token is" not in text
    assert "# stays" in re.sub("<[^>]+>", "", text)
    stemmer = (tmp_path / "html/_static/language_data.js").read_text("utf-8")
    assert "window.Stemmer = EnglishStemmer" in stemmer, (
        "the search asks for a class nobody defines"
    )
    index = (tmp_path / "html" / "searchindex.js").read_text("utf-8")
    assert json.dumps("词元") in index, "the Chinese text was not split into words"


def test_catalogues_are_met(tmp_path):
    """Does each entry of our catalogues belong to a sentence that still stands in the book?"""
    polib = pytest.importorskip("polib")
    assemble.write_sources(tmp_path / "source", "https://example.org/course")
    sphinx("gettext", tmp_path / "source", tmp_path / "pot")
    for path in sorted((BOOK / "locale/zh_CN/LC_MESSAGES").rglob("*.po")):
        name = path.relative_to(BOOK / "locale/zh_CN/LC_MESSAGES").with_suffix(".pot")
        known = {entry.msgid for entry in polib.pofile(str(tmp_path / "pot" / name))}
        entries = [e for e in polib.pofile(str(path)) if not e.obsolete]
        unmet = [e.msgid for e in entries if e.msgid not in known]
        assert not unmet, f"{name}: no such sentence in the book any more: {unmet}"
        assert all(e.msgstr and not e.fuzzy for e in entries)


@pytest.mark.slow
def test_full_build_asks_no_other_host():
    """Does the whole site build without a warning, loading nothing from another host?"""
    if shutil.which("npm") is None and not (BOOK / "node_modules").is_dir():
        pytest.skip("the book needs npm once, to fetch MathJax and Mermaid: install Node.js")
    done = subprocess.run([sys.executable, str(BOOK / "build.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (BOOK / "_build/html").rglob("*.html"):
        text = path.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(https?:)?//', text)
        loaded += re.findall(
            r'<link\b[^>]*rel="(?:stylesheet|preload|icon)"[^>]*href="(?:https?:)?//', text
        )
        assert not loaded, path
    vendor = BOOK / "_build/html/_static/vendor"
    assert (vendor / "mathjax/tex-chtml-full.js").is_file()
    assert (vendor / "mermaid/mermaid.min.js").is_file()
