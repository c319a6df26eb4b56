"""What the reader has solved and guessed: one JSON file in the workspace, safe to share.

Two notebooks may write at once (lock), the machine may stop at any moment (write beside, then
rename), and a file that was damaged anyway is set aside, never deleted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcourse import paths

LOCK_S = 10.0


def file() -> Path:
    """Where the reader's progress is kept."""
    return paths.state() / "progress.json"


def read() -> dict[str, Any]:
    """The progress so far: {"exercises": {id: …}, "guesses": {key: …}}; a damaged file reads as empty."""
    return _load(file())[0]


def change(edit: Callable[[dict[str, Any]], None]) -> str:
    """Let `edit` alter the progress in place and save it; returns a sentence if something went wrong.

    A reader who solved an exercise on a full disk has still solved it, so nothing is raised.
    """
    from filelock import FileLock, Timeout

    path = file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_S):
            state, damaged = _load(path)
            note = _set_aside(path) if damaged else ""
            edit(state)
            write_atomically(path, json.dumps(state, indent=1, ensure_ascii=False, sort_keys=True))
        return note
    except (OSError, Timeout) as error:
        reason = getattr(error, "strerror", None) or "another program holds its lock"
        return f"Your progress could not be saved in {path} ({reason})."


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader of the file sees the old one or the new one, whole."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if os.name != "nt":  # mkstemp makes it private; give it the reader's usual permissions
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(beside, 0o666 & ~mask)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _load(path: Path) -> tuple[dict[str, Any], bool]:
    """The state and whether the file was damaged."""
    empty: dict[str, Any] = {"exercises": {}, "guesses": {}}
    try:
        state = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return empty, False
    except (ValueError, OSError):
        return empty, True
    shelves = state.values() if isinstance(state, dict) else [None]
    if not all(
        isinstance(s, dict) and all(isinstance(v, dict) for v in s.values()) for s in shelves
    ):
        return empty, True
    return empty | state, False


def _set_aside(path: Path) -> str:
    number = 1
    while (kept := path.with_name(f"progress.damaged-{number}.json")).exists():
        number += 1
    os.replace(path, kept)
    return (
        f"The record of your progress was damaged and starts anew; the old one is kept as {kept}."
    )
