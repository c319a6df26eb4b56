"""What a reader meets in a notebook: checks, guesses, figures, and the workspace around them.

Names are fetched on first use, so that the command line stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "check": "exercises.base",
    "hint": "exercises.base",
    "predict": "guess",
    "show": "figures",
    "use_style": "figures",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
