"""Run notebooks in place, to commit them: `python tests/notebooks/execute.py notebooks/08_*.ipynb`.

Each runs in a fresh kernel, apart from the reader's own files. Nothing is written if a cell fails or
writes to stderr, nor if nothing changed. What differs between two equal runs (time stamps, random
widget ids) is taken out, so that a diff shows what changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat

from llmcourse.errors import CourseError
from llmcourse.jupyter import edition, kernel
from llmcourse.jupyter.progress import write_atomically

WIDGETS = "application/vnd.jupyter.widget-state+json"
ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def main() -> int:
    """Execute the notebooks named on the command line; 1 if one of them may not be stored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--normalise", action="store_true", help="do not run, only tidy")
    options = parser.parse_args()
    failed = False
    for path in options.notebooks:
        begun = time.perf_counter()
        try:
            changed = execute(path, run=not options.normalise)
        except CourseError as error:
            print(f"{path}: not written. {error}", file=sys.stderr)
            failed = True
            continue
        took = time.perf_counter() - begun
        print(f"{path}: {'written' if changed else 'unchanged'} after {took:.0f} s")
    return int(failed)


def execute(path: Path, *, run: bool = True) -> bool:
    """Run one notebook in place; returns whether its file changed. Raises CourseError if it failed."""
    nb = edition.load(path)
    if run:
        kernel.run_all(nb)
    refuse(nb)
    text = fixed_widget_ids(normalise(nb), path.stem)
    if text == path.read_text("utf-8"):
        return False
    write_atomically(path, text)
    return True


def refuse(nb: Any) -> None:
    """Raise CourseError if an output must not be committed."""
    for number, cell in enumerate(nb.cells, 1):
        allowed = "raises-exception" in cell.metadata.get("tags", ())
        for output in cell.get("outputs", ()):
            if output.output_type == "error" and not allowed:
                said = f"{output.ename}: {output.evalue}"
                raise CourseError(f"Cell {number} failed with {said}")
            if output.output_type == "stream" and output.name == "stderr":
                raise CourseError(f"Cell {number} wrote to stderr: {output.text.strip()[:200]}")


def normalise(nb: Any) -> Any:
    """Take out what a run leaves behind and nobody reads."""
    nb.metadata.kernelspec = dict(KERNEL)
    nb.metadata.language_info = {"name": "python"}
    for leftover in ("papermill", "vscode", "toc", "signature"):
        nb.metadata.pop(leftover, None)
    nb.nbformat, nb.nbformat_minor = 4, 5
    seen: set[str] = set()
    count = 0
    for position, cell in enumerate(nb.cells):
        for leftover in ("execution", "ExecuteTime", "collapsed", "scrolled", "editable"):
            cell.metadata.pop(leftover, None)
        if not cell.get("id") or cell.id in seen:
            cell.id = hashlib.sha256(f"{position} {cell.source}".encode()).hexdigest()[:8]
        seen.add(cell.id)
        if cell.cell_type != "code":
            continue
        ran = bool(cell.source.strip()) and cell.execution_count is not None
        count += ran
        cell.execution_count = count if ran else None
        cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return nb


def _is_bar(output: Any) -> bool:
    """Is this a tqdm bar that closed itself? Its widget is gone, and a page would show an error."""
    data = output.get("data", {})
    text = "".join(data.get("text/plain", ""))
    return "application/vnd.jupyter.widget-view+json" in data and bool(re.search(r"\d%\|", text))


def fixed_widget_ids(nb: Any, name: str) -> str:
    """The notebook's text with its widgets numbered as they are first mentioned, not at random."""
    text = edition.dumps(nb)
    numbered = {
        old: hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:32]
        for number, old in enumerate(_as_mentioned(json.loads(text)))
    }
    text = ID.sub(lambda found: numbered.get(found[0], found[0]), text)
    return edition.dumps(nbformat.reads(text, as_version=4))  # sorted by the new ids


def _as_mentioned(nb: dict[str, Any]) -> list[str]:
    """All widget ids: from the outputs along the references, then those nothing mentions."""
    state = nb["metadata"].get("widgets", {}).get(WIDGETS, {}).get("state", {})
    told = {id: json.dumps(model, sort_keys=True) for id, model in state.items()}
    rest = sorted(told, key=lambda id: ID.sub("", told[id]))
    queue = ID.findall(json.dumps(nb["cells"])) + rest
    order: dict[str, None] = {}
    while queue:
        if (one := queue.pop(0)) in told and one not in order:
            order[one] = None
            queue = ID.findall(told[one]) + queue
    return list(order)


if __name__ == "__main__":
    raise SystemExit(main())
