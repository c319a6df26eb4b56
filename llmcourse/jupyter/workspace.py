"""The reader's own copy of the notebooks: brought up to date, and never an edit overwritten.

A manifest remembers what was written. A chapter whose cells are still those is replaced when the
course has a newer one; a chapter the reader has edited stays, and the newer one is put beside it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmcourse import paths
from llmcourse.errors import CourseError
from llmcourse.jupyter import chapters, edition
from llmcourse.jupyter.progress import write_atomically

LOCK_S = 60.0


@dataclass(slots=True)
class Report:
    """What `refresh` did: the names of the chapters, by what happened to each."""

    folder: str
    new: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)  # chapter -> the newer one beside it
    waiting: dict[str, str] = field(default_factory=dict)  # the same, put there earlier
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        lines = []
        if self.new:
            lines.append(f"New in {self.folder}: {_names(self.new)}.")
        if self.updated:
            lines.append(f"Updated, as you had not edited them: {_names(self.updated)}.")
        if self.restored:
            lines.append(f"Written again, as they were gone: {_names(self.restored)}.")
        for name, newer in self.beside.items():
            lines.append(
                f"You have edited {name}, so it stays; the updated chapter is beside it: {newer}."
            )
        for name, newer in self.waiting.items():
            lines.append(f"{name} is your edited copy; the updated chapter is {newer}.")
        return "\n".join(lines + self.notes) or f"{self.folder} is up to date."


def refresh(folder: Path | None = None, *, today: datetime.date | None = None) -> Report:
    """Bring a folder (by default the workspace) up to date with the course's notebooks.

    Nothing the reader wrote is lost: edited chapters and files of their own are not touched.
    Raises CourseError if the folder cannot be used.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder or paths.workspace()).expanduser().absolute()
    if folder.resolve() == (paths.course() / "notebooks").resolve():
        raise CourseError(f"{folder} holds the course's own notebooks; choose another folder.")
    sources = chapters.files()
    state = folder / ".llmcourse"
    try:
        state.mkdir(parents=True, exist_ok=True)
        with FileLock(state / "workspace.lock", timeout=LOCK_S):
            return _refresh(folder, sources, today or datetime.date.today())
    except Timeout:
        raise CourseError(
            f"Another program is updating {folder}; wait for it, then try again."
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise CourseError(f"{folder} is not a folder; choose another one.") from None
    except OSError as error:
        raise CourseError(
            f"{error.filename or folder} cannot be written: {error.strerror}."
        ) from error


def _refresh(folder: Path, sources: list[Path], today: datetime.date) -> Report:
    report = Report(str(folder))
    manifest = _read_manifest(folder, report)
    for source in sources:
        text = edition.dumps(edition.student_notebook(edition.load(source)))
        _refresh_one(folder / source.name, text, manifest, report, today)
        # After each chapter, so that being stopped in between loses no knowledge.
        write_atomically(_manifest_path(folder), json.dumps(manifest, indent=1, sort_keys=True))
    return report


def _refresh_one(
    path: Path, text: str, manifest: dict[str, Any], report: Report, today: datetime.date
) -> None:
    """Bring one chapter up to date. `manifest[name]` = {"cells": what was written, "offered": …}."""
    name, newest = path.name, _cells(text)
    row = manifest.setdefault(name, {})
    if not path.exists() and not path.is_symlink():
        (report.restored if row.get("cells") else report.new).append(name)
        write_atomically(path, text)
        manifest[name] = {"cells": newest}
        return
    here = _cells(path.read_text("utf-8", errors="replace"))
    if here == newest:
        report.kept.append(name)
        manifest[name] = {"cells": newest}
    elif here == row.get("cells"):
        # Not edited, but perhaps run: its outputs are the reader's, so the old file is set aside.
        _set_aside(path)
        write_atomically(path, text)
        manifest[name] = {"cells": newest}
        report.updated.append(name)
    elif row.get("offered") == newest:
        report.kept.append(name)
        if (path.parent / row["beside"]).exists():  # else the reader has thrown it away
            report.waiting[name] = row["beside"]
    else:
        beside = _free_name(path, today)
        write_atomically(beside, text)
        row |= {"offered": newest, "beside": beside.name}
        report.beside[name] = beside.name


def _cells(text: str) -> str:
    """A digest of what a reader edits: the cells' kinds and sources. Running changes neither."""
    try:
        cells = json.loads(text)["cells"]
        told = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    except (ValueError, KeyError, TypeError):
        told = [[text]]  # no notebook any more: whatever it is, it is an edit
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _free_name(path: Path, today: datetime.date) -> Path:
    """`08_kv_cache.new-2026-11-23.ipynb`, or with a number where that is taken."""
    stem, number = f"{path.stem}.new-{today.isoformat()}", 1
    free = path.with_name(f"{stem}.ipynb")
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{stem}-{number}.ipynb")
    return free


def _set_aside(path: Path) -> None:
    folder = path.parent / ".llmcourse" / "replaced"
    folder.mkdir(exist_ok=True)
    number = 1
    while (kept := folder / f"{path.stem}-{number}.ipynb").exists():
        number += 1
    write_atomically(kept, path.read_text("utf-8"))


def _manifest_path(folder: Path) -> Path:
    return folder / ".llmcourse" / "manifest.json"


def _read_manifest(folder: Path, report: Report) -> dict[str, Any]:
    """What was written so far. Without it every chapter that differs counts as edited: safe."""
    try:
        manifest = json.loads(_manifest_path(folder).read_text("utf-8"))
        if isinstance(manifest, dict) and all(isinstance(row, dict) for row in manifest.values()):
            return manifest
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    report.notes.append(
        "The list of what the course had written was damaged, so all your files are kept."
    )
    return {}


def _names(names: list[str]) -> str:
    return (
        ", ".join(names) if len(names) <= 6 else f"{len(names)} chapters ({names[0]} … {names[-1]})"
    )
