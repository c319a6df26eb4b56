"""The student edition of a notebook: solutions out, stubs in, outputs cleared, the rest as it is.

nbgrader's conventions are kept (markers, cell metadata), so a teacher may use either tool. The same
source always gives the same bytes: that is how the workspace tells an update from an edit.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmcourse.errors import CourseError

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "# your code here"
REMARK = "solution-remark"  # the tag of a cell that tells the solution in prose


def student_notebook(nb: Any) -> Any:
    """A copy of a source notebook for the reader.

    Raises CourseError if a solution marker has no partner.
    """
    out = copy.deepcopy(nb)
    out.cells = [cell for cell in out.cells if REMARK not in cell.metadata.get("tags", ())]
    for position, cell in enumerate(out.cells):
        cell.source = clear_solutions(cell.source, cell.cell_type, position)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
        cell["id"] = _fresh_id(cell, position)
    out.metadata.pop("widgets", None)  # the state of outputs that are gone
    if (out.nbformat, out.nbformat_minor) < (4, 5):
        out.nbformat, out.nbformat_minor = 4, 5  # the first with cell ids
    return out


def clear_solutions(source: str, cell_type: str = "code", position: int = 0) -> str:
    """A cell's source with each solution region replaced by its stub."""
    lines = source.split("\n")
    out: list[str] = []
    begun: int | None = None
    for number, line in enumerate(lines):
        if line.strip() == BEGIN:
            if begun is not None:
                raise _unbalanced(position, number, BEGIN, "the one before it is still open")
            begun = number
        elif line.strip() == END:
            if begun is None:
                raise _unbalanced(position, number, END, "nothing was begun")
            indent = lines[begun][: len(lines[begun]) - len(lines[begun].lstrip())]
            after = lines[number + 1 :]
            out.append(
                indent + (_stub(indent, out, after) if cell_type == "code" else "*Your answer*")
            )
            begun = None
        elif begun is None:
            out.append(line)
    if begun is not None:
        raise _unbalanced(position, begun, BEGIN, "it is never ended")
    return "\n".join(out)


def dumps(nb: Any) -> str:
    """The notebook as the text of its file; the same notebook gives the same text everywhere."""
    import nbformat

    text = nbformat.writes(nb, version=4, indent=1, sort_keys=True, ensure_ascii=False)
    return text.rstrip("\n") + "\n"


def load(path: Path) -> Any:
    """A notebook file as nbformat 4; raises CourseError, in one sentence, if it is not one."""
    import warnings

    import nbformat

    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CourseError(f"{path} is not a Jupyter notebook.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cells without an id are mended, and that is all
            nb = nbformat.reads(text, as_version=4)
            nbformat.validate(nb)
    except Exception:  # nbformat raises whatever the file's oddity leads to
        raise CourseError(f"{path} is not a Jupyter notebook.") from None
    return nb


def _stub(indent: str, before: Sequence[str], after: Sequence[str]) -> str:
    """What stands for the region: `return ...` where it ends a function, else a comment."""
    owner = _owner(indent, before)
    if owner is None and not indent:
        return STUB
    if owner is not None and owner.lstrip().startswith(("def ", "async def ")):
        inner = next((line for line in after if line.strip()), "")
        if _width(inner) <= _width(owner) or not inner:
            return f"return ...  {STUB}"
    last = next((line for line in reversed(before) if line.strip()), "")
    # A block may not be empty; `...` is a statement, a comment is none.
    return f"...  {STUB}" if last.rstrip().endswith(":") or owner is None else STUB


def _owner(indent: str, before: Sequence[str]) -> str | None:
    """The line of the innermost def or class around what comes next."""
    width = len(indent)
    for line in reversed(before):
        if line.strip() and _width(line) < width:
            if re.match(r"\s*(def|async def|class)\b", line):
                return line
            if not re.match(r"\s*[\])}]", line):  # the end of a signature over several lines
                width = _width(line)
    return None


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


def _fresh_id(cell: Any, position: int) -> str:
    """An id that follows from the source's cell, so an update changes no more than it must."""
    origin = cell.get("id") or f"{position}:{cell.source}"
    return "s" + hashlib.sha256(f"student {origin}".encode()).hexdigest()[:11]


def _unbalanced(position: int, line: int, marker: str, why: str) -> CourseError:
    return CourseError(
        f'"{marker}" in line {line + 1} of cell {position + 1} has no partner ({why}); add it.'
    )
