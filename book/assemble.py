"""From the repository's notebooks and pages to the folder Sphinx reads: solutions folded, map filled in.

Pure functions over notebooks and text come first; `write_sources` and `write_downloads` put them on disk.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

BOOK = Path(__file__).resolve().parent
COURSE = BOOK.parent
LANGUAGES = {"en": "English", "zh_CN": "简体中文"}
WIDGET = "application/vnd.jupyter.widget-view+json"
SNAPSHOT = "*The controls above are a snapshot: download this chapter and run it, and what they show follows.*"


@dataclass(frozen=True, slots=True)
class Chapter:
    """One notebook: file name without suffix, title, and one sentence (empty until it is written)."""

    file: str
    title: str
    goal: str = ""

    @property
    def label(self) -> str:
        """`00 · Meet the model`, as the map and the README write it."""
        return f"{self.file[:2]} · {self.title}"

    @property
    def notebook(self) -> Path:
        """Where the source edition is, or will be."""
        return COURSE / "notebooks" / f"{self.file}.ipynb"


@dataclass(frozen=True, slots=True)
class Part:
    """A heading of the course and its chapters, in reading order."""

    title: str
    chapters: tuple[Chapter, ...]


def table_of_contents() -> tuple[list[Part], dict[str, Any]]:
    """The parts of the course, and the back matter ({"title", "pages"}), from toc.yml."""
    toc = yaml.safe_load((BOOK / "toc.yml").read_text(encoding="utf-8"))
    parts = [Part(p["title"], tuple(Chapter(**c) for c in p["chapters"])) for p in toc["parts"]]
    return parts, toc["back"]


def course_map(parts: list[Part]) -> str:
    """The map for the first page, as Markdown: written chapters with link and sentence, others named."""
    blocks = []
    for part in parts:
        written = [c for c in part.chapters if c.notebook.exists()]
        planned = [c.label for c in part.chapters if not c.notebook.exists()]
        lines = [f"**{part.title}**", ""]
        lines += [f"- [{c.label}](notebooks/{c.file}.ipynb): {c.goal}" for c in written]
        if planned:
            lines += ["", "```{container} planned", "; ".join(planned), "```"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def toctrees(parts: list[Part], back: dict[str, Any]) -> str:
    """Hidden tables of contents, one a part that has a chapter, for the sidebar."""
    groups = [
        (p.title, [f"notebooks/{c.file}" for c in p.chapters if c.notebook.exists()]) for p in parts
    ] + [(back["title"], back["pages"])]
    return "\n\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *files, "```"])
        for title, files in groups
        if files
    )


def fold_solutions(notebook: Any) -> Any:
    """The page of a chapter: each stub as a reader meets it, the solution folded under it.

    `notebook` is the source edition. The code of a solution is kept whole, in a cell of its own
    that Sphinx folds.
    """
    from llmcourse.jupyter.edition import BEGIN, REMARK, clear_solutions

    page = copy.deepcopy(notebook)
    cells = []
    for cell in page.cells:
        if cell.cell_type == "markdown" and REMARK in cell.metadata.get("tags", []):
            cell.source = fold_markdown(cell.source)
        if cell.cell_type != "code" or BEGIN not in cell.source:
            cells.append(cell)
            if cell.cell_type != "code":
                continue
            describe_figures(cell)
            drop_data(cell)
            shown = [output.get("data", {}) for output in cell.outputs]
            if any(WIDGET in data and "text/html" not in data for data in shown):
                cells.append(nbformat.v4.new_markdown_cell(SNAPSHOT, id=f"{cell.id}-note"[-64:]))
            continue
        stub = nbformat.v4.new_code_cell(clear_solutions(cell.source), id=f"{cell.id}-stub"[-64:])
        markers = r"^[ \t]*### (BEGIN|END) SOLUTION[^\n]*\n?"
        cell.source = re.sub(markers, "", cell.source, flags=re.M).rstrip("\n")
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        cell.metadata["mystnb"] = {
            "code_prompt_show": "Show the solution",
            "code_prompt_hide": "Hide the solution",
            **cell.metadata.get("mystnb", {}),
        }
        cells += [stub, cell]
    page.cells = cells
    return page


def describe_figures(cell: Any) -> None:
    """Hand the alternative text that `figures.show` stored with a PNG to MyST-NB, which looks elsewhere."""
    stored = [o.get("metadata", {}).get("image/png", {}).get("alt") for o in cell.outputs]
    options = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
    if any(stored):
        options.setdefault("alt", " ".join(alt for alt in stored if alt))


def drop_data(cell: Any) -> None:
    """Results and points are stored for programs; the page shows what stands beside them."""
    for output in cell.outputs:
        for kind in [
            k for k in output.get("data", {}) if k.startswith("application/vnd.llmcourse.")
        ]:
            del output["data"][kind]


def fold_markdown(text: str) -> str:
    """A remark on a solution, inside `<details>` if its author has not put it there."""
    if "<details" in text:
        return text
    return f"<details>\n<summary>About the solution</summary>\n\n{text}\n\n</details>"


def link_to_repository(text: str, repository: str) -> str:
    """Links from a notebook to files outside `notebooks/` point at the repository on the website."""
    return re.sub(r"\]\(\.\./(?!notebooks/)([^)\s]+)\)", rf"]({repository}/blob/main/\1)", text)


def page_of(path: Path, repository: str) -> Any:
    """The notebook at `path` as the website shows it."""
    page = fold_solutions(nbformat.read(path, as_version=4))
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = link_to_repository(cell.source, repository)
    return page


def write_sources(folder: Path, repository: str) -> None:
    """Everything Sphinx reads, into `folder`; a file that has not changed keeps its date."""
    parts, back = table_of_contents()
    files = {
        f"{page}.md": (BOOK / f"{page}.md").read_text(encoding="utf-8") for page in back["pages"]
    }
    index = (BOOK / "index.md").read_text(encoding="utf-8")
    index = index.replace("<!-- map -->", course_map(parts))
    files["index.md"] = index.replace("<!-- toctrees -->", toctrees(parts, back))
    for chapter in (c for p in parts for c in p.chapters if c.notebook.exists()):
        page = page_of(chapter.notebook, repository)
        files[f"notebooks/{chapter.file}.ipynb"] = nbformat.writes(page) + "\n"
    for name, text in files.items():
        write_if_changed(folder / name, text)
    for path in folder.rglob("*.*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()  # a chapter that was renamed


def write_downloads(folder: Path) -> None:
    """What a reader downloads: `exercises/` (the student edition) and `solutions/` (the source)."""
    from llmcourse.jupyter.edition import dumps, load, student_notebook

    for path in sorted((COURSE / "notebooks").glob("[0-9]*.ipynb")):
        notebook = load(path)
        write_if_changed(folder / "solutions" / path.name, dumps(notebook))
        write_if_changed(folder / "exercises" / path.name, dumps(student_notebook(notebook)))


def write_if_changed(path: Path, text: str) -> None:
    """Write UTF-8 text unless the file already says the same."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
