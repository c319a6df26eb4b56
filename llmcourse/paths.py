"""Where the course, its downloads and the reader's own files live.

Nothing here creates a folder: whoever writes makes the folder it writes into.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent


def course() -> Path:
    """The folder that holds `notebooks/` and `data/`: a checkout, or the copy inside a wheel."""
    packed = PACKAGE / "_course"
    return packed if packed.is_dir() else PACKAGE.parent


def cache() -> Path:
    """Downloads and converted weights: big, shared by all projects, safe to delete."""
    chosen = os.environ.get("LLMCOURSE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("llmcourse")


def workspace() -> Path:
    """The reader's own copy of the notebooks. The course never overwrites an edit made here."""
    chosen = os.environ.get("LLMCOURSE_WORKSPACE")
    return Path(chosen).expanduser() if chosen else Path.home() / "llmcourse-workspace"


def state() -> Path:
    """The reader's scoreboard, progress and guesses; inside the workspace, so one folder is a backup."""
    return workspace() / ".llmcourse"
