"""A notebook's results as data: written into its own outputs, read back without scraping text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from llmcourse.errors import CourseError

MIME = "application/vnd.llmcourse.result+json"


def record(**values: Any) -> None:
    """Put named results into the output of this cell: `record(tokens_per_s=5.4, tokens=128)`.

    Numbers, strings, lists, mappings, tensors, estimates and timings may be given. Outside a
    notebook the values are printed. Later values of the same name win when read back.
    Raises CourseError for a value that is not data.
    """
    data = {name: plain(value, name) for name, value in values.items()}
    text = "recorded: " + ", ".join(f"{name} = {_short(value)}" for name, value in data.items())
    if _front_end():
        from IPython.display import display

        display({MIME: data, "text/plain": text}, raw=True)
    else:
        print(text)


def read_results(notebook: str | Path) -> dict[str, Any]:
    """All results of a notebook file, in the order of its cells; the latest of a name wins.

    Works on anything that saves .ipynb: JupyterLab, nbclient, papermill.
    Raises CourseError if the file is not there or is no notebook.
    """
    path = Path(notebook)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except OSError as error:
        raise CourseError(f"There is no notebook {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is not a Jupyter notebook (format 4).") from error
    found: dict[str, Any] = {}
    for cell in cells:
        for output in cell.get("outputs", ()):
            found.update(output.get("data", {}).get(MIME, {}))
    return found


def plain(value: Any, name: str = "value") -> Any:
    """A value as JSON holds it: our types by `to_dict`, tensors as numbers, nan and inf as null."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(), name)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(held, name) for key, held in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(held, name) for held in value]
    if hasattr(value, "tolist"):  # torch and numpy, scalars and arrays
        return plain(value.tolist(), name)
    if isinstance(value, Path):
        return value.as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), name) for f in fields(value)}
    raise CourseError(
        f"{name} is a {type(value).__name__}, which is not data: record numbers, text or lists."
    )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and isinstance(value.get("value"), float):
        return f"{value['value']:.4g}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _front_end() -> bool:
    """Is this a notebook's kernel? (IPython in a terminal cannot show our MIME type.)"""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None
