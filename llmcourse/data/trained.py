"""The small checkpoints that the course itself trained and ships, made by the scripts in `data/recipes`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse.errors import CourseError
from llmcourse.paths import course

if TYPE_CHECKING:
    from torch import Tensor


def trained_names() -> tuple[str, ...]:
    """The checkpoints that are there."""
    return tuple(sorted(path.stem for path in _folder().glob("*.safetensors")))


def load_trained(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float32, and what is known about them: configuration, vocabulary, how they were made.

    Raises CourseError if there is no such checkpoint or its file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = _folder() / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(trained_names()) or "none"
        raise CourseError(f"The course ships no checkpoint {name!r}; there are: {known}.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise CourseError(
            f"{path.name} is cut short or damaged; install the course again."
        ) from error
    return weights, about


def save_trained(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write weights in float16 with `about` as JSON beside them; the old file stays until it is done.

    Tensors that share memory (a tied head) are stored once, under the first of their names.
    """
    from safetensors.torch import save_file

    once: dict[int, str] = {}
    for key, value in weights.items():
        once.setdefault(value.data_ptr(), key)
    kept = {key: weights[key].detach().half().cpu().contiguous() for key in once.values()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    # One entry: with several, safetensors writes them in random order, and the file would differ.
    told = {"about": json.dumps(about, ensure_ascii=False, sort_keys=True)}
    save_file(kept, temporary, metadata=told)
    os.replace(temporary, path)


def _folder() -> Path:
    return course() / "data" / "checkpoints"
